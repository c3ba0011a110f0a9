"""Finding out what an ONNX graph classifies: which output is the probabilities, and what its labels are called."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from converters.normalise import CLASSIFIERS, shape_of
from converters.onnx_graph import add_constant, canonical, fresh, makers
from skerry.errors import Rejected

SURE = frozenset({"Softmax", "Normalizer"}) | CLASSIFIERS
"""What gives probabilities; a lone Sigmoid does too, of the second of two labels."""
PASSED = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast", "Identity", "Clip"})


def classified(data: bytes, *, labels: tuple[str, ...], probabilities: str) -> tuple[bytes, tuple[str, ...], str]:
    """Return a normalised model with labels and the name of the output of probabilities, both empty for no classifier.

    With labels given, a softmax is added to an output of logits, and a second column to a lone sigmoid; the output
    that is changed is then called `probabilities`, or keeps its name when that is taken.

    Raises:
        Rejected: no output fits the labels, or more than one does.
    """
    model = onnx.ModelProto.FromString(data)
    graph = model.graph
    outputs = {output.name: output for output in graph.output}
    made = makers(graph)
    if probabilities and probabilities not in outputs:
        raise Rejected(f"probabilities: expected one of the outputs {', '.join(outputs)}, got {probabilities!r}")
    if not probabilities:
        probabilities = _find(graph, made, len(labels))
    if not probabilities:
        return data, (), ""
    width = _width(outputs[probabilities])
    maker = _maker(made, probabilities)
    own = _own_labels(maker)
    if not labels:
        labels = own if len(own) == width else tuple(str(number) for number in range(width))
    if width == 1 and len(labels) == 2:
        return _two_columns(model, outputs[probabilities], maker), labels, _renamed(outputs, probabilities)
    if width != len(labels):
        raise Rejected(f"labels: expected {width}, one for each column of {probabilities!r}, got {len(labels)}")
    if not _is_sure(made, maker):
        return _softmax(model, outputs[probabilities]), labels, _renamed(outputs, probabilities)
    return data, labels, probabilities


def _find(graph: Any, made: dict[str, Any], labels: int) -> str:
    """Return the output of probabilities: the one of the labels' width, or without labels the one that is sure."""
    rows = [output.name for output in graph.output if _is_row(output)]
    sure = [name for name in rows if _is_sure(made, _maker(made, name))]
    if not labels:
        return str(sure[0]) if len(sure) == 1 else ""
    outputs = {output.name: output for output in graph.output}
    fitting = [name for name in rows if _width(outputs[name]) == labels]
    if labels == 2 and not fitting:
        fitting = [name for name in rows if _width(outputs[name]) == 1 and made[name].op_type == "Sigmoid"]
    best = [name for name in fitting if name in sure] or fitting
    if len(best) == 1:
        return str(best[0])
    got = ", ".join(f"{output.name} {shape_of(output)}" for output in graph.output)
    advice = ": say which are the probabilities" if best else ""
    raise Rejected(f"labels: expected one output of {labels} probabilities, got {got}{advice}")


def _maker(made: dict[str, Any], name: str) -> Any:
    """Return the node that makes an output, seen through what only changes its form."""
    node = made.get(name)
    while node is not None and node.op_type in PASSED and node.input[0] in made:
        node = made[node.input[0]]
    return node


def _is_sure(made: dict[str, Any], maker: Any) -> bool:
    """Say whether a node gives probabilities: by its kind, or as a pair (1 - p, p) of a sigmoid."""
    if maker is None:
        return False
    if maker.op_type == "Concat" and len(maker.input) == 2:
        first, second = (_maker(made, name) for name in maker.input)
        return first is not None and second is not None and (first.op_type, second.op_type) == ("Sub", "Sigmoid")
    return maker.op_type in SURE


def _own_labels(maker: Any) -> tuple[str, ...]:
    for attribute in maker.attribute if maker is not None else ():
        if attribute.name == "classlabels_strings" and attribute.strings:
            return tuple(text.decode(errors="replace") for text in attribute.strings)
        if attribute.name in {"classlabels_int64s", "classlabels_ints"} and attribute.ints:
            return tuple(str(number) for number in attribute.ints)
    return ()


def _is_row(output: Any) -> bool:
    kind = output.type.tensor_type.elem_type
    return len(shape_of(output)) == 2 and kind in {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16}


def _width(output: Any) -> int:
    shape = shape_of(output)
    if len(shape) != 2:
        raise Rejected(f"probabilities: expected an output (1, labels), got {shape} for {output.name!r}")
    return shape[1]


def _renamed(outputs: dict[str, Any], name: str) -> str:
    return name if "probabilities" in outputs else "probabilities"


def _softmax(model: Any, output: Any) -> bytes:
    inside = _free(model.graph, output)
    model.graph.node.append(helper.make_node("Softmax", [inside], [output.name], axis=1))
    return canonical(model)


def _two_columns(model: Any, output: Any, maker: Any) -> bytes:
    if maker is None or maker.op_type != "Sigmoid":
        raise Rejected(f"labels: expected a sigmoid before the one column of {output.name!r}, got no such thing")
    graph = model.graph
    inside = _free(graph, output)
    kind = helper.tensor_dtype_to_np_dtype(output.type.tensor_type.elem_type)
    one = add_constant(graph, "one", np.ones((1, 1), dtype=kind))
    other = fresh(graph, "other_label")
    graph.node.append(helper.make_node("Sub", [one, inside], [other]))
    graph.node.append(helper.make_node("Concat", [other, inside], [output.name], axis=1))
    output.type.tensor_type.shape.dim[1].dim_value = 2
    info = helper.make_tensor_value_info(other, output.type.tensor_type.elem_type, (1, 1))
    graph.value_info.append(info)
    return canonical(model)


def _free(graph: Any, output: Any) -> str:
    """Let what made an output make a tensor inside; the output is called `probabilities` unless that is taken."""
    inside = output.name
    name = "probabilities" if "probabilities" not in {each.name for each in graph.output} else inside
    if name == inside:
        inside = fresh(graph, f"{name}_before")
        for node in graph.node:
            for position, each in enumerate(node.output):
                if each == name:
                    node.output[position] = inside
            for position, each in enumerate(node.input):
                if each == name:
                    node.input[position] = inside
    graph.value_info.append(helper.make_tensor_value_info(inside, output.type.tensor_type.elem_type, shape_of(output)))
    output.name = name
    return str(inside)
