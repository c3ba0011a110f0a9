"""Folding: whatever in an ONNX graph does not depend on its inputs is computed once, here.

Also gone afterwards: Identity and Dropout, and a BatchNormalization that follows a Conv. DequantizeLinear of a constant
stays, because an integer weight would come back as a float four times its size.
"""

import math
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, shape_inference

from converters.onnx_graph import (
    add_constant,
    constants_of,
    drop_unused,
    makers,
    readers,
    rename_reads,
    replace_nodes,
)
from converters.samples import Array
from skerry.errors import Rejected

MAX_FOLDED = 1 << 24
"""The most elements that one folded tensor may have: a kilobyte of file may ask for gigabytes."""
KEPT = frozenset({"DequantizeLinear"})
ROUNDS = 20


def fold(model: Any) -> None:
    """Fold a model in place; raises `Rejected` when ONNX Runtime cannot compute what is constant."""
    graph = model.graph
    _pass_through(graph)
    for _ in range(ROUNDS):
        if not _fold_once(model):
            break
    _fold_normalisation(graph)
    drop_unused(graph)


def observe_shapes(model: Any) -> None:
    """Fill in, by running the model on zeros, the shapes that inference leaves open: trees have no inference."""
    graph = model.graph
    known = {info.name for info in (*graph.value_info, *graph.output) if _shape(info) is not None}
    made = [name for node in graph.node for name in node.output if name]
    if set(made) <= known:
        return
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in made if name not in known)
    values = run(probe, zeros_of(graph))
    del graph.value_info[:]
    infos = {info.name: info for info in probe.graph.value_info}
    for name, value in values.items():
        kind = helper.np_dtype_to_tensor_dtype(value.dtype) if value.dtype != object else TensorProto.STRING
        infos[name] = helper.make_tensor_value_info(name, kind, value.shape)
    outputs = {output.name: output for output in graph.output}
    for name, info in infos.items():
        if name in outputs:
            outputs[name].type.CopyFrom(info.type)
        else:
            graph.value_info.append(info)


def zeros_of(graph: Any) -> dict[str, Array]:
    """Return a row of zeros for each input."""
    return {
        each.name: np.zeros(
            [dim.dim_value for dim in each.type.tensor_type.shape.dim],
            dtype=helper.tensor_dtype_to_np_dtype(each.type.tensor_type.elem_type),
        )
        for each in graph.input
    }


