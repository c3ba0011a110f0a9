"""The job that trains: the train parts of a data set in, the next version of a model out."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from control_plane import datasets, jobs
from control_plane.events import record
from control_plane.home import Home
from control_plane.refusals import Unknown
from control_plane.schema.models import ModelVersion
from control_plane.schema.work import Job
from control_plane.store import Blobs
from skerry.errors import Rejected
from skerry.wire.messages import AGENT
from skerry.wire.topics import check_name

# a release is named MODEL-VERSION and is itself a name of at most 63 characters
MAX_MODEL = 53


def ask(session: Session, *, model: str, dataset: str, recipe: dict[str, Any], now: datetime) -> Job:
    """Ask for a training; the same data and recipe again are the same job, and so the same version.

    Raises:
        Unknown: the data set has no train parts.
        Rejected: the name or the recipe is not one.
    """
    from control_plane.training import recipe_from

    if check_name(model, "model") == AGENT:
        raise Rejected(f"model: expected another name than {AGENT}, which is the agent itself: skerry agent add")
    if len(model) > MAX_MODEL:
        raise Rejected(f"model: expected at most {MAX_MODEL} characters, got {len(model)}")
    complete = json.loads(json.dumps(asdict(recipe_from(recipe))))
    parts = [part.sha256 for part in datasets.parts(session, dataset, role="train")]
    if not parts:
        raise Unknown(f"data set: expected one with train parts, got {dataset!r}; add some: skerry data add {dataset}")
    parameters = {"model": model, "dataset": dataset, "parts": parts, "recipe": complete}
    return jobs.ask(session, kind="train", parameters=parameters, key=job_key("train", parameters), now=now)


def job_key(kind: str, parameters: dict[str, Any]) -> str:
    """Return the idempotency key of a job: its kind and the digest of all that it depends on."""
    text = json.dumps(parameters, sort_keys=True, separators=(",", ":"))
    return f"{kind}:{hashlib.sha256(text.encode()).hexdigest()}"


def work(home: str, task: jobs.Parameters, log: Callable[[str], None]) -> jobs.Result:
    """Train, in a worker process; return the blob of what was trained and its figures."""
    from control_plane.bundles import read_bundle
    from control_plane.training import Recipe, recipe_from, train
    from control_plane.tree_training import train_trees

    blobs = Blobs(Home(Path(home)).blobs)
    rows = datasets.load(blobs, task["parts"])
    recipe = recipe_from(task["recipe"])
    data = (rows.x, rows.y, rows.group)
    if isinstance(recipe, Recipe):
        written = train(recipe, *data, labels=rows.labels, log=log).to_bytes()
    else:
        written = train_trees(recipe, *data, labels=rows.labels, log=log).to_bytes()
    bundle = read_bundle(written)
    return {
        "bundle": blobs.put(written),
        "recipe": json.loads(json.dumps(bundle.recipe)),
        "metrics": {**bundle.metrics, "lineage": bundle.lineage},
    }


def finish(session: Session, task: jobs.Parameters, results: list[jobs.Result], now: datetime) -> jobs.Result:
    """Write the new version."""
    (trained,) = results
    return add_version(session, trained, model=task["model"], dataset=task["dataset"], parts=task["parts"], now=now)


def add_version(
    session: Session, made: jobs.Result, *, model: str, dataset: str, parts: list[str], now: datetime
) -> jobs.Result:
    """Write the next version of a model, trained or brought along, and return the result of its job."""
    newest = session.scalar(select(func.max(ModelVersion.version)).where(ModelVersion.model == model)) or 0
    version = newest + 1
    session.add(
        ModelVersion(
            model=model,
            version=version,
            dataset=dataset,
            parts=parts,
            recipe=made["recipe"],
            metrics=made["metrics"],
            bundle=made["bundle"],
            trained_at=now,
        )
    )
    done = "imported" if made["recipe"]["kind"] == "import" else "trained"
    accuracy = made["metrics"].get("accuracy")
    known = "its samples have no truth" if accuracy is None else f"accuracy {accuracy:.3f} on held-out rows"
    text = f"{model} {version} is {done}: {known}"
    record(session, "model", f"{model} {version}", text, model=model, version=version, accuracy=accuracy)
    return {"model": model, "version": version, "metrics": made["metrics"]}


KIND = jobs.Kind(tasks=lambda parameters: [parameters], work=work, finish=finish)
