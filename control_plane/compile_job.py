"""The job that compiles: one task per profile, each a gate report and, when it passed, the files of an artifact.

A version that follows another is gated against that one on the labelled windows from the field (the parts of the role
`gate`), where there are any; an import without them on its own held-out samples, where they are labelled. The report
says on which, or why on none. Its int8 forms keep the grids of what the devices of a profile run, where those fit.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import datasets, jobs
from control_plane.events import record
from control_plane.home import Home
from control_plane.refusals import Conflict, Unknown
from control_plane.schema.models import Build, ModelVersion
from control_plane.schema.releases import Release
from control_plane.schema.work import Job
from control_plane.store import Blobs
from control_plane.toolchain import toolchain
from control_plane.train_job import job_key
from skerry.errors import Rejected

if TYPE_CHECKING:
    from control_plane.bundles import Bundle
    from converters.samples import Rows
    from converters.source import Source

MANIFEST = "manifest.json"
MODEL_FILES = ("model.onnx", "model.tflite")
WORKERS = 2
"""How many tasks the control plane's pool does at once, by default."""


def ask(
    session: Session,
    *,
    model: str,
    version: int,
    profiles: Sequence[str],
    window_n: int,
    now: datetime,
    budget_s: float = 600.0,
) -> Job:
    """Ask for the builds of a model version; the same question again is the same job.

    Raises:
        Unknown: there is no such version.
        Rejected: a profile is unknown, or none is given.
        Conflict: the version is in a release already: what was signed must not change.
    """
    from firmware_profiles import load_profile

    row = session.get(ModelVersion, (model, version))
    if row is None:
        raise Unknown(f"model: expected a trained version, got {model} {version}")
    names = sorted(set(profiles))
    if not names:
        raise Rejected("profiles: expected at least one, got none")
    previous = _previous(session, row)
    parameters: dict[str, Any] = {
        "model": model,
        "version": version,
        "profiles": {name: asdict(load_profile(name)) for name in names},
        "bundle": row.bundle,
        "parts": row.parts,
        "gate_parts": [part.sha256 for part in datasets.parts(session, row.dataset, role="gate")],
        "previous": previous.bundle if previous else "",
        "previous_version": previous.version if previous else 0,
        "before": {name: _before(session, row, name) for name in names},
        "window_n": window_n,
        "budget_s": budget_s,
        # of the version, not of the job: equal inputs give equal bytes
        "created": row.trained_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    key = job_key("compile", parameters)
    asked = session.scalar(select(Job).where(Job.key == key, Job.state != "failed"))
    if asked is not None:
        return asked
    released = session.scalar(select(Release.name).where(Release.model == model, Release.version == version))
    if released is not None:
        raise Conflict(f"{model} {version}: expected a version without a release, got {released}; train a new version")
    return jobs.ask(session, kind="compile", parameters=parameters, key=key, now=now)


def tasks(parameters: jobs.Parameters) -> list[jobs.Parameters]:
    """Make one task per profile; those that run side by side share the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shared = {name: value for name, value in parameters.items() if name not in ("profiles", "before")}
    before = parameters.get("before", {})  # a job that was asked for by an older server has none
    shared["parallel"] = max(1, cores // min(WORKERS, len(parameters["profiles"])))
    return [{**shared, "profile": each, "before": before.get(each, {})} for each in parameters["profiles"]]


def work(home: str, task: jobs.Parameters, log: Callable[[str], None]) -> jobs.Result:
    """Compile for one profile, in a worker process."""
    from control_plane.bundles import bundle_rows, read_bundle
    from converters.artifact import report_tree
    from converters.cache import Cache
    from converters.compile import compile_model
    from converters.emulators import DEFAULT_FOLDER
    from firmware_profiles import load_profile

    place = Home(Path(home))
    blobs = Blobs(place.blobs)
    bundle = read_bundle(blobs.get(task["bundle"]))
    calibration, holdout = bundle_rows(bundle, blobs, task["parts"])
    previous = read_bundle(blobs.get(task["previous"])).source if task["previous"] else None
    field, field_of, ungated = _field(bundle, previous, holdout, blobs=blobs, gate_parts=task["gate_parts"])
    if previous:
        gated = f"on {field_of}" if field else f"not: {ungated}"
        log(f"{task['profile']}: gated against version {task['previous_version']} {gated}")
    outcome = compile_model(
        bundle.source,
        load_profile(task["profile"]),
        name=task["model"],
        version=task["version"],
        created=task["created"],
        calibration=calibration,
        holdout=holdout,
        field=field,
        previous=previous if field else None,
        before={precision: blobs.get(sha256) for precision, sha256 in task["before"].items()},
        field_of=field_of,
        ungated=ungated,
        lineage={**bundle.lineage, "bundle_sha256": task["bundle"]},
        window_n=task["window_n"],
        budget_s=task["budget_s"],
        parallel=task["parallel"],
        cache=Cache(place.cache),
        emulators=DEFAULT_FOLDER.expanduser(),
        log=log,
    )
    files = {name: blobs.put(data) for name, data in (outcome.artifact or {}).items()}
    second = {name: blobs.put(data) for name, data in (outcome.second or {}).items()}
    return {
        "profile": task["profile"],
        "gate": outcome.report.verdict,
        "manifest": files.pop(MANIFEST, ""),
        "files": files,
        # the other build that stays in the release where latency was a proxy: the first devices measure both
        "report": {
            **report_tree(outcome.report, outcome.recipes),
            "second": {"manifest": second.pop(MANIFEST, ""), "files": second},
            # for the provenance: the server may be upgraded before anybody releases this
            "toolchain": toolchain(),
        },
    }


def _field(
    bundle: "Bundle", previous: "Source | None", holdout: "Rows", *, blobs: Blobs, gate_parts: Sequence[str]
) -> "tuple[Rows | None, str, str]":
    """Return the rows to gate a version against its predecessor on, what they are, and else why there are none."""
    from control_plane.bundles import field_rows, unlike
    from converters.gate_report import FIELD, OWN

    if previous is None:
        return None, FIELD, ""
    if reason := unlike(bundle.source, previous):
        return None, FIELD, reason
    if gate_parts:
        return field_rows(bundle.source, blobs, gate_parts), FIELD, ""
    if not bundle.imported:
        return None, FIELD, "there are no labelled windows from the field"
    # samples that came with a model are the best judge of it that there is: it learnt elsewhere
    if holdout.truth is not None:
        return holdout, OWN, ""
    return None, OWN, "there are no labelled windows from the field, and the model's samples have no truth"


def finish(session: Session, task: jobs.Parameters, results: list[jobs.Result], now: datetime) -> jobs.Result:
    """Write the builds, in place of earlier ones of the same version."""
    model, version = task["model"], task["version"]
    released = session.scalar(select(Release.name).where(Release.model == model, Release.version == version))
    if released is not None:
        raise Conflict(f"{model} {version}: expected a version without a release, got {released} meanwhile")
    for outcome in results:
        known = select(Build).where(Build.model == model, Build.version == version, Build.profile == outcome["profile"])
        build = session.scalar(known) or Build(model=model, version=version, profile=outcome["profile"])
        build.gate, build.manifest = outcome["gate"], outcome["manifest"]
        build.files, build.report, build.built_at = outcome["files"], outcome["report"], now
        session.add(build)
        session.flush()
        text = f"{model} {version} for {build.profile}: gate {build.gate}"
        record(session, "build", f"{model} {version}", text, profile=build.profile, gate=build.gate)
    return {
        "model": model,
        "version": version,
        "builds": {outcome["profile"]: outcome["gate"] for outcome in results},
    }


def _previous(session: Session, row: ModelVersion) -> ModelVersion | None:
    """The newest earlier version that is released, else the newest earlier one: what the field runs, or would.

    Never a revoked one: being no worse than what must not run says nothing.
    """
    revoked = select(Release.version).where(Release.model == row.model, Release.state == "revoked")
    earlier = select(ModelVersion).where(ModelVersion.model == row.model, ModelVersion.version < row.version)
    earlier = earlier.where(ModelVersion.version.not_in(revoked))
    released = select(Release.version).where(Release.model == row.model, Release.state == "live")
    newest_first = ModelVersion.version.desc()
    return (
        session.scalars(earlier.where(ModelVersion.version.in_(released)).order_by(newest_first).limit(1)).first()
        or session.scalars(earlier.order_by(newest_first).limit(1)).first()
    )


def _before(session: Session, row: ModelVersion, profile: str) -> dict[str, str]:
    """Return the SHA-256 of the model files by precision that the newest live release before has for a profile."""
    live = select(Release.version).where(Release.model == row.model, Release.state == "live")
    builds = select(Build).where(Build.model == row.model, Build.version < row.version, Build.version.in_(live))
    builds = builds.where(Build.profile == profile, Build.manifest != "").order_by(Build.version.desc())
    build = session.scalars(builds.limit(1)).first()
    if build is None:
        return {}
    second = build.report.get("second", {}).get("files", {})
    named = zip(build.report.get("kept", ()), (build.files, second), strict=False)
    return {
        precision: files[name] for precision, files in named for name in MODEL_FILES if isinstance(files.get(name), str)
    }


KIND = jobs.Kind(tasks=tasks, work=work, finish=finish)