def run(model: Any, inputs: dict[str, Array]) -> dict[str, Array]:
    """Run a model in this process, as it stands: no optimisation, one thread."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    names = [output.name for output in model.graph.output]
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return dict(zip(names, session.run(names, inputs), strict=True))
    except Exception as error:  # the binding's exceptions share no other root
        line = " ".join(str(error).split())[:200]
        raise Rejected(f"model file: expected operators that ONNX Runtime runs, got: {line}") from error


def _pass_through(graph: Any) -> None:
    """Drop Identity and Dropout, which do nothing at inference."""
    outputs = {output.name for output in graph.output}
    read = readers(graph)
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.node:
        idle = node.op_type == "Identity" or (
            node.op_type == "Dropout" and not any(read[name] for name in node.output[1:])
        )
        if not idle or node.output[0] in outputs:
            kept.append(node)
            continue
        renamed[node.output[0]] = renamed.get(node.input[0], node.input[0])
    replace_nodes(graph, kept)
    rename_reads(graph, renamed)
    # one that makes an output goes when nothing else reads what it copies: its maker then writes the output itself
    made, read = makers(graph), readers(graph)
    for node in list(graph.node):
        source = node.input[0] if node.input else ""
        if node.op_type in {"Identity", "Dropout"} and source in made and read[source] == 1 and source not in outputs:
            maker = made[source]
            maker.output[list(maker.output).index(source)] = node.output[0]
            graph.node.remove(node)


def _fold_once(model: Any) -> bool:
    """Fold what is constant now; returns whether anything was."""
    graph = model.graph
    inferred = shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {info.name: _shape(info) for info in (*inferred.value_info, *inferred.input, *inferred.output)}
    outputs = {output.name for output in graph.output}
    constants = set(constants_of(graph))
    kept, folded, known = [], [], []
    for node in graph.node:
        shape = shapes.get(node.input[0]) if node.input else None
        if node.op_type in {"Shape", "Size"} and shape is not None and not outputs & set(node.output):
            known.append((node.output[0], _shape_value(node, shape)))
            continue
        sizes = [shapes.get(name) for name in node.output if name]
        small = all(size is not None and math.prod(size) <= MAX_FOLDED for size in sizes) or node.op_type == "Constant"
        constant = all(name in constants for name in node.input if name)
        if constant and small and node.op_type not in KEPT and not outputs & set(node.output):
            constants |= set(node.output)
            folded.append(node)
        else:
            kept.append(node)
    replace_nodes(graph, kept)
    for name, value in known:
        graph.initializer.append(numpy_helper.from_array(value, name))
    if folded:
        _compute(model, folded)
    return bool(folded or known)


def _shape_value(node: Any, shape: tuple[int, ...]) -> Array:
    if node.op_type == "Size":
        return np.asarray(math.prod(shape), dtype=np.int64)
    options = {attribute.name: attribute.i for attribute in node.attribute}
    return np.asarray(shape[options.get("start", 0) : options.get("end", len(shape))], dtype=np.int64)


def _compute(model: Any, nodes: list[Any]) -> None:
    graph = model.graph
    made = {name for node in nodes for name in node.output if name}
    needed = {name for node in graph.node for name in node.input} & made
    part = helper.make_graph(
        nodes,
        "constants",
        [],
        [helper.make_empty_tensor_value_info(name) for name in sorted(needed)],
        initializer=[tensor for tensor in graph.initializer if any(tensor.name in node.input for node in nodes)],
    )
    if needed:
        whole = helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)
        for name, value in run(whole, {}).items():
            graph.initializer.append(numpy_helper.from_array(value, name))


def _fold_normalisation(graph: Any) -> None:
    """Fold each BatchNormalization into the Conv whose result nothing else reads."""
    made, read, constants = makers(graph), readers(graph), constants_of(graph)
    outputs = {output.name for output in graph.output}
    for node in [each for each in graph.node if each.op_type == "BatchNormalization"]:
        conv = made.get(node.input[0])
        if conv is None or conv.op_type != "Conv" or read[node.input[0]] != 1 or node.input[0] in outputs:
            continue
        if not all(name in constants for name in (*conv.input[1:], *node.input[1:])):
            continue
        scale, shift, mean, variance = (numpy_helper.to_array(constants[name]) for name in node.input[1:5])
        epsilon = next((each.f for each in node.attribute if each.name == "epsilon"), 1e-5)
        slope = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
        weights = numpy_helper.to_array(constants[conv.input[1]])
        bias = numpy_helper.to_array(constants[conv.input[2]]) if len(conv.input) > 2 else np.zeros(len(mean))
        folded = (weights * slope.reshape(-1, *([1] * (weights.ndim - 1)))).astype(weights.dtype)
        moved = ((bias - mean) * slope + shift).astype(weights.dtype)
        new_weights = add_constant(graph, f"{conv.input[1]}_normalised", folded)
        new_bias = add_constant(graph, f"{new_weights}_bias", moved)
        del conv.input[1:]
        conv.input.extend([new_weights, new_bias])
        conv.output[0] = node.output[0]
        graph.node.remove(node)


def _shape(info: Any) -> tuple[int, ...] | None:
    """Return a shape that is known in full, or None."""
    kind = info.type.tensor_type
    if not kind.HasField("shape") or not all(dim.HasField("dim_value") for dim in kind.shape.dim):
        return None
    return tuple(dim.dim_value for dim in kind.shape.dim)
