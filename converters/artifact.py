"""The artifact's folder as bytes: model, golden vectors, gate report, and the manifest that binds them by digest.

    manifest.json            skerry.wire.manifest.Manifest
    model.onnx|model.tflite  the candidate that won, and beside it its other forms, such as model.c;
    trees.c                  for trees on a microcontroller, with trees.h, and front.tflite before it where there is one
    golden.npz               each input and output of the model by name, rows first: what the candidate gave when gated
    gate.json                the gate's report

Equal arguments give equal bytes. No clock is read here. What is watched on the device: `converters.watching`.
"""

import json
from collections.abc import Mapping

import numpy as np

from converters.candidates import Candidate
from converters.gate import GateReport
from converters.samples import Array, Rows
from converters.source import Source
from converters.watching import Watch
from skerry.runtimes.arrays import pack
from skerry.wire import codec
from skerry.wire.manifest import Manifest, describe_file
from skerry.wire.profile import Profile

GOLDEN_ROWS = 16
GOLDEN_FILE = "golden.npz"
GATE_FILE = "gate.json"
MANIFEST_FILE = "manifest.json"


def assemble(
    source: Source,
    profile: Profile,
    candidate: Candidate,
    *,
    name: str,
    version: int,
    created: str,
    report: GateReport,
    recipes: Mapping[str, Mapping[str, str]],
    golden: bytes,
    watch: Watch,
    lineage: Mapping[str, str],
) -> dict[str, bytes]:
    """Return the files of the artifact by name, the manifest among them."""
    gate = json.dumps(report_tree(report, recipes), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    files = {**candidate.extras, candidate.file: candidate.data, GOLDEN_FILE: golden, GATE_FILE: gate}
    manifest = Manifest(
        model=name,
        version=version,
        profile=profile.name,
        runtime=profile.runtime,
        model_file=candidate.file,
        golden_file=GOLDEN_FILE,
        gate_file=GATE_FILE,
        inputs=source.inputs,
        outputs=source.outputs,
        labels=source.labels,
        tolerances=dict(candidate.tolerances),
        observe=dict(watch.observe),
        monitor=watch.monitor.to_json(),
        files=tuple(describe_file(file, data) for file, data in sorted(files.items())),
        latency_budget_ms=profile.budgets.latency_ms,
        created=created,
        lineage=dict(lineage) | {"precision": candidate.precision},
        memory_budget_bytes=profile.budgets.ram_bytes,
    )
    return files | {MANIFEST_FILE: codec.encode(manifest)}


def report_tree(report: GateReport, recipes: Mapping[str, Mapping[str, str]]) -> dict[str, object]:
    """Return the gate's report as JSON, with the recipe beside each candidate: every knob to make it again."""
    tree = report.to_json()
    for candidate in tree["candidates"]:
        candidate["recipe"] = dict(recipes.get(candidate["name"], {}))
    return tree


def golden_rows(rows: int) -> Array:
    """Return the indices of the golden vectors among held-out rows: evenly spread, so that most labels occur."""
    return np.unique(np.linspace(0, rows - 1, num=min(GOLDEN_ROWS, rows)).round().astype(np.int64))


def golden_vectors(rows: Rows, outputs: Mapping[str, Array]) -> bytes:
    """Return the golden file for rows and the outputs that the candidate gave for them."""
    return pack({**rows.inputs, **outputs})
