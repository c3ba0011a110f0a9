"""Tree ensembles on microcontrollers: TFLite has no operator for them, so they are emitted as C.

    trees.c, trees.h        the ensemble and the softmax or sigmoid behind it: no interpreter, no allocation
    front.tflite, .c, .h    what is before the trees, such as features of windows: TFLite Micro runs it; left out where
                            the trees take the model's own input

What the C gives is computed here, operation by operation (`converters.c.evaluate`); the front is run by TFLite Micro.
Neither says how long a device takes, so the latency of such a build is "not run".
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.c.ensemble import OPERATORS, Ensemble, read_trees
from converters.c.evaluate import evaluate, hard_rows
from converters.c.trees import flash_bytes, ram_bytes
from converters.c_source import c_array, emit_trees
from converters.measure import Run, run_candidate
from converters.samples import Array
from converters.source import ONNX, Source
from converters.tflite import write_tflite
from skerry.errors import Rejected
from skerry.runtimes import Refused
from skerry.wire.profile import Profile

NAME = "trees"
C_FILE = f"{NAME}.c"
FRONT = "front"
FRONT_FILE = f"{FRONT}.tflite"
RUNTIME = "tflite-micro"


@dataclass(frozen=True, slots=True, eq=False)
class Emitted:
    """The files of an emitted ensemble, `trees.c` among them, and the recipe that makes them again."""

    files: Mapping[str, bytes]
    recipe: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Front:
    """What is before the trees: the graph of it as ONNX, or nothing, and then `copies` (output: input) are all."""

    data: bytes
    copies: Mapping[str, str]
    boundary: str = ""


def wants_c(source: Source, profile: Profile) -> bool:
    """Say whether a source takes the form of C on a profile: trees, on a microcontroller."""
    if source.format != ONNX or profile.runtime != RUNTIME:
        return False
    import onnx

    return any(node.op_type in OPERATORS for node in onnx.ModelProto.FromString(source.data).graph.node)


def emit(source: Source) -> Emitted:
    """Return a tree ensemble as C, with the flatbuffer of what is before it; equal sources give equal bytes.

    Raises:
        Rejected: the trees, or an operator before or behind them, have no such form; names it.
    """
    ensemble = read_trees(source.data)
    front = _front_of(source, ensemble)
    files = dict(emit_trees(source.data, NAME, labels=source.labels))
    recipe = {
        "writer": "skerry-c-trees-1",
        "form": "C99",
        "source": hashlib.sha256(source.data).hexdigest(),
        "trees": str(len(ensemble.roots)),
        "nodes": str(len(ensemble.feature)),
        "boundary": ensemble.boundary,
        "output": ensemble.output,
        "front": FRONT_FILE if front.data else "none",
    }
    if front.data:
        flatbuffer, made = write_tflite(front, "float32", calibration={})
        files |= {FRONT_FILE: flatbuffer, **c_array(flatbuffer, FRONT)}
        recipe["front_writer"] = made["writer"]
    return Emitted(files=files, recipe=recipe)


def run_emitted(source: Source, files: Mapping[str, bytes], inputs: Mapping[str, Array]) -> Run | Refused:
    """Return every output of the source for rows of its inputs, and what the form costs in flash and RAM."""
    ensemble = read_trees(source.data)
    before = _before(source, ensemble, files, inputs)
    if isinstance(before, Refused):
        return before
    scores = evaluate(ensemble, _rows(before.outputs, ensemble))
    if not np.isfinite(scores).all():
        return Refused(f"output {ensemble.output}: expected finite numbers, got NaN or infinity")
    found = {**before.outputs, ensemble.output: scores}
    return Run(
        outputs={spec.name: found[spec.name] for spec in source.outputs},
        ram_bytes=before.ram_bytes + ram_bytes(ensemble),
        latency_p50_us=None,
        latency_p99_us=None,
        size_bytes=flash_bytes(ensemble) + len(files.get(FRONT_FILE, b"")),
    )


def rows_for_c(
    source: Source, files: Mapping[str, bytes], inputs: Mapping[str, Array], *, hard: int
) -> tuple[Array, Array] | Refused:
    """Return rows for the C alone, `hard` ones on thresholds after those of the inputs, and the scores to come out."""
    ensemble = read_trees(source.data)
    before = _before(source, ensemble, files, inputs)
    if isinstance(before, Refused):
        return before
    rows = np.concatenate([_rows(before.outputs, ensemble), hard_rows(ensemble, hard)])
    return rows, evaluate(ensemble, rows)


def _before(
    source: Source, ensemble: Ensemble, files: Mapping[str, bytes], inputs: Mapping[str, Array]
) -> Run | Refused:
    """Run what is before the trees: its outputs, the boundary among them."""
    if FRONT_FILE in files:
        return run_candidate(RUNTIME, files[FRONT_FILE], inputs)
    copies = _front_of(source, ensemble).copies
    return Run({name: inputs[made] for name, made in copies.items()}, 0, None, None)


def _rows(outputs: Mapping[str, Array], ensemble: Ensemble) -> Array:
    boundary = outputs[ensemble.boundary]
    return np.ascontiguousarray(boundary.reshape(len(boundary), -1), dtype=np.float32)


def _front_of(source: Source, ensemble: Ensemble) -> _Front:
    """Return what computes the boundary and every output that is not the trees'."""
    import onnx

    model = onnx.ModelProto.FromString(source.data)
    wanted = list(dict.fromkeys((ensemble.boundary, *(spec.name for spec in source.outputs))))
    wanted.remove(ensemble.output)
    nodes = _leading_to(model.graph, wanted)
    if any(node.op_type in OPERATORS for node in nodes):
        got = ", ".join(spec.name for spec in source.outputs)
        raise Rejected(f"C emitter: expected one output behind the trees, {ensemble.output}, got {got}")
    named = {name: name for name in (spec.name for spec in source.inputs)}
    for node in nodes:
        if node.op_type == "Identity" and node.input[0] in named:
            named[node.output[0]] = named[node.input[0]]
    if all(name in named for name in wanted):
        return _Front(b"", {name: named[name] for name in wanted})
    return _Front(_cut(model, nodes, wanted), {})


def _leading_to(graph: Any, wanted: list[str]) -> list[Any]:
    needed = set(wanted)
    nodes: list[Any] = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            nodes.insert(0, node)
    return nodes


def _cut(model: Any, nodes: list[Any], outputs: list[str]) -> bytes:
    """Return the model with some of its nodes alone, and other outputs."""
    from onnx import shape_inference

    used = {name for node in nodes for name in node.input}
    known = {each.name: each for each in shape_inference.infer_shapes(model).graph.value_info}
    known |= {each.name: each for each in (*model.graph.input, *model.graph.output)}
    missing = [name for name in outputs if name not in known]
    if missing:
        raise Rejected(f"C emitter: expected a known shape of {missing[0]}, got none")
    cut = type(model)()
    cut.CopyFrom(model)
    for field, kept in (
        ("node", nodes),
        ("initializer", [each for each in model.graph.initializer if each.name in used]),
        ("output", [known[name] for name in outputs]),
        ("value_info", [each for each in model.graph.value_info if each.name in used - set(outputs)]),
    ):
        cut.graph.ClearField(field)
        getattr(cut.graph, field).extend(kept)
    data: bytes = cut.SerializeToString(deterministic=True)
    return data
