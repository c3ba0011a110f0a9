"""Models that others made and ship: imported, normalised, run in a child, and written in other precisions.

- `riann` (MIT): an ONNX attitude estimator, two GRU layers whose state is an explicit input and output (`h0`, `hn`, led
  by the layer, not by a batch); its time axis is open, so a shape must be given.
- `pymicro-wakeword` (Apache-2.0): four int8 streaming TFLite wake-word models, with state in resource variables.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from converters.onnx_candidates import write_onnx
from converters.samples import Array
from converters.source import Source, import_model, run_reference
from skerry.errors import Rejected
from skerry.wire.manifest import TensorSpec


def _folder(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"expected the package {package}, got none: pip install 'skerry[test]'")
    return Path(found.origin).parent


def _rows(source: Source, count: int) -> dict[str, Array]:
    rng = np.random.default_rng(11)
    return {
        spec.name: (20 * rng.normal(size=(count, *spec.shape[1:]))).astype(spec.dtype)
        if spec.dtype == "int8"
        else rng.normal(size=(count, *spec.shape[1:])).astype(spec.dtype)
        for spec in source.inputs
    }


def _riann() -> bytes:
    return (_folder("riann") / "riann.onnx").read_bytes()


def test_riann_is_imported_at_a_given_length_and_agrees_with_its_own_runtime() -> None:
    import onnxruntime

    data = _riann()
    source = import_model(data, shapes={"input": (1, 4, 7)})
    assert source.inputs == (
        TensorSpec("input", (1, 4, 7), "float32"),
        TensorSpec("h0", (1, 2, 1, 1, 200), "float32"),
    )
    assert source.outputs == (
        TensorSpec("output", (1, 4, 4), "float32"),
        TensorSpec("hn", (1, 2, 1, 1, 200), "float32"),
    )
    assert (source.labels, source.stateful) == ((), False)
    rows = _rows(source, 8)
    got = run_reference(source, rows)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    for index in range(8):
        output, state = session.run(None, {"input": rows["input"][index : index + 1], "h0": rows["h0"][index]})
        assert np.allclose(got["output"][index], output[0], atol=1e-6)
        assert np.allclose(got["hn"][index], state, atol=1e-6)


def test_riann_says_what_it_needs_when_its_time_axis_is_left_open() -> None:
    with pytest.raises(Rejected, match=r"input 'input': .* got \(1, sequence, 7\): give its shape"):
        import_model(_riann())


def test_riann_is_half_the_size_in_half_precision_and_has_nothing_dynamic() -> None:
    source = import_model(_riann(), shapes={"input": (1, 1, 7)})
    rows = _rows(source, 20)
    for precision in ("fp16", "fp16-weights"):
        data, _ = write_onnx(source, precision, calibration=rows, vnni=True)
        assert len(data) < 0.51 * len(source.data)
    # its weights are in the recurrent layers, where no integer form exists
    with pytest.raises(Rejected, match="expected Gemm, MatMul with constant weights"):
        write_onnx(source, "int8-dynamic", calibration=rows, vnni=True)


@pytest.mark.parametrize("name", ["alexa", "hey_jarvis", "hey_mycroft", "okay_nabu"])
def test_a_streaming_wake_word_is_imported_as_it_is_and_known_to_remember(name: str) -> None:
    data = (_folder("pymicro_wakeword") / "models" / f"{name}.tflite").read_bytes()
    source = import_model(data)
    assert (source.format, source.data, source.stateful, source.labels) == ("tflite", data, True, ())
    assert source.inputs == (TensorSpec("serving_default_input_audio:0", (1, 3, 40), "int8"),)
    assert source.outputs == (TensorSpec("StatefulPartitionedCall:0", (1, 1), "uint8"),)
    rows = _rows(source, 30)
    first, again = run_reference(source, rows), run_reference(source, rows)
    # the same rows in the same order from a fresh start: that is what golden vectors of such a model are
    assert all(np.array_equal(first[key], again[key]) for key in first)
    with pytest.raises(Rejected, match="TFLite profiles only"):
        write_onnx(source, "float32", calibration=rows, vnni=True)
