"""The pivot of the compiler: a checked and normalised model with its inputs, outputs and what they mean.

    source = from_network(network)                                 # what Skerry trained
    source = import_model(path.read_bytes(), labels=("a", "b"))    # ONNX or TFLite, told apart by content
    run_reference(source, {"window": rows})                        # {"probabilities": ..., ...}, from a child process

An ONNX source is opset 17, IR 8 (and ai.onnx.ml 3 when it holds trees), batch 1, without dynamic shapes. A TFLite
source stays as it was brought along: it is offered to TFLite profiles alone.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.checks import check_import
from converters.classifier import classified
from converters.import_child import normalise_in_child
from converters.network import Network, array_json, json_array
from converters.samples import Array
from converters.tflite_face import read_face
from skerry.errors import Rejected
from skerry.runtimes import Limits, Refused, run_in_child
from skerry.runtimes.arrays import pack, unpack
from skerry.wire.manifest import TensorSpec

ONNX = "onnx"
TFLITE = "tflite"
FORMAT = "skerry-source-1"
FIRST_RUN = Limits(address_space_bytes=2 << 30, cpu_s=30, wall_s=60.0)
RUNTIME_OF = {ONNX: "onnxruntime", TFLITE: "litert"}
"""The runtime that computes the reference outputs of each format."""


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A model before it is built for a profile; every shape has the leading 1 of its batch.

    `labels` is empty unless it is a classifier, whose label is the argmax of the output `probabilities`. `features`
    is the output that is monitored, if any. `boundary` is the ONNX tensor at which float preprocessing ends. A
    `stateful` model remembers rows: it gives the same outputs only for the same rows in the same order from the start.
    """

    format: str
    data: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...] = ()
    probabilities: str = ""
    features: str = ""
    feature_names: tuple[str, ...] = ()
    boundary: str = ""
    stateful: bool = False

    def __post_init__(self) -> None:
        if self.format not in RUNTIME_OF:
            raise Rejected(f"source: expected the format onnx or tflite, got {self.format!r}")
        for spec in (*self.inputs, *self.outputs):
            if spec.shape[:1] != (1,):
                raise Rejected(f"source: expected shapes with a leading 1, got {spec.shape} for {spec.name!r}")
        outputs = {spec.name: spec for spec in self.outputs}
        for role, name in (("probabilities", self.probabilities), ("features", self.features)):
            if name and name not in outputs:
                raise Rejected(f"{role}: expected one of the outputs {', '.join(outputs)}, got {name!r}")
        if bool(self.labels) != bool(self.probabilities):
            raise Rejected(f"source: expected labels and probabilities or neither, got {self.labels[:4]}")
        if self.labels and outputs[self.probabilities].shape != (1, len(self.labels)):
            got = outputs[self.probabilities].shape
            raise Rejected(f"labels: expected one for each probability {got}, got {len(self.labels)} labels")
        if len(set(self.labels)) != len(self.labels):
            raise Rejected(f"labels: expected distinct ones, got {list(self.labels)[:8]}")
        width = int(np.prod(outputs[self.features].shape)) if self.features else 0
        if len(self.feature_names) not in {0, width}:
            raise Rejected(f"feature names: expected {width}, one for each feature, got {len(self.feature_names)}")

    def to_bytes(self) -> bytes:
        """Write the source as a deterministic npz without pickle: the model's bytes and a JSON text of the rest."""
        text = {key: value for key, value in asdict(self).items() if key != "data"} | {"kind": FORMAT}
        return pack({"source": json_array(text), "model": np.frombuffer(self.data, dtype=np.uint8)})

    @staticmethod
    def from_bytes(data: bytes) -> "Source":
        """Read what `to_bytes` wrote; raises `Rejected` on anything else."""
        arrays = unpack(data, what="source")
        try:
            text = array_json(arrays["source"])
            if text.pop("kind") != FORMAT:
                raise Rejected(f"source: expected {FORMAT}, got another kind")
            return Source(
                format=str(text["format"]),
                data=arrays["model"].tobytes(),
                inputs=_specs(text["inputs"]),
                outputs=_specs(text["outputs"]),
                labels=tuple(map(str, text["labels"])),
                probabilities=str(text["probabilities"]),
                features=str(text["features"]),
                feature_names=tuple(map(str, text["feature_names"])),
                boundary=str(text["boundary"]),
                stateful=bool(text["stateful"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Rejected(f"source: expected {FORMAT}, got an npz with {sorted(arrays)[:6]}") from error


def from_network(network: Network) -> Source:
    """Return a network that Skerry trained as a source; its boundary is the scaled features."""
    from converters.normalise import normalise
    from converters.onnx_writer import SCALED, write_float

    return source_of(
        normalise(write_float(network)),
        labels=network.labels,
        probabilities="probabilities",
        features="features",
        feature_names=network.feature_names,
        boundary=SCALED,
    )


def source_of(
    data: bytes,
    *,
    labels: tuple[str, ...] = (),
    probabilities: str = "",
    features: str = "",
    feature_names: tuple[str, ...] = (),
    boundary: str = "",
) -> Source:
    """Return a normalised ONNX file, of our own making or from the child, as a source; raises `Rejected` when unfit."""
    import onnx

    graph = onnx.ModelProto.FromString(data).graph
    tensors = {name for node in graph.node for name in (*node.input, *node.output)}
    if boundary and boundary not in tensors:
        raise Rejected(f"boundary: expected a tensor of the model, got {boundary!r}")
    return Source(
        format=ONNX,
        data=data,
        inputs=tuple(_spec(info) for info in graph.input),
        outputs=tuple(_spec(info) for info in graph.output),
        labels=labels,
        probabilities=probabilities,
        features=features,
        feature_names=feature_names,
        boundary=boundary,
    )


def import_model(
    data: bytes,
    *,
    labels: tuple[str, ...] = (),
    probabilities: str = "",
    features: str = "",
    feature_names: tuple[str, ...] = (),
    boundary: str = "",
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Source:
    """Check, normalise, describe and once run a stranger's model: ONNX or TFLite, told apart by content.

    Args:
        data: the file.
        labels: the names of the classes, in the order of the probabilities; when empty and the model ends in a
            softmax or a tree classifier, its own labels or their numbers. Given for a model that ends in logits or in
            one sigmoid, the softmax or the second column is added.
        probabilities: the output whose argmax is the label; found when there is one of that width.
        features: the output to monitor.
        feature_names: a name for each element of `features`.
        boundary: the ONNX tensor at which float preprocessing ends.
        shapes: whole shapes of inputs, by name, where an ONNX file leaves more than the batch open.

    Raises:
        Rejected: it is not allowed, not valid, does not run, or is not what the arguments say; in one line.
    """
    if check_import(data) == TFLITE:
        source = _import_tflite(data, labels, probabilities, features=features, feature_names=feature_names)
    else:
        normalised = normalise_in_child(data, shapes=shapes or {})
        # the child may have been taken over: what it left is judged like any other input
        check_import(normalised)
        normalised, labels, probabilities = classified(normalised, labels=labels, probabilities=probabilities)
        source = source_of(
            normalised,
            labels=labels,
            probabilities=probabilities,
            features=features,
            feature_names=feature_names,
            boundary=boundary,
        )
    _first_run(source)
    return source


def run_reference(
    source: Source, rows: Mapping[str, Array], *, starts: Sequence[int] = (0,), limits: Limits | None = None
) -> dict[str, Array]:
    """Return every output by name for rows (by input name, rows first), computed by a child process.

    A stateful source begins anew with each row of `starts`; elsewhere they are of no concern.

    Raises:
        Rejected: the model cannot be loaded or run; says why.
    """
    with tempfile.TemporaryDirectory(prefix="skerry-reference-") as folder:
        file = Path(folder) / "model"
        file.write_bytes(source.data)
        begins = starts if source.stateful else (0,)
        ran = run_in_child(RUNTIME_OF[source.format], file, dict(rows), starts=begins, limits=limits)
    if isinstance(ran, Refused):
        raise Rejected(f"model file: {ran.reason}")
    return ran.outputs


def zeros_for(source: Source) -> dict[str, Array]:
    """Return one row of zeros for each input."""
    return {spec.name: np.zeros(spec.shape, dtype=spec.dtype) for spec in source.inputs}


def _first_run(source: Source) -> None:
    """Load and run a stranger's model for the first time, in a child; its outputs must be what it says."""
    outputs = run_reference(source, zeros_for(source), limits=FIRST_RUN)
    for spec in source.outputs:
        got = outputs.get(spec.name)
        if got is None or got.shape != spec.shape or got.dtype != np.dtype(spec.dtype):
            found = "none" if got is None else f"{got.dtype} {got.shape}"
            raise Rejected(f"output {spec.name!r}: expected {spec.dtype} {spec.shape}, got {found}")


def _import_tflite(
    data: bytes, labels: tuple[str, ...], probabilities: str, *, features: str, feature_names: tuple[str, ...]
) -> Source:
    face = read_face(data)
    width = len(labels)
    fitting = [spec.name for spec in face.outputs if len(spec.shape) == 2 and spec.shape[1] == (width or spec.shape[1])]
    if not probabilities and len(fitting) == 1 and (labels or face.softmax == fitting[0]):
        probabilities = fitting[0]
    if labels and not probabilities:
        got = ", ".join(f"{spec.name} {spec.shape}" for spec in face.outputs)
        raise Rejected(f"labels: expected one output of {width} probabilities, got {got}")
    if probabilities and not labels:
        width = next((spec.shape[-1] for spec in face.outputs if spec.name == probabilities), 0)
        labels = tuple(str(number) for number in range(width))
    return Source(
        format=TFLITE,
        data=data,
        inputs=face.inputs,
        outputs=face.outputs,
        labels=labels,
        probabilities=probabilities,
        features=features,
        feature_names=feature_names,
        stateful=face.stateful,
    )


def _specs(trees: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=str(tree["name"]), shape=tuple(map(int, tree["shape"])), dtype=str(np.dtype(tree["dtype"])))
        for tree in trees
    )


def _spec(info: Any) -> TensorSpec:
    from onnx import helper

    kind = info.type.tensor_type
    shape = tuple(dim.dim_value for dim in kind.shape.dim)
    return TensorSpec(info.name, shape, np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)).name)
