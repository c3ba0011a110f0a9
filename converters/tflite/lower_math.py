"""Operators that work element by element or along an axis: arithmetic, activations, reductions, normalisations."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from converters.tflite.layout import Value, plain
from converters.tflite.lowering import Lowering, Operand

UNARY = {
    "Abs": "ABS",
    "Neg": "NEG",
    "Sqrt": "SQRT",
    "Exp": "EXP",
    "Log": "LOG",
    "Sin": "SIN",
    "Cos": "COS",
    "Floor": "FLOOR",
    "Ceil": "CEIL",
    "Round": "ROUND",
    "Sign": "SIGN",
    "Tanh": "TANH",
    "Sigmoid": "LOGISTIC",
    "Relu": "RELU",
    "HardSwish": "HARD_SWISH",
    "Not": "LOGICAL_NOT",
}
ARITHMETIC = {"Add": "ADD", "Sub": "SUB", "Mul": "MUL", "Sum": "ADD", "Min": "MINIMUM", "Max": "MAXIMUM"}
COMPARISONS = {
    "Equal": "EQUAL",
    "Greater": "GREATER",
    "GreaterOrEqual": "GREATER_EQUAL",
    "Less": "LESS",
    "LessOrEqual": "LESS_EQUAL",
    "And": "LOGICAL_AND",
    "Or": "LOGICAL_OR",
}
REDUCTIONS = {
    "ReduceMean": "MEAN",
    "ReduceSum": "SUM",
    "ReduceMax": "REDUCE_MAX",
    "ReduceMin": "REDUCE_MIN",
    "ReduceProd": "REDUCE_PROD",
}


def _unary(kind: str, low: Lowering) -> Value:
    return low.apply(kind, low.value(0))


def _variadic(kind: str, low: Lowering) -> Value:
    """Arithmetic of two operands, or of several one after the other."""
    operands = [low.operand(number) for number in range(len(low.node.inputs))]
    if len(operands) == 1:
        return low.value(0)
    result = low.combine(kind, operands[0], operands[1])
    for operand in operands[2:]:
        result = low.combine(kind, result, operand)
    return result


def _compare(kind: str, low: Lowering) -> Value:
    return low.combine(kind, low.operand(0), low.operand(1), dtype="bool")


def mean(low: Lowering) -> Value:
    """Mean of several operands."""
    return low.scale(_variadic("ADD", low), 1 / len(low.node.inputs))


def divide(low: Lowering) -> Value:
    """Div; by a constant it is a product, which has an integer form."""
    left, right = low.operand(0), low.operand(1)
    if isinstance(right, Value) or right.dtype != np.float32 or not np.all(right):
        return low.combine("DIV", left, right)
    inverse = 1 / right.astype(np.float64)
    if not np.all(np.isfinite(inverse.astype(np.float32))):
        return low.combine("DIV", left, right)
    return low.combine("MUL", left, inverse.astype(np.float32))


def power(low: Lowering) -> Value:
    """Pow; squares and roots have operators of their own."""
    base, exponent = low.operand(0), low.operand(1)
    if isinstance(base, Value) and not isinstance(exponent, Value) and exponent.size == 1:
        known = float(exponent.reshape(-1)[0])
        if len(exponent.shape) <= len(base.shape) and known in (0.5, 1.0, 2.0, 3.0):
            if known == 0.5:
                return low.apply("SQRT", base)
            square = low.combine("MUL", base, base) if known >= 2 else base
            return low.combine("MUL", square, base) if known == 3 else square
        exponent = exponent.astype(np.float32)
    return low.combine("POW", base, exponent)


def reciprocal(low: Lowering) -> Value:
    """1 / x."""
    return low.combine("DIV", low.number(1.0), low.value(0))


def where(low: Lowering) -> Value:
    """Where."""
    return low.combine("SELECT_V2", low.operand(0), low.operand(1), low.operand(2), dtype=_dtype_out(low))


def _dtype_out(low: Lowering) -> str:
    return low.model.dtypes.get(low.node.outputs[0], "float32")


def cast(low: Lowering) -> Value:
    """Cast between types that TFLite has."""
    value, target = low.value(0), _dtype_out(low)
    source = low.graph.tensors[value.index].dtype
    if source == target:
        return value
    # ONNX rounds a cast to bool away from zero: any number that is not 0
    types = {"inDataType": _type_name(source), "outDataType": _type_name(target)}
    return low.apply("CAST", value, dtype=target, **types)


def _type_name(dtype: str) -> str:
    return dtype.upper()


def clip(low: Lowering) -> Value:
    """Clip; the bounds of the rectifiers that TFLite fuses are told apart."""
    value = low.value(0)
    low_bound, high_bound = (_bound(low, number, name) for number, name in ((1, "min"), (2, "max")))
    if low_bound == 0.0 and high_bound in (None, 6.0):
        return low.apply("RELU" if high_bound is None else "RELU6", value)
    if low_bound is not None:
        value = low.combine("MAXIMUM", value, low.number(low_bound))
    if high_bound is not None:
        value = low.combine("MINIMUM", value, low.number(high_bound))
    return value


def _bound(low: Lowering, number: int, name: str) -> float | None:
    bound = float(low.known(number, name).reshape(-1)[0]) if low.given(number) else low.node.attributes.get(name)
    return None if bound is None or abs(bound) >= np.finfo(np.float32).max else float(bound)


def leaky_relu(low: Lowering) -> Value:
    """LeakyRelu."""
    return low.apply("LEAKY_RELU", low.value(0), alpha=float(low.node.attributes.get("alpha", 0.01)))


def prelu(low: Lowering) -> Value:
    """PRelu with constant slopes, which ONNX broadcasts to the input."""
    return low.combine("PRELU", low.value(0), low.known(1, "slopes"))


def elu(low: Lowering) -> Value:
    """Elu with an alpha of 1, the only one that TFLite has."""
    alpha = float(low.node.attributes.get("alpha", 1.0))
    if alpha != 1.0:
        raise low.node.refuse("alpha 1", alpha)
    return low.apply("ELU", low.value(0))


def hard_sigmoid(low: Lowering) -> Value:
    """HardSigmoid as a rectifier at 6, which TFLite fuses into the addition: relu6(6 (alpha x + beta)) / 6."""
    alpha, beta = (float(low.node.attributes.get(name, each)) for name, each in (("alpha", 0.2), ("beta", 0.5)))
    moved = low.combine("ADD", low.scale(low.value(0), 6 * alpha), low.number(6 * beta))
    return low.scale(low.apply("RELU6", moved), 1 / 6)


def softplus(low: Lowering) -> Value:
    """Softplus as max(x, 0) + log(1 + exp(-|x|)), which cannot overflow."""
    value = low.value(0)
    tail = low.apply("EXP", low.scale(low.apply("ABS", value), -1.0))
    return low.combine("ADD", low.apply("RELU", value), low.apply("LOG", low.combine("ADD", tail, low.number(1.0))))


def gelu(low: Lowering) -> Value:
    """The GELU that `tidy` found around an Erf."""
    return low.apply("GELU", low.value(0), approximate=False)


def softmax(kind: str, low: Lowering) -> Value:
    """Softmax along one axis, which is brought to the end."""
    value = low.value(0)
    rank = len(value.shape)
    axis = int(low.node.attributes.get("axis", -1)) % rank
    axes = value.axes
    if axes[-1] != axis:
        axes = (*(each for each in plain(rank) if each != axis), axis)
    index = low.place(value, axes)
    options: dict[str, Any] = {"beta": 1.0} if kind == "SOFTMAX" else {}
    return low.emit(kind, [index], axes, value.shape, **options)


def reduce(kind: str, low: Lowering) -> Value:
    """A reduction over some axes, wherever they are stored."""
    value = low.value(0)
    rank = len(value.shape)
    axes = low.whole(1, "axes")
    if not axes and low.node.attributes.get("noop_with_empty_axes", 0):
        return value
    over = sorted({axis % rank for axis in axes}) if axes else list(range(rank))
    return _reduced(low, kind, value, over, keep=bool(low.node.attributes.get("keepdims", 1)))


def _reduced(low: Lowering, kind: str, value: Value, over: list[int], *, keep: bool) -> Value:
    shape = tuple(1 if axis in over else size for axis, size in enumerate(value.shape))
    places = [place for place, axis in enumerate(value.axes) if axis in over]
    if not keep:
        # what ONNX has no axis for goes too; the others close ranks
        places = [place for place, axis in enumerate(value.axes) if axis in over or axis < 0]
        left = [axis for axis in range(len(shape)) if axis not in over]
        axes = tuple(left.index(axis) for place, axis in enumerate(value.axes) if place not in places)
        narrow = tuple(shape[axis] for axis in left)
        return low.emit(kind, [value.index, low.integers(places)], axes, narrow, keepDims=False)
    if not places:
        return Value(value.index, value.axes, shape)
    return low.emit(kind, [value.index, low.integers(places)], value.axes, shape, keepDims=True)


def global_pool(kind: str, low: Lowering) -> Value:
    """A pool over all that is not batch or channel."""
    value = low.value(0)
    return _reduced(low, kind, value, list(range(2, len(value.shape))), keep=True)


def reduce_squares(low: Lowering) -> Value:
    """ReduceSumSquare, and ReduceL2 as its root."""
    value = low.value(0)
    rank = len(value.shape)
    axes = low.whole(1, "axes")
    over = sorted({axis % rank for axis in axes}) if axes else list(range(rank))
    keep = bool(low.node.attributes.get("keepdims", 1))
    total = _reduced(low, "SUM", low.combine("MUL", value, value), over, keep=keep)
    return low.apply("SQRT", total) if low.node.kind == "ReduceL2" else total


def reduce_l1(low: Lowering) -> Value:
    """ReduceL1."""
    value = low.value(0)
    axes = low.whole(1, "axes")
    over = sorted({axis % len(value.shape) for axis in axes}) if axes else list(range(len(value.shape)))
    return _reduced(low, "SUM", low.apply("ABS", value), over, keep=bool(low.node.attributes.get("keepdims", 1)))


def arg_max(low: Lowering) -> Value:
    """ArgMax; the first of equal maxima, as ONNX has it by default."""
    value, attributes = low.value(0), low.node.attributes
    axis = int(attributes.get("axis", 0)) % len(value.shape)
    if attributes.get("select_last_index", 0):
        raise low.node.refuse("the first of equal maxima", "the last")
    index = low.plain(value)
    shape = tuple(size for each, size in enumerate(value.shape) if each != axis)
    result = low.emit(
        "ARG_MAX", [index, low.integers(axis)], plain(len(shape)), shape, dtype="int64", outputType="INT64"
    )
    if not attributes.get("keepdims", 1):
        return result
    wide = low.shape_out()
    return Value(low.arrange.reshape(result.index, wide, node=low.node.title), plain(len(wide)), wide)


def scaler(low: Lowering) -> Value:
    """The Scaler of ai.onnx.ml: (x - offset) * scale, by column."""
    offset, factor = (np.asarray(low.node.attributes[name], dtype=np.float32) for name in ("offset", "scale"))
    return low.combine("MUL", low.combine("SUB", low.operand(0), offset), factor)


def batch_normalization(low: Lowering) -> Value:
    """BatchNormalization that no layer before it could take in: a product and a sum."""
    slope, shift = normalisation([low.known(number, "statistics") for number in range(1, 5)], low.node.attributes)
    value = low.value(0)
    spread = (-1,) + (1,) * (len(value.shape) - 2)
    moved = low.combine("MUL", value, slope.astype(np.float32).reshape(spread))
    return low.combine("ADD", moved, shift.astype(np.float32).reshape(spread))


def normalisation(statistics: list[np.ndarray], attributes: dict[str, object]) -> tuple[np.ndarray, np.ndarray]:
    """Return slope and shift of a BatchNormalization in float64."""
    gain, offset, centre, variance = (each.astype(np.float64) for each in statistics)
    slope = gain / np.sqrt(variance + float(attributes.get("epsilon", 1e-5)))  # type: ignore[arg-type] # a float
    return slope, offset - centre * slope


def layer_normalization(low: Lowering) -> Value:
    """LayerNormalization from its definition."""
    value = low.value(0)
    rank = len(value.shape)
    axis = int(low.node.attributes.get("axis", -1)) % rank
    over = list(range(axis, rank))
    centred = low.combine("SUB", value, _reduced(low, "MEAN", value, over, keep=True))
    variance = _reduced(low, "MEAN", low.combine("MUL", centred, centred), over, keep=True)
    spread = low.combine("ADD", variance, low.number(float(low.node.attributes.get("epsilon", 1e-5))))
    result = low.combine("MUL", centred, low.apply("RSQRT", spread))
    gained = low.combine("MUL", result, _operand(low, 1))
    return low.combine("ADD", gained, _operand(low, 2)) if low.given(2) else gained


def _operand(low: Lowering, number: int) -> Operand:
    return low.operand(number)


OPERATORS: dict[str, Callable[[Lowering], Value]] = (
    {name: partial(_unary, kind) for name, kind in UNARY.items()}
    | {name: partial(_variadic, kind) for name, kind in ARITHMETIC.items()}
    | {name: partial(_compare, kind) for name, kind in COMPARISONS.items()}
    | {name: partial(reduce, kind) for name, kind in REDUCTIONS.items()}
    | {
        "Mean": mean,
        "Div": divide,
        "Pow": power,
        "Reciprocal": reciprocal,
        "Where": where,
        "Cast": cast,
        "Clip": clip,
        "LeakyRelu": leaky_relu,
        "PRelu": prelu,
        "Elu": elu,
        "HardSigmoid": hard_sigmoid,
        "Softplus": softplus,
        "Gelu": gelu,
        "Softmax": partial(softmax, "SOFTMAX"),
        "LogSoftmax": partial(softmax, "LOG_SOFTMAX"),
        "GlobalAveragePool": partial(global_pool, "MEAN"),
        "GlobalMaxPool": partial(global_pool, "REDUCE_MAX"),
        "ReduceSumSquare": reduce_squares,
        "ReduceL2": reduce_squares,
        "ReduceL1": reduce_l1,
        "ArgMax": arg_max,
        "Scaler": scaler,
        "BatchNormalization": batch_normalization,
        "LayerNormalization": layer_normalization,
    }
)
