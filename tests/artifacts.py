"""Artifacts of one network for every runtime, and a state folder where one is committed, without any network."""

import dataclasses
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from converters.network import Dense, Network
from converters.onnx_writer import write_float
from skerry.delivery.slots import Slots
from skerry.drift.reference import build_monitor
from skerry.runtimes import open_session
from skerry.runtimes.arrays import pack
from skerry.wire import codec
from skerry.wire.manifest import Manifest, TensorSpec, Tolerance, describe_file
from tests.tflite_files import float_file

MODEL = "watch"
LABELS = ("rest", "lift", "turn", "wave")
STEPS, CHANNELS = 50, 8
FEATURES = 16
_FILES = {"onnxruntime": "model.onnx", "litert": "model.tflite"}


def make_network(*, seed: int = 1, width: int = 16, layers: int = 1) -> Network:
    """Return a network of 16 features, means and deviations of 8 channels, with random weights."""
    rng = np.random.default_rng(seed)
    sizes = [FEATURES, *[width] * layers, len(LABELS)]
    dense = tuple(
        Dense(
            (rng.normal(size=shape) * np.sqrt(2 / shape[0])).astype(np.float32),
            np.zeros(shape[1], dtype=np.float32),
        )
        for shape in pairwise(sizes)
    )
    return Network(
        steps=STEPS,
        channels=tuple(f"c{number}" for number in range(CHANNELS)),
        features=("mean", "mad"),
        mean=np.zeros(FEATURES, dtype=np.float32),
        scale=np.ones(FEATURES, dtype=np.float32),
        layers=dense,
        labels=LABELS,
    )


def make_windows(rows: int, *, seed: int = 7) -> Any:
    """Return windows that the network takes."""
    return np.random.default_rng(seed).normal(size=(rows, STEPS, CHANNELS)).astype(np.float32)


def write_model(network: Network, runtime: str) -> bytes:
    """Return the network's float32 file for a runtime."""
    return write_float(network) if runtime == "onnxruntime" else float_file(network)


def make_artifact(
    runtime: str, *, version: int = 1, data: bytes = b"", window_n: int = 25, **size: int
) -> dict[str, bytes]:
    """Return the files of an artifact, of `data` or of a network; another version has other weights."""
    data = data or write_model(make_network(seed=version, **size), runtime)
    session = open_session(runtime, data)
    signature = session.signature()
    windows = make_windows(60)
    outputs = [session.run({"window": row[None]}) for row in windows]
    chances, features = (np.concatenate([each[name] for each in outputs]) for name in ("probabilities", "features"))
    monitor = build_monitor(
        {f"f{index}": features[:, index].tolist() for index in range(FEATURES)},
        categories={"prediction": [LABELS[index] for index in chances.argmax(axis=1)]},
        confidence=chances.max(axis=1).tolist(),
        window_n=window_n,
    )
    golden = pack({"window": windows[:4], "probabilities": chances[:4], "features": features[:4]})
    files = {_FILES[runtime]: data, "golden.npz": golden, "gate.json": b"{}"}
    manifest = Manifest(
        model=MODEL,
        version=version,
        profile="gateway",
        runtime=runtime,
        model_file=_FILES[runtime],
        golden_file="golden.npz",
        gate_file="gate.json",
        inputs=(TensorSpec("window", (1, STEPS, CHANNELS), "float32"),),
        outputs=tuple(
            TensorSpec(tensor.name, tuple(abs(size) for size in tensor.shape), tensor.dtype)
            for tensor in signature.outputs
        ),
        labels=LABELS,
        tolerances={name: Tolerance(1e-4, 1e-4) for name in ("probabilities", "features")},
        observe={"features": "features", "probabilities": "probabilities"},
        monitor=monitor.to_json(),
        files=tuple(describe_file(name, each) for name, each in files.items()),
        latency_budget_ms=100.0,
        created="2026-01-01T00:00:00Z",
    )
    return {**files, "manifest.json": codec.encode(manifest)}


def write_recurring_model(*, width: int, layers: int, seed: int = 1, batch: int | str = 1) -> bytes:
    """Return an ONNX model that computes much and weighs little: the same dense layer again and again, on each step.

    What such a call takes is its own, whatever its neighbours do to the caches. A `batch` that is a name is open.
    """
    rng = np.random.default_rng(seed)
    weights = {
        "enter": rng.normal(size=(CHANNELS, width)) / np.sqrt(CHANNELS),
        "again": rng.normal(size=(width, width)) * np.sqrt(2 / width),
        "leave": rng.normal(size=(width, len(LABELS))) / np.sqrt(width),
    }
    node = helper.make_node
    nodes = [
        node("ReduceMean", ["window"], ["means"], axes=[1], keepdims=0),
        node("ReduceMax", ["window"], ["peaks"], axes=[1], keepdims=0),
        node("Concat", ["means", "peaks"], ["features"], axis=1),
        node("MatMul", ["window", "enter"], ["hidden-0"]),
    ]
    for number in range(layers):
        nodes.append(node("MatMul", [f"hidden-{number}", "again"], [f"sum-{number}"]))
        nodes.append(node("Relu", [f"sum-{number}"], [f"hidden-{number + 1}"]))
    nodes += [
        node("ReduceMean", [f"hidden-{layers}"], ["pooled"], axes=[1], keepdims=0),
        node("MatMul", ["pooled", "leave"], ["scores"]),
        node("Softmax", ["scores"], ["probabilities"], axis=1),
    ]
    value = partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT)
    graph = helper.make_graph(
        nodes,
        MODEL,
        [value("window", shape=(batch, STEPS, CHANNELS))],
        [value("probabilities", shape=(batch, len(LABELS))), value("features", shape=(batch, FEATURES))],
        [
            helper.make_tensor(name, TensorProto.FLOAT, each.shape, each.astype(np.float32).tobytes(), raw=True)
            for name, each in weights.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def with_manifest(files: dict[str, bytes], **changes: Any) -> dict[str, bytes]:
    """Return an artifact whose manifest says something else."""
    manifest = dataclasses.replace(codec.decode(Manifest, files["manifest.json"]), **changes)
    return {**files, "manifest.json": codec.encode(manifest)}


def commit(state: Path, files: dict[str, bytes]) -> Slots:
    """Stage, activate and commit an artifact in a state folder, as an agent does."""
    slots = Slots(state / "slots")
    slots.stage(files, release="release", deployment="d")
    slots.activate()
    slots.commit()
    return slots
