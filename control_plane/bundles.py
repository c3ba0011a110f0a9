"""What a model version is, as one blob: its source, how it came to be, its figures, and the rows it is compiled with.

bundle = read_bundle(blobs.get(row.bundle))        # whichever kind of training, or import, wrote it
calibration, holdout = bundle_rows(bundle, blobs, row.parts)
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from control_plane import datasets
from control_plane.store import Blobs
from converters.network import array_json, json_array
from converters.samples import Rows, Samples, check_samples
from converters.source import Source, from_network
from skerry.errors import Rejected
from skerry.runtimes.arrays import pack, unpack

FORMAT = "skerry-bundle-1"
IMPORT = "import"


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """A model before it is compiled: `recipe` has a `kind`; `metrics` and `lineage` are as those of a training."""

    source: Source
    recipe: dict[str, Any]
    metrics: dict[str, Any]
    lineage: dict[str, str]

    @property
    def imported(self) -> bool:
        """Whether the model was brought along rather than trained here."""
        return bool(self.recipe["kind"] == IMPORT)

    def to_bytes(self) -> bytes:
        """Write a deterministic npz without pickle: the source's bytes and a JSON text of the rest."""
        text = {"format": FORMAT, "recipe": self.recipe, "metrics": self.metrics, "lineage": self.lineage}
        source = np.frombuffer(self.source.to_bytes(), dtype=np.uint8)
        return pack({"bundle": json_array(text), "source": source})


def read_bundle(data: bytes) -> Bundle:
    """Read what `Bundle.to_bytes` or `Trained.to_bytes` wrote; raises `Rejected` on anything else."""
    from control_plane.training import Trained

    arrays = unpack(data, what="bundle")
    if "trained" in arrays:
        trained = Trained.from_bytes(data)
        return Bundle(
            source=from_network(trained.network),
            recipe=json.loads(json.dumps(asdict(trained.recipe))),
            metrics=trained.metrics,
            lineage=trained.lineage,
        )
    try:
        text = array_json(arrays["bundle"])
        if text["format"] != FORMAT:
            raise Rejected(f"bundle: expected the format {FORMAT}, got {text['format']!r}")
        return Bundle(
            source=Source.from_bytes(arrays["source"].tobytes()),
            recipe={"kind": str(text["recipe"]["kind"]), **text["recipe"]},
            metrics=dict(text["metrics"]),
            lineage=dict(text["lineage"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Rejected(f"bundle: expected {FORMAT}, got an npz with {sorted(arrays)[:6]}") from error


def bundle_rows(bundle: Bundle, blobs: Blobs, parts: Sequence[str]) -> tuple[Rows, Rows]:
    """Return (calibration, held out): for what was trained here, the rows that it learnt from and those it did not.

    Raises:
        Rejected: the parts do not fit the model.
    """
    from control_plane.imports import read_rows, split_rows
    from control_plane.training import recipe_from, split

    if bundle.imported:
        return split_rows(read_rows(blobs.get(parts[0]), bundle.source), stateful=bundle.source.stateful)
    learnt, held_out = split(recipe_from(bundle.recipe), samples_of(blobs, parts))
    name = bundle.source.inputs[0].name
    return learnt.rows(name), held_out.rows(name)


def field_rows(source: Source, blobs: Blobs, digests: Sequence[str]) -> Rows:
    """Return labelled windows from the field as rows of a model, their truth in the order of its labels.

    Raises:
        Rejected: the model does not take them, or has other labels.
    """
    windows = datasets.load(blobs, digests)
    check_windows(source, shape=windows.x.shape[1:], labels=windows.labels)
    places = np.asarray([source.labels.index(label) for label in windows.labels])
    return Rows({source.inputs[0].name: windows.x}, truth=places[windows.y], groups=windows.group)


def check_windows(source: Source, *, shape: Sequence[int], labels: Sequence[str]) -> None:
    """Raise `Rejected` unless windows of a shape and with labels can judge a model."""
    takes = [(tuple(spec.shape[1:]), spec.dtype) for spec in source.inputs]
    if takes != [(tuple(shape), "float32")]:
        got = ", ".join(f"{kind} {size}" for size, kind in takes)
        raise Rejected(f"data set: expected a model of one input, float32 {tuple(shape)} as its windows, got {got}")
    if sorted(labels) != sorted(source.labels):
        raise Rejected(f"data set: expected the model's labels {list(source.labels)}, got {list(labels)}")


def unlike(source: Source, previous: Source) -> str:
    """Return why two versions cannot be judged on the same labelled rows; empty when they can."""
    inputs, before = ({spec.name: (spec.shape, spec.dtype) for spec in each.inputs} for each in (source, previous))
    if inputs != before:
        return f"it takes {', '.join(inputs)} of other names, shapes or types than the previous version"
    return "" if source.labels == previous.labels else "its labels are not those of the previous version"


def samples_of(blobs: Blobs, digests: Sequence[str]) -> Samples:
    """Return the labelled windows of parts of a data set."""
    rows = datasets.load(blobs, digests)
    return check_samples(rows.x, rows.y, rows.group, labels=len(rows.labels))
