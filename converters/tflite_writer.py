"""A network as a TFLite model, in two forms: all float32, or float features with an int8 dense part.

    window -> float feature operators -> MUL, ADD -> [QUANTIZE ->] dense layers [-> DEQUANTIZE] -> SOFTMAX
           `-> features

Only operators that LiteRT and TFLite Micro both know are used. The softmax stays float in both forms, so that
confidences are not rounded to 1/256 and can be watched for drift.
"""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.flatbuffer import FlatGraph, Quantisation
from converters.network import Network
from converters.quantise import IntegerDense


def write_float(network: Network) -> bytes:
    """Return the float32 model."""
    graph, window, features, scaled = _front(network)
    value = scaled
    for number, layer in enumerate(network.layers):
        weights = graph.constant(f"weights_{number}", np.ascontiguousarray(layer.weights.T))
        bias = graph.constant(f"bias_{number}", layer.bias)
        last = number == len(network.layers) - 1
        out = graph.tensor("logits" if last else f"hidden_{number}", (1, len(layer.bias)))
        value = graph.operator("FULLY_CONNECTED", [value, weights, bias], out, options=_dense_options(last=last))
    return _finish(graph, window=window, features=features, logits=value, labels=len(network.labels))


def write_hybrid(network: Network, layers: tuple[IntegerDense, ...]) -> bytes:
    """Return the model with the dense part in integers, as `quantise` calibrated it."""
    graph, window, features, scaled = _front(network)
    entering = graph.tensor("scaled_int8", (1, network.width), "int8", quantisation=layers[0].entering)
    value = graph.operator("QUANTIZE", [scaled], entering, options=schema.QuantizeOptionsT())
    for number, layer in enumerate(layers):
        value = _integer_dense(graph, layer, value, number=number, last=number == len(layers) - 1)
    logits = graph.tensor("logits", (1, len(network.labels)))
    value = graph.operator("DEQUANTIZE", [value], logits, options=schema.DequantizeOptionsT())
    return _finish(graph, window=window, features=features, logits=value, labels=len(network.labels))


def _front(network: Network) -> tuple[FlatGraph, int, int, int]:
    """Return a graph from the raw window to raw and to scaled features: (graph, window, features, scaled)."""
    graph = FlatGraph()
    channels = len(network.channels)
    window = graph.tensor("window", (1, network.steps, channels))
    time_axis = graph.constant("time_axis", np.asarray([1], dtype=np.int32))

    def over_time(operator: str, value: int, name: str) -> int:
        options = schema.ReducerOptionsT()
        options.keepDims = True
        return graph.operator(operator, [value, time_axis], graph.tensor(name, (1, 1, channels)), options=options)

    def absolute(value: int, name: str) -> int:
        return graph.operator("ABS", [value], graph.tensor(name, graph.shape(value)), options=schema.AbsOptionsT())

    def feature(name: str) -> int:
        if name == "mad":
            centred = graph.tensor("centred", (1, network.steps, channels))
            mean = over_time("MEAN", window, "centre")
            graph.operator("SUB", [window, mean], centred, options=schema.SubOptionsT())
            return over_time("MEAN", absolute(centred, "deviation"), name)
        if name == "mean_abs_diff":
            step = graph.tensor("step", (1, network.steps - 1, channels))
            later = _slice(graph, window, "later", start=1)
            earlier = _slice(graph, window, "earlier", start=0)
            graph.operator("SUB", [later, earlier], step, options=schema.SubOptionsT())
            return over_time("MEAN", absolute(step, "step_size"), name)
        return over_time({"mean": "MEAN", "min": "REDUCE_MIN", "max": "REDUCE_MAX"}[name], window, name)

    joined = [feature(name) for name in network.features]
    row = joined[0]
    if len(joined) > 1:
        options = schema.ConcatenationOptionsT()
        options.axis = 2
        row = graph.operator("CONCATENATION", joined, graph.tensor("joined", (1, 1, network.width)), options=options)
    shape = np.asarray([1, network.width], dtype=np.int32)
    reshape = schema.ReshapeOptionsT()
    reshape.newShape = shape
    flat = graph.tensor("features", (1, network.width))
    features = graph.operator("RESHAPE", [row, graph.constant("row_shape", shape)], flat, options=reshape)

    # (x - mean) / scale as x * a + b: one pass less over the row on a microcontroller
    slope = (1 / network.scale.astype(np.float64)).astype(np.float32)
    shift = (-network.mean.astype(np.float64) / network.scale).astype(np.float32)
    sloped = graph.tensor("sloped", (1, network.width))
    graph.operator("MUL", [features, graph.constant("slope", slope[None])], sloped, options=schema.MulOptionsT())
    scaled = graph.tensor("scaled", (1, network.width))
    graph.operator("ADD", [sloped, graph.constant("shift", shift[None])], scaled, options=schema.AddOptionsT())
    return graph, window, features, scaled


def _slice(graph: FlatGraph, value: int, name: str, *, start: int) -> int:
    """Return the window without its last (`start` 0) or its first (`start` 1) step."""
    _, steps, channels = graph.shape(value)
    begin = graph.constant(f"{name}_begin", np.asarray([0, start, 0], dtype=np.int32))
    end = graph.constant(f"{name}_end", np.asarray([1, steps - 1 + start, channels], dtype=np.int32))
    stride = graph.constant(f"{name}_stride", np.asarray([1, 1, 1], dtype=np.int32))
    out = graph.tensor(name, (1, steps - 1, channels))
    return graph.operator("STRIDED_SLICE", [value, begin, end, stride], out, options=schema.StridedSliceOptionsT())


def _integer_dense(graph: FlatGraph, layer: IntegerDense, value: int, *, number: int, last: bool) -> int:
    weight_scale = Quantisation(scales=(layer.weight_scale,))
    weights = graph.constant(f"weights_{number}", layer.weights, quantisation=weight_scale)
    bias = graph.constant(f"bias_{number}", layer.bias, quantisation=Quantisation(scales=(layer.bias_scale,)))
    name = "logits_int8" if last else f"hidden_{number}"
    out = graph.tensor(name, (1, len(layer.bias)), "int8", quantisation=layer.leaving)
    return graph.operator("FULLY_CONNECTED", [value, weights, bias], out, options=_dense_options(last=last))


def _dense_options(*, last: bool) -> schema.FullyConnectedOptionsT:
    options = schema.FullyConnectedOptionsT()
    activation = schema.ActivationFunctionType
    options.fusedActivationFunction = activation.NONE if last else activation.RELU
    return options


def _finish(graph: FlatGraph, *, window: int, features: int, logits: int, labels: int) -> bytes:
    options = schema.SoftmaxOptionsT()
    options.beta = 1.0
    probabilities = graph.operator("SOFTMAX", [logits], graph.tensor("probabilities", (1, labels)), options=options)
    return graph.to_bytes(inputs={"window": window}, outputs={"probabilities": probabilities, "features": features})
