"""The artifact's folder as bytes: model, golden vectors, gate report, and the manifest that binds them by digest.

    manifest.json            skerry.wire.manifest.Manifest
    model.onnx|model.tflite  the candidate that won
    golden.npz               each input and output of the model by name, rows first: what the candidate gave when gated
    gate.json                the gate's report

Equal arguments give equal bytes. No clock is read here.
"""

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from converters.candidates import Candidate
from converters.gate import GateReport
from converters.network import Network, Outputs
from converters.samples import Array, Samples
from skerry.drift.monitor import CONFIDENCE, PREDICTION, Monitor
from skerry.drift.reference import build_monitor
from skerry.runtimes.arrays import pack
from skerry.wire import codec
from skerry.wire.manifest import Manifest, TensorSpec, describe_file
from skerry.wire.profile import Profile

GOLDEN_ROWS = 16
GOLDEN_FILE = "golden.npz"
GATE_FILE = "gate.json"
MANIFEST_FILE = "manifest.json"


def assemble(
    network: Network,
    profile: Profile,
    candidate: Candidate,
    *,
    name: str,
    version: int,
    created: str,
    report: GateReport,
    golden: bytes,
    monitor: Monitor,
    lineage: Mapping[str, str],
) -> dict[str, bytes]:
    """Return the files of the artifact by name, the manifest among them."""
    gate = json.dumps(report.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    files = {candidate.file: candidate.data, GOLDEN_FILE: golden, GATE_FILE: gate}
    manifest = Manifest(
        model=name,
        version=version,
        profile=profile.name,
        runtime=profile.runtime,
        model_file=candidate.file,
        golden_file=GOLDEN_FILE,
        gate_file=GATE_FILE,
        inputs=(TensorSpec("window", (1, network.steps, len(network.channels)), "float32"),),
        outputs=(
            TensorSpec("probabilities", (1, len(network.labels)), "float32"),
            TensorSpec("features", (1, network.width), "float32"),
        ),
        labels=network.labels,
        tolerances=dict(candidate.tolerances),
        observe={"features": "features", "probabilities": "probabilities"},
        monitor=monitor.to_json(),
        files=tuple(describe_file(file, data) for file, data in sorted(files.items())),
        latency_budget_ms=profile.budgets.latency_ms,
        created=created,
        lineage=dict(lineage) | {"precision": candidate.precision},
    )
    return files | {MANIFEST_FILE: codec.encode(manifest)}


def golden_rows(rows: int) -> Array:
    """Return the indices of the golden vectors among held-out rows: evenly spread, so that most labels occur."""
    return np.unique(np.linspace(0, rows - 1, num=min(GOLDEN_ROWS, rows)).round().astype(np.int64))


def golden_vectors(windows: Array, outputs: Outputs) -> bytes:
    """Return the golden file for windows and the outputs that the candidate gave for them."""
    return pack({"window": windows, "probabilities": outputs.probabilities, "features": outputs.features})


def watch(network: Network, *, learnt: Outputs, held_out: Outputs, holdout: Samples, window_n: int) -> Monitor:
    """Return the monitor: bins and reference from the candidate's outputs on learnt and held-out rows.

    The calibration table (how often a confidence is right) is from held-out rows alone: on rows that it learnt from, a
    model is right more often than it will be.
    """
    features = np.concatenate([learnt.features, held_out.features])
    probabilities = np.concatenate([learnt.probabilities, held_out.probabilities])
    monitor = build_monitor(
        {name: features[:, index].tolist() for index, name in enumerate(network.feature_names)},
        categories={PREDICTION: [network.labels[index] for index in probabilities.argmax(axis=1)]},
        confidence=probabilities.max(axis=1).tolist(),
        window_n=window_n,
    )
    scalar = monitor.scalars[monitor.position(CONFIDENCE)]
    table = [[0, 0] for _ in range(scalar.bins - 3)]
    right = held_out.labels == holdout.truth
    for confidence, correct in zip(held_out.probabilities.max(axis=1).tolist(), right.tolist(), strict=True):
        index = scalar.bin_of(confidence) - 1
        if 0 <= index < len(table):
            table[index][0] += 1
            table[index][1] += int(correct)
    return replace(monitor, calibration=tuple((rows, correct) for rows, correct in table))
