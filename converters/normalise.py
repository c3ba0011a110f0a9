"""Any ONNX model in one form: opset 17, IR 8, batch 1, shapes known, constants folded, nothing unused.

    normalise(data, shapes={"input": (1, 16, 7)})       # bytes in, bytes out; runs where it is called
    normalise_in_child(data, shapes={})                 # the same for a stranger's file, in a process with limits

The batch is an input's open first dimension, and becomes 1. An input or output that has no leading 1 is given one, by a
reshape, so that a row of data always is one inference.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, shape_inference, version_converter

from converters.checks import IMPORTED_DOMAINS, MAX_ELEMENTS, MAX_OPSET, ML_OPSET, check_onnx
from converters.fold import fold, observe_shapes
from converters.lower import lower
from converters.onnx_graph import (
    IR_VERSION,
    OPSET,
    STANDARD,
    add_constant,
    canonical,
    constants_of,
    drop_unused,
    fresh,
    makers,
    rename_reads,
    replace_nodes,
)
from skerry.errors import Rejected

OLDEST_OPSET = 7
CLASSIFIERS = frozenset({"TreeEnsembleClassifier", "LinearClassifier", "SVMClassifier"})


def normalise(data: bytes, *, shapes: Mapping[str, tuple[int, ...]] | None = None) -> bytes:
    """Return the model in the one form; `shapes` gives whole shapes of inputs that leave more than the batch open.

    Raises:
        Rejected: the file is not allowed, cannot be converted, or leaves shapes open; says which, in one line.
    """
    check_onnx(data, opset=MAX_OPSET, domains=IMPORTED_DOMAINS, texts=True)
    model = onnx.ModelProto.FromString(data)
    _drop_constant_inputs(model.graph)
    _drop_label_outputs(model.graph)
    _fix_inputs(model.graph, shapes or {})
    model = _converted(model)
    model = _inferred(model)
    fold(model)
    _lead_with_one(model.graph)
    model = _inferred(model)
    out = canonical(model)
    check_onnx(out, opset=OPSET, domains=("", "ai.onnx.ml"))
    return out


def _drop_constant_inputs(graph: Any) -> None:
    """Up to IR 3 every constant was an input too, with the constant as its default."""
    constants = constants_of(graph)
    kept = [each for each in graph.input if each.name not in constants]
    del graph.input[:]
    graph.input.extend(kept)
    if not kept:
        raise Rejected("model file: expected an input, got constants alone")


def _drop_label_outputs(graph: Any) -> None:
    """Drop what a classifier says as a label or text: a label is the argmax of the probabilities here."""
    ports = {node.output[0] for node in graph.node if node.op_type in CLASSIFIERS}
    texts = {output.name for output in graph.output if output.type.tensor_type.elem_type == TensorProto.STRING}
    certain = _follow(graph, ports) | texts
    kept = [output for output in graph.output if output.name not in certain]
    if not kept:
        raise Rejected("model file: expected an output of numbers, got labels alone: export the probabilities too")
    # an argmax beside its own input is a label; an argmax alone is what the model is for
    arguments = _follow(graph, {node.output[0] for node in graph.node if node.op_type == "ArgMax"})
    kept = [output for output in kept if output.name not in arguments] or kept
    del graph.output[:]
    graph.output.extend(kept)
    drop_unused(graph)


def _follow(graph: Any, start: set[str]) -> set[str]:
    """Return the tensors that depend on those of `start` and on constants alone, these included."""
    found, constants = set(start), set(constants_of(graph)) | {""}
    for node in graph.node:
        if node.op_type == "Constant":
            constants |= set(node.output)
        elif found & set(node.input) and set(node.input) <= found | constants:
            found |= set(node.output)
    return found


def _fix_inputs(graph: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    unknown = sorted(set(shapes) - {each.name for each in graph.input})
    if unknown:
        names = ", ".join(each.name for each in graph.input)
        raise Rejected(f"shapes: expected inputs of the model ({names}), got {unknown[0]!r}")
    for each in graph.input:
        if each.type.WhichOneof("value") != "tensor_type" or each.type.tensor_type.elem_type == TensorProto.STRING:
            raise Rejected(f"input {each.name!r}: expected a tensor of numbers, got another type")
        if not each.type.tensor_type.HasField("shape") and each.name not in shapes:
            raise Rejected(f"input {each.name!r}: expected a shape, got none: give it as in {each.name}=1,16,7")
        dims = each.type.tensor_type.shape.dim
        said = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in dims]
        # 0 and -1 are how some exporters say that a dimension is open
        fixed = [size if isinstance(size, int) and size > 0 else None for size in said]
        if fixed and fixed[0] is None:
            fixed[0] = 1
        shape = shapes.get(each.name, tuple(fixed))
        _check_given(each.name, said, shape, fixed if dims or each.name not in shapes else list(shape))
        del dims[:]
        for size in shape:
            dims.add().dim_value = size


def _check_given(name: str, said: list[Any], shape: tuple[int | None, ...], fixed: list[int | None]) -> None:
    if None in shape:
        example = ",".join(str(size or 16) for size in shape)
        text = f"({', '.join(map(str, said))})"
        got = f"{text}: give its shape, such as {name}={example}"
        raise Rejected(f"input {name!r}: expected no open dimension but the batch, got {got}")
    sizes = [size for size in shape if size is not None]
    fits = len(sizes) == len(fixed) and all(want in {None, size} for size, want in zip(sizes, fixed, strict=False))
    if not fits or min(sizes, default=1) < 1 or int(np.prod(sizes, dtype=object)) > MAX_ELEMENTS:
        raise Rejected(f"input {name!r}: expected a shape that fits ({', '.join(map(str, said))}), got {sizes}")


def _converted(model: Any) -> Any:
    """Return the model in our opsets."""
    version = next((entry.version for entry in model.opset_import if entry.domain in STANDARD), OPSET)
    _forget_shapes(model.graph)
    if version < OLDEST_OPSET:
        raise Rejected(f"model file: expected opset {OLDEST_OPSET} or newer, got {version}: export it again")
    if version > OPSET:
        fold(model)
        lower(model, version)
    elif version < OPSET:
        model.ir_version = max(model.ir_version, 4)  # the converter wants constants that are no inputs
        try:
            model = version_converter.convert_version(model, OPSET)
        # the converter's exceptions share no root but RuntimeError, and its adapters raise IndexError through pybind
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            line = " ".join(str(error).split())[:160]
            raise Rejected(f"model file: expected opset {OPSET}, got {version}, not convertible: {line}") from error
    model.ir_version = IR_VERSION
    domains = {node.domain for node in model.graph.node}
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", OPSET))
    if "ai.onnx.ml" in domains:
        model.opset_import.append(helper.make_opsetid("ai.onnx.ml", ML_OPSET))
    for node in model.graph.node:
        node.domain = "" if node.domain in STANDARD else node.domain
    return model


def _forget_shapes(graph: Any) -> None:
    """What the file says of shapes inside may be open or wrong; only its inputs' shapes count."""
    del graph.value_info[:]
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")


