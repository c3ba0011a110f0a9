"""Models that are brought along: an ONNX or TFLite file with samples in, the first step of a model version out.

An upload is one npz of three members: `model` and `samples` (the bytes of the two files, as uint8) and `options` (JSON,
as uint8). Samples are an npz themselves: one array per input of the model, rows first (`X` where there is one input),
and where they are known `y` (the class of each row) and `group` (who or what each row is from). Without `y` a build is
gated by its agreement with the float model and the error of its outputs. A data set may be named whose labelled windows
from the field (parts of the role `gate`) a version is held against its predecessor on; none of it calibrates or trains.
"""

import hashlib
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy.orm import Session

from control_plane import datasets, jobs
from control_plane.home import Home
from control_plane.refusals import Unknown
from control_plane.schema.work import Job
from control_plane.store import Blobs
from control_plane.train_job import add_version, job_key
from converters.samples import Array, Rows
from skerry.errors import Rejected
from skerry.runtimes.arrays import unpack
from skerry.wire.messages import AGENT
from skerry.wire.topics import check_name

if TYPE_CHECKING:
    from converters.source import Source

MAX_SAMPLES_BYTES = 256 << 20
MAX_OPTIONS_BYTES = 64 << 10
MIN_ROWS = 8
MOST_CALIBRATION_ROWS = 256
TEXTS = ("probabilities", "features", "boundary")
NAMES = ("labels", "feature_names")
SHAPES = "shapes"


def ask(session: Session, blobs: Blobs, *, model: str, upload: bytes, now: datetime, dataset: str = "") -> Job:
    """Keep the files of an upload and ask for their import; the same upload again is the same job, and version.

    Raises:
        Unknown: there is no such data set.
        Rejected: the name, the upload or an option is not one.
    """
    if check_name(model, "model") == AGENT:
        raise Rejected(f"model: expected another name than {AGENT}, which is the agent itself: skerry agent add")
    members = unpack(upload, what="import", limit=MAX_SAMPLES_BYTES)
    missing = [name for name in ("model", "samples", "options") if name not in members]
    if missing or any(array.dtype != np.uint8 or array.ndim != 1 for array in members.values()):
        raise Rejected(f"import: expected model, samples and options as uint8 arrays, got {', '.join(sorted(members))}")
    parameters = {
        "model": model,
        "file": blobs.put(members["model"].tobytes()),
        "samples": blobs.put(members["samples"].tobytes()),
        "options": _options(members["options"].tobytes()),
        "dataset": dataset,
        "windows": _windows(session, dataset) if dataset else {},
    }
    return jobs.ask(session, kind="import", parameters=parameters, key=job_key("import", parameters), now=now)


def work(home: str, task: jobs.Parameters, log: Callable[[str], None]) -> jobs.Result:
    """Check, normalise and try the model on its samples, in a worker process; a runtime meets it in a child alone."""
    from control_plane.bundles import IMPORT, Bundle, check_windows
    from converters.source import import_model, run_reference

    blobs = Blobs(Home(Path(home)).blobs)
    options = task["options"]
    source = import_model(
        blobs.get(task["file"]),
        labels=tuple(options.get("labels", ())),
        feature_names=tuple(options.get("feature_names", ())),
        probabilities=options.get("probabilities", ""),
        features=options.get("features", ""),
        boundary=options.get("boundary", ""),
        shapes={name: tuple(shape) for name, shape in options.get(SHAPES, {}).items()},
    )
    log(f"{source.format}: {_shown(source)}")
    if task["windows"]:
        check_windows(source, shape=task["windows"]["shape"], labels=task["windows"]["labels"])
    rows = read_rows(blobs.get(task["samples"]), source)
    calibration, holdout = split_rows(rows, stateful=source.stateful)
    metrics: dict[str, Any] = {"rows_calibration": len(calibration), "rows_held_out": len(holdout)}
    outputs = run_reference(source, dict(holdout.inputs), starts=holdout.starts())
    if holdout.truth is not None and source.probabilities:
        labels = outputs[source.probabilities].reshape(len(holdout), -1).argmax(axis=1)
        metrics["accuracy"] = float(np.mean(labels == holdout.truth))
        log(f"accuracy {metrics['accuracy']:.3f} on {len(holdout)} held-out rows")
    recipe = {"kind": IMPORT, "format": source.format, **task["options"], "labels": list(source.labels)}
    lineage = {"file_sha256": task["file"], "samples_sha256": task["samples"]}
    bundle = Bundle(source=source, recipe=recipe, metrics=metrics, lineage=lineage)
    return {
        "bundle": blobs.put(bundle.to_bytes()),
        "recipe": recipe,
        "metrics": {**metrics, "lineage": lineage},
    }


