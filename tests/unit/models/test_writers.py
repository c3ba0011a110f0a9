"""The writers' small parts: quantisation, reproducible bytes, alignment, names."""

import io
import pickle
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from control_plane.training import Trained
from converters.artifact import golden_rows
from converters.candidates import precisions_of, write_candidate
from converters.samples import Samples
from converters.source import from_network, import_model
from converters.tflite import PRECISIONS, write_tflite
from converters.tflite_face import precision_of
from firmware_profiles import load_profile
from skerry.errors import Rejected
from skerry.runtimes.arrays import pack, unpack


def test_writing_twice_gives_the_same_bytes(tiny: Samples, trained: Trained) -> None:
    for name in ("x86-64-gateway", "arm64-board"):
        source, profile = from_network(trained.network), load_profile(name)
        for precision in precisions_of(source, profile):
            rows = {"window": tiny.windows}
            first = write_candidate(source, profile, precision, calibration=rows, spans={})
            again = write_candidate(source, profile, precision, calibration=rows, spans={})
            assert (first.data, first.recipe) == (again.data, again.recipe)
            assert first.recipe


def test_a_precision_without_a_writer_is_rejected(tiny: Samples, trained: Trained) -> None:
    wrong = replace(load_profile("arm64-board"), precision=("int4",))
    source = from_network(trained.network)
    with pytest.raises(Rejected, match=r"expected .*float32.*int8.*, got 'int4'"):
        write_candidate(source, wrong, "int4", calibration={"window": tiny.windows}, spans={})


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_tflite_file_is_called_what_it_computes_in(precision: str, tiny: Samples, trained: Trained) -> None:
    data, _ = write_tflite(from_network(trained.network), precision, calibration={"window": tiny.windows})
    assert precision_of(data) == precision
    brought = import_model(data, labels=trained.network.labels)
    board = load_profile("arm64-board")
    assert precisions_of(brought, board) == (precision,)
    candidate = write_candidate(brought, board, precision, calibration={}, spans={})
    assert (candidate.precision, candidate.data) == (precision, data)


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
