"""What every pass over an ONNX graph needs: who makes and who reads a tensor, constants, renaming, a canonical end.

A graph here is an `onnx.GraphProto` that is changed in place. `canonical` is the only way out: equal graphs give equal
bytes, whatever made them.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from converters.samples import Array
from skerry.errors import Rejected

OPSET = 17
ML_OPSET = 3
IR_VERSION = 8
PRODUCER = "skerry"
STANDARD = frozenset({"", "ai.onnx"})


def constants_of(graph: Any) -> dict[str, Any]:
    """Return the initialisers (TensorProto) by name."""
    return {tensor.name: tensor for tensor in graph.initializer}


def makers(graph: Any) -> dict[str, Any]:
    """Return the node that makes each tensor, by the tensor's name."""
    return {name: node for node in graph.node for name in node.output if name}


def readers(graph: Any) -> Counter[str]:
    """Return how often each tensor is read, by nodes and as an output of the graph."""
    read = Counter(name for node in graph.node for name in node.input if name)
    read.update(output.name for output in graph.output)
    return read


def add_constant(graph: Any, name: str, values: Array) -> str:
    """Add an initialiser under a name that is not taken yet, which is returned."""
    name = fresh(graph, name)
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
    return name


def fresh(graph: Any, wanted: str) -> str:
    """Return a tensor name that the graph does not use yet."""
    taken = {tensor.name for tensor in graph.initializer} | {end.name for end in (*graph.input, *graph.output)}
    taken |= {name for node in graph.node for name in (*node.input, *node.output)}
    number, name = 1, wanted
    while name in taken:
        number, name = number + 1, f"{wanted}_{number}"
    return name


def rename_reads(graph: Any, renamed: Mapping[str, str]) -> None:
    """Let every node that reads a tensor of `renamed` read the other one."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in renamed:
                node.input[index] = renamed[name]


def replace_nodes(graph: Any, nodes: Iterable[Any]) -> None:
    """Let the graph have these nodes."""
    kept = [_copy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def replace_constants(graph: Any, tensors: Iterable[Any]) -> None:
    """Let the graph have these initialisers."""
    kept = [_copy(tensor) for tensor in tensors]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _copy(part: Any) -> Any:
    """Return a copy: a part of a message is gone when the message drops it."""
    copied = type(part)()
    copied.CopyFrom(part)
    return copied


def ancestors(graph: Any, tensor: str) -> set[str]:
    """Return every tensor that a tensor depends on, itself included."""
    made = makers(graph)
    found: set[str] = set()
    waiting = [tensor]
    while waiting:
        name = waiting.pop()
        if name and name not in found:
            found.add(name)
            waiting.extend(made[name].input if name in made else ())
    return found


def sort_nodes(graph: Any) -> None:
    """Put every node behind those that it reads, and otherwise leave the order; tools append where they like."""
    made_by = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    waits = [{made_by[name] for name in node.input if name in made_by} for node in graph.node]
    follows: dict[int, list[int]] = {}
    for index, before in enumerate(waits):
        for each in before:
            follows.setdefault(each, []).append(index)
    ready = [index for index, before in enumerate(waits) if not before]
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for each in follows.get(index, ()):
            waits[each].discard(index)
            if not waits[each]:
                heapq.heappush(ready, each)
    if len(order) != len(graph.node):
        raise Rejected("model file: expected a graph without circles, got one")
    replace_nodes(graph, [graph.node[index] for index in order])


def drop_unused(graph: Any) -> None:
    """Drop the nodes and initialisers that no output depends on; inputs stay, for they are the model's face."""
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(node.input)
    replace_nodes(graph, reversed(kept))
    replace_constants(graph, [tensor for tensor in graph.initializer if tensor.name in needed])
    names = {name for node in graph.node for name in node.output}
    infos = [info for info in graph.value_info if info.name in names]
    del graph.value_info[:]
    graph.value_info.extend(infos)


def bare(data: bytes) -> bytes:
    """Return a model without the shapes of its inner tensors: a runtime infers them, and a device stores every byte."""
    model = onnx.ModelProto.FromString(data)
    del model.graph.value_info[:]
    return canonical(model)


def canonical(model: Any) -> bytes:
    """Return the bytes of a model: unused parts dropped, nodes named, constants in order, who and when forgotten."""
    graph = model.graph
    sort_nodes(graph)
    drop_unused(graph)
    outputs = {output.name for output in graph.output}
    named: Counter[str] = Counter()
    for node in graph.node:
        name = node.name or f"{node.op_type}_{next(filter(None, node.output), '')}"
        named[name] += 1
        node.name = name if named[name] == 1 else f"{name}_{named[name]}"
        node.doc_string = ""
        del node.metadata_props[:]
    for info in (*graph.input, *graph.output, *graph.value_info):
        info.doc_string = ""
    kept = sorted({info.name: info for info in graph.value_info if info.name not in outputs}.items())
    del graph.value_info[:]
    graph.value_info.extend(info for _, info in kept)
    # raw bytes only: two ways to hold the same numbers would be two digests
    tensors = sorted(graph.initializer, key=lambda tensor: str(tensor.name))
    replace_constants(graph, [numpy_helper.from_array(numpy_helper.to_array(each), each.name) for each in tensors])
    used = {"" if node.domain in STANDARD else node.domain for node in graph.node}
    versions = {("" if entry.domain in STANDARD else entry.domain): entry.version for entry in model.opset_import}
    clean = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid(domain, versions[domain]) for domain in sorted(used | {""})],
        ir_version=IR_VERSION,
        producer_name=PRODUCER,
    )
    clean.graph.name, clean.graph.doc_string = PRODUCER, ""
    return bytes(clean.SerializeToString(deterministic=True))