def _inferred(model: Any) -> Any:
    """Return the model with the shape of every tensor; raises `Rejected` where one stays open."""
    _forget_shapes(model.graph)
    try:
        model = shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (shape_inference.InferenceError, RuntimeError, ValueError) as error:
        line = " ".join(str(error).split())[:200]
        raise Rejected(f"model file: expected shapes that fit each other, got: {line}") from error
    observe_shapes(model)
    return model


def _lead_with_one(graph: Any) -> None:
    """Give every input and output a leading 1 that has none."""
    made = makers(graph)
    before, after = [], []
    for each in graph.input:
        shape = shape_of(each)
        if shape[:1] == (1,):
            continue
        inside = fresh(graph, f"{each.name}_row")
        rename_reads(graph, {each.name: inside})
        wanted = add_constant(graph, f"{inside}_shape", np.asarray(shape, dtype=np.int64))
        before.append(helper.make_node("Reshape", [each.name, wanted], [inside], name=f"Reshape_{inside}"))
        each.type.tensor_type.shape.CopyFrom(helper.make_tensor_value_info("", 1, (1, *shape)).type.tensor_type.shape)
    for each in graph.output:
        shape = shape_of(each)
        if shape[:1] == (1,) or each.name not in made:
            continue
        inside = fresh(graph, f"{each.name}_row")
        maker = made[each.name]
        maker.output[list(maker.output).index(each.name)] = inside
        rename_reads(graph, {each.name: inside})
        wanted = add_constant(graph, f"{inside}_shape", np.asarray((1, *shape), dtype=np.int64))
        after.append(helper.make_node("Reshape", [inside, wanted], [each.name], name=f"Reshape_{inside}"))
    replace_nodes(graph, [*before, *graph.node, *after])


def shape_of(info: Any) -> tuple[int, ...]:
    """Return the shape of a ValueInfoProto whose dimensions are all known."""
    return tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)
