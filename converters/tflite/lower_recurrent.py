"""Recurrent layers, unrolled: GRU and LSTM over a fixed number of steps, in dense layers and element-wise operators.

Every step reads the same weights. Streaming models, which take one step and hand their state on, come out smallest.
"""

from collections.abc import Callable

import numpy as np

from converters.samples import Array
from converters.tflite.layout import Value, plain
from converters.tflite.lowering import Lowering

MAX_STEPS = 64
_ACTIVATIONS = {"GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}


def gru(low: Lowering) -> tuple[Value, ...]:
    """GRU; ONNX orders its gates update, reset, hidden."""
    steps, hidden = _checked(low)
    weights, recurrent = low.known(1, "weights")[0], low.known(2, "recurrent weights")[0]
    bias = low.known(3, "biases")[0] if low.given(3) else np.zeros(6 * hidden, np.float32)
    reset_last = bool(low.node.attributes.get("linear_before_reset", 0))
    entering = _entering(low, weights, bias[: 3 * hidden], steps)
    # reset before the product: the hidden gate's share of the recurrent weights waits for the reset gate
    early = 3 * hidden if reset_last else 2 * hidden
    known = _Weights(low, recurrent[:early], bias[3 * hidden : 3 * hidden + early])
    late = None if reset_last else _Weights(low, recurrent[early:], bias[3 * hidden + early :])
    state, states = _state(low, 5, hidden), []
    for step in entering:
        update_x, reset_x, new_x = _parts(low, step, 3)
        update_h, reset_h, *new_h = _parts(low, known(state), early // hidden)
        update = low.apply("LOGISTIC", low.combine("ADD", update_x, update_h))
        reset = low.apply("LOGISTIC", low.combine("ADD", reset_x, reset_h))
        share = late(low.combine("MUL", reset, state)) if late else low.combine("MUL", reset, new_h[0])
        new = low.apply("TANH", low.combine("ADD", new_x, share))
        state = low.combine("ADD", new, low.combine("MUL", update, low.combine("SUB", state, new)))
        states.append(state)
    return _results(low, states, [state])


def lstm(low: Lowering) -> tuple[Value, ...]:
    """LSTM; ONNX orders its gates input, output, forget, cell."""
    steps, hidden = _checked(low)
    if low.given(7):
        raise low.node.refuse("no peephole weights", "some")
    weights, recurrent = low.known(1, "weights")[0], low.known(2, "recurrent weights")[0]
    bias = low.known(3, "biases")[0] if low.given(3) else np.zeros(8 * hidden, np.float32)
    entering = _entering(low, weights, bias[: 4 * hidden] + bias[4 * hidden :], steps)
    known = _Weights(low, recurrent, np.zeros(4 * hidden, np.float32))
    state, cell, states = _state(low, 5, hidden), _state(low, 6, hidden), []
    for step in entering:
        gates = _parts(low, low.combine("ADD", step, known(state)), 4)
        let_in, let_out, keep = (low.apply("LOGISTIC", gate) for gate in gates[:3])
        kept = low.combine("MUL", keep, cell)
        cell = low.combine("ADD", kept, low.combine("MUL", let_in, low.apply("TANH", gates[3])))
        state = low.combine("MUL", let_out, low.apply("TANH", cell))
        states.append(state)
    return _results(low, states, [state, cell])


class _Weights:
    """A dense layer that every step uses: (outputs, inputs) and a bias."""

    def __init__(self, low: Lowering, weights: Array, bias: Array) -> None:
        self._low, self._outputs = low, len(weights)
        self._constants = [low.floats(np.ascontiguousarray(weights), "weights"), low.floats(bias, "bias")]

    def __call__(self, value: Value) -> Value:
        shape = (value.shape[0], self._outputs)
        return self._low.emit("FULLY_CONNECTED", [value.index, *self._constants], plain(2), shape, keepNumDims=False)


def _checked(low: Lowering) -> tuple[int, int]:
    """Return the number of steps and of hidden units; refuse what is not the layer's usual form."""
    attributes, shape = low.node.attributes, low.operand(0).shape
    direction, layout = attributes.get("direction", "forward"), int(attributes.get("layout", 0))
    if direction != "forward" or layout or low.given(4) or "clip" in attributes:
        raise low.node.refuse("one direction, time first, whole sequences and no clip", f"{direction}, layout {layout}")
    usual = _ACTIVATIONS[low.node.kind]
    if [str(_text(each)) for each in attributes.get("activations", usual)] != usual:
        raise low.node.refuse(", ".join(usual), attributes["activations"])
    if len(shape) != 3 or shape[1] != 1 or shape[0] > MAX_STEPS:
        raise low.node.refuse(f"at most {MAX_STEPS} steps and a batch of 1", list(shape))
    return shape[0], int(attributes["hidden_size"])


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _entering(low: Lowering, weights: Array, bias: Array, steps: int) -> list[Value]:
    """Return what enters the gates at each step: one product for all of them."""
    value = low.value(0)
    index = low.arrange.reshape(low.plain(value), (steps, value.shape[2]), node=low.node.title)
    product = _Weights(low, weights, bias)(Value(index, plain(2), (steps, value.shape[2])))
    return [product] if steps == 1 else _split(low, product, 0, steps)


def _parts(low: Lowering, value: Value, count: int) -> list[Value]:
    return _split(low, value, 1, count)


def _split(low: Lowering, value: Value, axis: int, count: int) -> list[Value]:
    shape = tuple(size // count if place == axis else size for place, size in enumerate(value.shape))
    outs = [low.tensor(shape) for _ in range(count)]
    low.graph.add("SPLIT", [low.integers(axis), value.index], outs, node=low.node.title, numSplits=count)
    return [Value(out, plain(2), shape) for out in outs]


def _state(low: Lowering, number: int, hidden: int) -> Value:
    if not low.given(number):
        return low.constant(np.zeros((1, hidden), np.float32))
    index = low.arrange.reshape(low.plain(low.value(number)), (1, hidden), node=low.node.title)
    return Value(index, plain(2), (1, hidden))


def _results(low: Lowering, states: list[Value], last: list[Value]) -> tuple[Value, ...]:
    """Return every state (steps, 1, 1, hidden), then the last ones (1, 1, hidden), as many as the node names."""
    hidden = states[0].shape[1]
    joined = states[0]
    if len(states) > 1:
        joined = low.emit("CONCATENATION", [each.index for each in states], plain(2), (len(states), hidden), axis=0)
    shapes = [(len(states), 1, 1, hidden)] + [(1, 1, hidden)] * len(last)
    values = [
        Value(low.arrange.reshape(each.index, shape, node=low.node.title), plain(len(shape)), shape)
        for each, shape in zip([joined, *last], shapes, strict=True)
    ]
    return tuple(values[: len(low.node.outputs)])


OPERATORS: dict[str, Callable[[Lowering], tuple[Value, ...]]] = {"GRU": gru, "LSTM": lstm}