def finish(session: Session, task: jobs.Parameters, results: list[jobs.Result], now: datetime) -> jobs.Result:
    """Write the new version."""
    (imported,) = results
    model, dataset = task["model"], task["dataset"]
    return add_version(session, imported, model=model, dataset=dataset, parts=[task["samples"]], now=now)


def read_rows(data: bytes, source: "Source") -> Rows:
    """Return samples as rows of a model's inputs.

    Raises:
        Rejected: it is no npz, lacks an input, or an array has another shape, type or range.
    """
    arrays = unpack(data, what="samples", limit=MAX_SAMPLES_BYTES)
    if len(source.inputs) == 1 and source.inputs[0].name not in arrays and "X" in arrays:
        arrays[source.inputs[0].name] = arrays.pop("X")
    missing = [spec.name for spec in source.inputs if spec.name not in arrays]
    if missing:
        got = ", ".join(sorted(arrays)) or "nothing"
        raise Rejected(f"samples: expected an array for each input, {', '.join(missing)} too, got {got}")
    inputs = {spec.name: _column(arrays[spec.name], spec.shape, spec.dtype, spec.name) for spec in source.inputs}
    lengths = {name: len(array) for name, array in inputs.items()}
    rows = next(iter(lengths.values()))
    if len(set(lengths.values())) != 1 or rows < MIN_ROWS:
        raise Rejected(f"samples: expected equally many rows of each input, {MIN_ROWS} or more, got {lengths}")
    names = {spec.name for spec in source.inputs}
    truth = None if "y" in names else _whole_numbers(arrays.get("y"), rows, "y")
    groups = None if "group" in names else _whole_numbers(arrays.get("group"), rows, "group")
    if truth is not None and source.labels and not 0 <= truth.min() <= truth.max() < len(source.labels):
        got = f"{truth.min()} to {truth.max()}"
        raise Rejected(f"samples: expected y from 0 to {len(source.labels) - 1}, one of the labels, got {got}")
    return Rows(inputs=inputs, truth=truth if source.labels else None, groups=groups)


