"""Int8 by ONNX Runtime's own quantiser: what to leave float, rows to calibrate on, quiet, and no file left behind."""

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from converters.onnx_graph import ancestors, canonical, constants_of, readers
from converters.samples import Array
from converters.tflite import sticky
from skerry.errors import Rejected

DENSE = ("Gemm", "MatMul")
HEAVY = ("Conv", "ConvTranspose", *DENSE)
QUANTISED = frozenset({"DequantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul", "ConvInteger"})
LAST = frozenset({"Softmax", "LogSoftmax", "Sigmoid", "Normalizer"})
MAX_ROWS = 512
"""The most calibration rows: the ranges hardly move after that, and the time grows with every row."""
QOPERATOR = (
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "AveragePool", "GlobalAveragePool", "MaxPool", "Concat", "LeakyRelu"),
    *("Sigmoid", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Relu", "Clip"),
)
"""What the QOperator form may quantise: operators whose integer form ONNX or ONNX Runtime itself defines."""


def static(
    data: bytes,
    *,
    form: str,
    calibration: Mapping[str, Array],
    boundary: str,
    vnni: bool,
    previous: bytes = b"",
) -> tuple[bytes, dict[str, str]]:
    """Return the model quantised by calibration rows: `form` is `int8-qdq` or `int8-qoperator`.

    `previous` is the file of the version before in the form `int8-qdq`, whose grids that form keeps where they fit.
    """
    rows = _rows(data, calibration)
    prepared, optimised = _prepared(data, boundary)
    model = onnx.ModelProto.FromString(prepared)
    left = _left_float(model.graph, boundary)
    _check_heavy(model.graph, HEAVY, left, what=form)
    qdq = form == "int8-qdq"
    recipe = {
        "quantiser": f"onnxruntime {_version()} quantize_static",
        "quant_format": "QDQ" if qdq else "QOperator",
        "per_channel": "true",
        "types": "activations int8, weights int8",
        "reduce_range": str(not vnni).lower(),
        "calibration": f"MinMax over {len(next(iter(rows.values())))} rows",
        "optimised": str(optimised).lower(),
        "float": ", ".join(left) or "nothing",
    }
    out = _quantised(model, rows, qdq=qdq, left=left, vnni=vnni, overrides={})
    if qdq and previous:
        overrides = _kept_grids(previous, out, model.graph)
        model = onnx.ModelProto.FromString(prepared)
        out = _quantised(model, rows, qdq=True, left=left, vnni=vnni, overrides=overrides)
        recipe |= sticky.recipe_of(previous, out)
    return _checked(out, what=form), recipe


def _quantised(
    model: Any, rows: Mapping[str, Array], *, qdq: bool, left: list[str], vnni: bool, overrides: dict[str, Any]
) -> bytes:
    from onnxruntime import quantization

    with _workspace() as folder:
        quantization.quantize_static(
            model,
            folder / "out",
            _reader(rows),
            quant_format=quantization.QuantFormat.QDQ if qdq else quantization.QuantFormat.QOperator,
            op_types_to_quantize=None if qdq else list(QOPERATOR),
            per_channel=True,
            reduce_range=not vnni,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=left,
            extra_options={"TensorQuantOverrides": overrides} if overrides else None,
        )
        return canonical(onnx.load(folder / "out"))


def _kept_grids(previous: bytes, made: bytes, graph: Any) -> dict[str, Any]:
    """Return what the quantiser shall take from the version before, in its own form: by tensor, by channel."""
    before = sticky.grids_of(previous)
    tensors = {name for node in graph.node for name in (*node.input, *node.output)}
    overrides = {}
    for name, grid in sticky.grids_of(made).items():
        kept = sticky.stick(before.get(name), grid)
        if name not in tensors or kept == grid:
            continue
        zero = np.array(kept.zero_point, dtype=np.int8)
        channels = [{"scale": np.array(scale, dtype=np.float32), "zero_point": zero} for scale in kept.scales]
        if len(channels) > 1:
            channels[0]["axis"] = kept.axis
        overrides[name] = channels
    return overrides


