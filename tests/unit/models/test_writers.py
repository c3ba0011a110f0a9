"""The writers' small parts: quantisation, reproducible bytes, alignment, names."""

import io
import pickle
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from control_plane.training import Trained, split
from converters import onnx_writer, tflite_writer
from converters.artifact import golden_rows
from converters.candidates import write_candidates
from converters.quantise import quantise, range_of
from converters.samples import Samples
from firmware_profiles import load_profile
from skerry.errors import Rejected
from skerry.runtimes.arrays import pack, unpack


def test_a_range_holds_zero_exactly_and_its_ends_within_half_a_step() -> None:
    found = range_of(np.linspace(-1.0, 3.0, 1001), covered=1.0)
    scale, zero = found.scales[0], found.zero_point
    assert -128 <= zero <= 127
    assert abs(scale * (127 - zero) - 3.0) <= scale
    assert abs(scale * (-128 - zero) + 1.0) <= scale


def test_values_of_one_sign_still_have_a_range_with_zero() -> None:
    assert range_of(np.array([2.0, 4.0]), covered=1.0).zero_point == -128
    assert range_of(np.zeros(5)).scales[0] > 0


def test_the_integer_layers_compute_what_the_float_layers_do(tiny: Samples, trained: Trained) -> None:
    learnt, held_out = split(trained.recipe, tiny)
    layers = quantise(trained.network, learnt.windows)
    first = layers[0]
    scale, zero = first.entering.scales[0], first.entering.zero_point
    entering = np.clip(np.rint(trained.network.normalised(held_out.windows) / scale) + zero, -128, 127)
    for layer in layers:
        product = (entering - layer.entering.zero_point) @ layer.weights.T.astype(np.int64) + layer.bias
        entering = np.rint(product * layer.bias_scale / layer.leaving.scales[0]) + layer.leaving.zero_point
        least = -128 if layer is layers[-1] else layer.leaving.zero_point
        entering = np.clip(entering, least, 127)
    labels = entering.argmax(axis=1)
    assert np.mean(labels == trained.network.forward(held_out.windows).labels) >= 0.95


def test_writing_twice_gives_the_same_bytes(tiny: Samples, trained: Trained) -> None:
    for name in ("x86-64-gateway", "arm64-board"):
        first = write_candidates(trained.network, load_profile(name), calibration=tiny.windows)
        again = write_candidates(trained.network, load_profile(name), calibration=tiny.windows)
        assert [each.data for each in first] == [each.data for each in again]
        assert len(first) == 2


def test_weights_are_aligned_to_16_bytes(trained: Trained) -> None:
    data = tflite_writer.write_float(trained.network)
    model = schema.Model.GetRootAs(data, 0)
    starts = [data.find(model.Buffers(i).DataAsNumpy().tobytes()) for i in range(1, model.BuffersLength())]
    large = [start for i, start in enumerate(starts, start=1) if model.Buffers(i).DataLength() >= 64]
    assert large
    assert all(start % 16 == 0 for start in large)


def test_the_signature_names_input_and_outputs(trained: Trained) -> None:
    model = schema.Model.GetRootAs(tflite_writer.write_float(trained.network), 0)
    signature = model.SignatureDefs(0)
    assert signature.Inputs(0).Name() == b"window"
    assert [signature.Outputs(i).Name() for i in range(2)] == [b"probabilities", b"features"]


def test_a_precision_without_a_writer_is_rejected(tiny: Samples, trained: Trained) -> None:
    wrong = replace(load_profile("arm64-board"), precision=("int4",))
    with pytest.raises(Rejected, match="expected float32 or int8-hybrid for litert, got 'int4'"):
        write_candidates(trained.network, wrong, calibration=tiny.windows)


def test_onnx_dynamic_weights_are_int8(trained: Trained) -> None:
    import onnx

    model = onnx.ModelProto.FromString(onnx_writer.write_dynamic(trained.network))
    integers = [tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    assert integers == ["weights_0", "weights_1", "weights_2"]


def test_golden_rows_are_spread_over_all_rows() -> None:
    rows = golden_rows(100)
    assert (len(rows), rows[0], rows[-1]) == (16, 0, 99)
    assert golden_rows(3).tolist() == [0, 1, 2]


def test_arrays_survive_an_npz_and_give_equal_bytes() -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.asarray([1, 2])}
    data = pack(arrays)
    assert data == pack(arrays)
    assert np.array_equal(unpack(data, what="test")["a"], arrays["a"])


def test_an_npz_with_a_pickle_inside_is_rejected() -> None:
    out = io.BytesIO()
    np.savez(out, evil=np.array([{"a": pickle.dumps(1)}], dtype=object))
    with pytest.raises(Rejected, match="expected an npz of plain arrays"):
        unpack(out.getvalue(), what="test")


def test_an_npz_that_would_inflate_beyond_its_limit_is_rejected() -> None:
    out = io.BytesIO()
    np.savez_compressed(out, big=np.zeros(1_000_000))
    with pytest.raises(Rejected, match="at most 1000 bytes of arrays, got 8000"):
        unpack(out.getvalue(), what="test", limit=1000)


def test_an_npz_whose_header_claims_more_than_memory_holds_is_rejected() -> None:
    out = io.BytesIO()
    header = np.lib.format.magic(1, 0) + b"\x76\x00"
    text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (100000000000000,), }"
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("big.npy", header + text.ljust(117) + b"\n")
    with pytest.raises(Rejected, match="expected an npz of plain arrays"):
        unpack(out.getvalue(), what="test")