def split_rows(rows: Rows, *, stateful: bool = False) -> tuple[Rows, Rows]:
    """Return (calibration, held out): whole groups apart where there are two or more, else every other row.

    The model learnt elsewhere, so both halves judge nothing but the conversion; drawn with a fixed seed. For a model
    with a state rows stay consecutive: each group is one sequence, and without groups the second half is held out.
    """
    draw = np.random.default_rng(1)
    if stateful and rows.groups is not None:
        rows = rows.where(np.argsort(rows.groups, kind="stable"))
    held_out = np.zeros(len(rows), dtype=bool)
    present = np.unique(rows.groups) if rows.groups is not None else np.empty(0)
    if rows.groups is not None and len(present) > 1:
        held_out = np.isin(rows.groups, draw.permutation(present)[: (len(present) + 1) // 2])
    elif stateful:
        held_out[len(rows) // 2 :] = True
    else:
        held_out[draw.permutation(len(rows))[len(rows) // 2 :]] = True
    # so many that ranges are known, so few that static quantisation does not take minutes
    learnt = np.flatnonzero(~held_out)
    if stateful:
        learnt = learnt[:MOST_CALIBRATION_ROWS]
    elif len(learnt) > MOST_CALIBRATION_ROWS:
        learnt = np.sort(draw.permutation(learnt)[:MOST_CALIBRATION_ROWS])
    return rows.where(learnt), rows.where(held_out)


def _windows(session: Session, dataset: str) -> dict[str, Any]:
    """Return the shape and labels of a data set's windows, which all its parts share."""
    check_name(dataset, "data set")
    part = next(iter(datasets.parts(session, dataset)), None)
    if part is None:
        raise Unknown(f"data set: expected one with parts, got {dataset!r}; add some: skerry data add {dataset}")
    return {"shape": part.summary["shape"], "labels": part.summary["labels"]}


def _options(data: bytes) -> dict[str, Any]:
    try:
        tree = json.loads(data[:MAX_OPTIONS_BYTES])
    except ValueError as error:
        raise Rejected(f"import: expected options in JSON, got {data[:40]!r}") from error
    if not isinstance(tree, dict) or set(tree) - {*TEXTS, *NAMES, SHAPES}:
        raise Rejected(f"import: expected options of {', '.join((*NAMES, *TEXTS, SHAPES))}, got {str(tree)[:80]}")
    shapes = tree.get(SHAPES, {})
    if not isinstance(shapes, dict) or not all(_is_shape(shape) for shape in shapes.values()):
        raise Rejected(f"import: expected shapes as lists of whole numbers by input, got {str(shapes)[:80]}")
    for name, value in tree.items():
        if name == SHAPES:
            continue
        texts = value if name in NAMES and isinstance(value, list) else [value]
        if not all(isinstance(text, str) and len(text) <= 200 for text in texts) or (name in NAMES) != (texts is value):
            raise Rejected(f"import: expected {name} as {'a list of texts' if name in NAMES else 'a text'}")
    return tree


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, list) and 1 <= len(shape) <= 8 and all(type(size) is int and size > 0 for size in shape)


def _column(array: Array, shape: tuple[int, ...], dtype: str, name: str) -> Array:
    if array.dtype.kind not in "fiub" or array.ndim < 1:
        raise Rejected(f"samples: expected numbers as {name}, got {array.dtype} {array.shape}")
    # rows of a model without any other dimension than its batch may come flat
    if array.shape[1:] != shape[1:] and array[:1].size == int(np.prod(shape[1:])):
        array = array.reshape(len(array), *shape[1:])
    if array.shape[1:] != shape[1:]:
        raise Rejected(f"samples: expected {name} as (rows, {', '.join(map(str, shape[1:]))}), got {array.shape}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise Rejected(f"samples: expected finite numbers as {name}, got NaN or infinity: leave such rows out")
    wanted = np.dtype(dtype)
    if wanted.kind in "iu" and array.dtype.kind in "iu" and array.size:
        bounds = np.iinfo(wanted)
        if array.min() < bounds.min or array.max() > bounds.max:
            raise Rejected(f"samples: expected {name} as {dtype}, got {array.min()} to {array.max()}")
    if wanted.kind in "iu" and array.dtype.kind == "f":
        raise Rejected(f"samples: expected {name} as {dtype}, got {array.dtype}")
    return np.ascontiguousarray(array, dtype=wanted)


def _whole_numbers(array: Array | None, rows: int, name: str) -> Array | None:
    if array is None:
        return None
    if array.shape != (rows,) or array.dtype.kind not in "iu":
        raise Rejected(f"samples: expected {rows} whole numbers as {name}, got {array.dtype} {array.shape}")
    return array.astype(np.int64)


def _shown(source: "Source") -> str:
    inputs = ", ".join(f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in source.inputs)
    outputs = ", ".join(f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in source.outputs)
    digest = hashlib.sha256(source.data).hexdigest()[:16]
    return f"{len(source.data)} bytes (sha256 {digest}), inputs {inputs}; outputs {outputs}"


KIND = jobs.Kind(tasks=lambda parameters: [parameters], work=work, finish=finish)