def dynamic(data: bytes, *, boundary: str, vnni: bool) -> tuple[bytes, dict[str, str]]:
    """Return the model with int8 weights of MatMul and Gemm, whose inputs are quantised by each row's own range."""
    from onnxruntime import quantization

    prepared, optimised = _prepared(data, boundary)
    model = onnx.ModelProto.FromString(prepared)
    left = _left_float(model.graph, boundary)
    _check_heavy(model.graph, DENSE, left, what="int8-dynamic")
    recipe = {
        "quantiser": f"onnxruntime {_version()} quantize_dynamic",
        "operators": ", ".join(DENSE),
        "per_channel": "true",
        "types": "weights int8",
        "reduce_range": str(not vnni).lower(),
        "optimised": str(optimised).lower(),
        "float": ", ".join(left) or "nothing",
    }
    with _workspace() as folder:
        quantization.quantize_dynamic(
            model,
            folder / "out",
            op_types_to_quantize=list(DENSE),
            per_channel=True,
            reduce_range=not vnni,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=left,
        )
        out = canonical(onnx.load(folder / "out"))
    return _checked(out, what="int8-dynamic"), recipe


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the quantiser's log lines and warnings to itself: what matters is in the recipe and in the gate."""
    root = logging.getLogger()
    before = root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _workspace() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="skerry-quantise-") as name, quiet():
        yield Path(name)


def _prepared(data: bytes, boundary: str) -> tuple[bytes, bool]:
    """Return the model after `quant_pre_process`, and whether it could be optimised without losing the boundary."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    for optimise in (True, False):
        with _workspace() as folder:
            (folder / "in").write_bytes(data)
            quant_pre_process(
                str(folder / "in"),
                str(folder / "out"),
                skip_optimization=not optimise,
                skip_symbolic_shape=True,
            )
            out = canonical(onnx.load(folder / "out"))
        graph = onnx.ModelProto.FromString(out).graph
        if not boundary or boundary in {name for node in graph.node for name in (*node.input, *node.output)}:
            return out, optimise
    raise Rejected(f"boundary: expected a tensor of the model, got {boundary!r}")


def _left_float(graph: Any, boundary: str) -> list[str]:
    """Return the nodes that stay float: those before the boundary, and the last softmax or sigmoid."""
    before = ancestors(graph, boundary) if boundary else set()
    outputs = {output.name for output in graph.output}
    # a second column or a reshape may follow the sigmoid
    end = {node.output[0] for node in graph.node if node.op_type in LAST and not _leads_to_heavy(graph, node)}
    behind = set(end)
    for node in graph.node:
        if behind & set(node.input):
            behind |= set(node.output)
    # an output that is only watched, such as the features, is on the way there too
    watched = set()
    if boundary:
        for name in outputs & before:
            watched |= ancestors(graph, name)
    return [node.name for node in graph.node if set(node.output) & (before | behind | watched)]


def _leads_to_heavy(graph: Any, start: Any) -> bool:
    reached = set(start.output)
    for node in graph.node:
        if reached & set(node.input):
            if node.op_type in HEAVY:
                return True
            reached |= set(node.output)
    return False


def _check_heavy(graph: Any, operators: tuple[str, ...], left: list[str], *, what: str) -> None:
    already = sorted({node.op_type for node in graph.node if node.op_type in QUANTISED})
    if already:
        raise Rejected(f"{what}: expected a float model, got one that is quantised already ({', '.join(already)})")
    constants = set(constants_of(graph))
    heavy = [
        node
        for node in graph.node
        if node.op_type in operators and node.name not in left and constants & set(node.input)
    ]
    if not heavy:
        raise Rejected(f"{what}: expected {', '.join(operators)} with constant weights, got none to quantise")


def _checked(data: bytes, *, what: str) -> bytes:
    """Refuse what only looks quantised: a quantiser that did nothing reports success."""
    graph = onnx.ModelProto.FromString(data).graph
    read = readers(graph)
    integers = [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8 and tensor.dims]
    if not any(read[tensor.name] for tensor in integers):
        raise Rejected(f"{what}: expected int8 weights, got none: the quantiser did nothing")
    return data


def _rows(data: bytes, calibration: Mapping[str, Array]) -> dict[str, Array]:
    graph = onnx.ModelProto.FromString(data).graph
    names = [each.name for each in graph.input]
    if sorted(calibration) != sorted(names):
        raise Rejected(f"calibration: expected rows for {', '.join(sorted(names))}, got {', '.join(calibration)}")
    counts = {len(rows) for rows in calibration.values()}
    if len(counts) != 1 or 0 in counts:
        raise Rejected(f"calibration: expected equally many rows of each, one or more, got {sorted(counts)}")
    count = counts.pop()
    chosen = np.unique(np.linspace(0, count - 1, num=min(count, MAX_ROWS)).round().astype(np.int64))
    return {name: calibration[name][chosen] for name in names}


def _reader(rows: Mapping[str, Array]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Rows(CalibrationDataReader):  # type: ignore[misc] # the quantiser asks for a subclass of an untyped class
        """The rows one by one, then None, as the quantiser wants them."""

        def __init__(self) -> None:
            count = len(next(iter(rows.values())))
            self._rows = iter({name: each[i : i + 1] for name, each in rows.items()} for i in range(count))

        def get_next(self) -> dict[str, Array] | None:
            return next(self._rows, None)

    return Rows()


def _version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)
