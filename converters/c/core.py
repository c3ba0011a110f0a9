"""The emitted part of a TFLite model, and what is before it, as models of their own for an interpreter to run."""

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np

from converters.c.net import load, read_net
from skerry.errors import Rejected


def cut_core(tflite: bytes) -> bytes:
    """Return the int8 chain of a model: `input` in integers, `logits` in integers, nothing else changed."""
    net = read_net(tflite)
    model = load(tflite)
    first, last = net.tensors
    graph = model.subgraphs[0]
    graph.tensors[first].name, graph.tensors[last].name = b"input", b"logits"
    return _cut(model, net.operators, inputs=[first], outputs=[last])


def cut_front(tflite: bytes) -> bytes:
    """Return what is before the chain: the model's inputs, and the integers that enter the chain as `input`."""
    net = read_net(tflite)
    model = load(tflite)
    if not net.ahead:
        raise Rejected("model: expected operators before its int8 layers, got an int8 input")
    graph = model.subgraphs[0]
    graph.tensors[net.tensors[0]].name = b"input"
    return _cut(model, net.ahead, inputs=[int(tensor) for tensor in graph.inputs], outputs=[net.tensors[0]])


def _cut(model: Any, operators: Sequence[int], *, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
    """Write a model with some of its operators alone; all buffers stay, referred to or not."""
    graph = model.subgraphs[0]
    graph.operators = [graph.operators[number] for number in operators]
    joined = (int(t) for operator in graph.operators for t in (*operator.inputs, *operator.outputs))
    kept = sorted({*inputs, *outputs, *joined} - {-1})
    place = {tensor: index for index, tensor in enumerate(kept)} | {-1: -1}
    for operator in graph.operators:
        operator.inputs = np.asarray([place[int(t)] for t in operator.inputs], dtype=np.int32)
        operator.outputs = np.asarray([place[int(t)] for t in operator.outputs], dtype=np.int32)
    graph.tensors = [graph.tensors[tensor] for tensor in kept]
    graph.inputs = np.asarray([place[tensor] for tensor in inputs], dtype=np.int32)
    graph.outputs = np.asarray([place[tensor] for tensor in outputs], dtype=np.int32)
    model.signatureDefs, model.metadata, model.metadataBuffer = [], [], None
    builder = _Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


class _Builder(flatbuffers.Builder):  # type: ignore[misc] # the library has no types
    """Aligns byte vectors, which hold the weights, to 16 as the schema's `force_align` asks; Python forgets."""

    def StartVector(self, elemSize: int, numElems: int, alignment: int) -> Any:  # noqa: N802, N803 -- the library's names
        return super().StartVector(elemSize, numElems, 16 if elemSize == 1 else alignment)
