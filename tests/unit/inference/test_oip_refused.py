"""What the Open Inference Protocol's codec refuses before a model sees it, whatever the bytes are."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.errors import Broken, Rejected
from skerry.inference.datatypes import datatype_of
from skerry.inference.oip import answer_request
from skerry.inference.reading import HEADER_LENGTH
from tests.unit.inference.oip_asking import NUMERIC, SIGNATURE, Arrays, ask, echo, error, good, never, read, twice

WRONG = [
    ("no JSON", b"{", "expected JSON"),
    ("no UTF-8", b"\xff\xfe{}", "expected JSON"),
    ("NaN", b'{"inputs": [NaN]}', "NaN is no number of JSON; send the tensor with binary_data_size"),
    ("half a JSON", b'{"inputs": [', "char 12"),
    ("deep", b'{"inputs": ' + b"[" * 100_000, "expected JSON"),
    ("huge number", b'{"inputs": ' + b"1" * 10_000 + b"}", "expected JSON"),
    ("no object", b"[]", "expected an object"),
    ("no inputs", {}, "got none named window, age"),
    ("inputs of another kind", {"inputs": {"name": "window"}}, "expected a list of objects"),
    ("inputs of many things", {"inputs": list(range(10_000))}, "expected a list of objects"),
    ("an id that is no text", good() | {"id": 5}, "id: expected a string"),
    ("nested parameters", good() | {"parameters": {"a": {}}}, "expected parameters that are"),
    ("infinite parameters", b'{"parameters": {"a": 1e999}}', "expected parameters that are"),
    ("a sequence", good() | {"parameters": {"sequence_id": 3}}, "expected none of sequences"),
    ("an output nobody has", good() | {"outputs": [{"name": "z"}]}, "expected names among twice, age"),
    ("an output twice", good() | {"outputs": [{"name": "age"}] * 2}, "got age twice"),
    ("a flag that is none", good() | {"parameters": {"binary_data_output": 1}}, "expected true or false"),
    (
        "classification",
        good() | {"outputs": [{"name": "age", "parameters": {"classification": 2}}]},
        "expected none of the classification extension",
    ),
]


@pytest.mark.parametrize(("body", "expected"), [each[1:] for each in WRONG], ids=[each[0] for each in WRONG])
def test_a_wrong_request_is_refused_before_the_model_runs(body: Any, expected: str) -> None:
    assert expected in error(ask(SIGNATURE, never, body))


WRONG_INPUTS: list[tuple[str, dict[str, Any], str]] = [
    ("datatype", {"datatype": "FP64"}, "expected the datatype FP32, got 'FP64'"),
    ("strings", {"datatype": "BYTES", "data": ["a", "b", "c"]}, "expected the datatype FP32, got 'BYTES'"),
    ("no shape", {"shape": None}, "expected the shape [-1, 3]"),
    ("rank", {"shape": [3]}, "expected the shape [-1, 3]"),
    ("held dimension", {"shape": [1, 4]}, "expected the shape [-1, 3]"),
    ("negative", {"shape": [-1, 3]}, "expected the shape [-1, 3]"),
    ("nothing", {"shape": [0, 3], "data": []}, "expected the shape [-1, 3]"),
    ("fraction", {"shape": [1.0, 3]}, "expected the shape [-1, 3]"),
    ("flag", {"shape": [True, 3]}, "expected the shape [-1, 3]"),
    ("huge claim", {"shape": [(1 << 31) - 1, 3]}, "expected 6442450941 elements"),
    ("beyond", {"shape": [1 << 31, 3]}, "expected the shape [-1, 3]"),
    ("no data", {"data": None}, "expected data as a list"),
    ("too few", {"data": [1, 2]}, "expected 3 elements"),
    ("too many", {"data": [1] * 1000}, "expected 3 elements"),
    ("ragged", {"data": [[1, 2], [3]]}, "got a ragged one"),
    ("other nesting", {"data": [[1], [2], [3]]}, "expected 3 elements"),
    ("numbers as text", {"data": ["1", "2", "3"]}, "expected numbers"),
    ("null", {"data": [1, None, 3]}, "expected numbers"),
    ("objects", {"data": [{}, {}, {}]}, "expected numbers"),
    ("too large", {"data": [1e39, 0, 0]}, "expected finite numbers that fit FP32"),
    ("far too large", {"data": [10**400, 0, 0]}, "expected"),
    ("both", {"parameters": {"binary_data_size": 0}}, "expected data or binary_data_size, got both"),
    ("negative size", {"parameters": {"binary_data_size": -1}}, "expected 0 to 0"),
    ("size beyond the body", {"parameters": {"binary_data_size": 12}}, "expected 0 to 0"),
    ("size of another kind", {"parameters": {"binary_data_size": "12"}}, "expected 0 to 0"),
    ("shared memory", {"parameters": {"shared_memory_region": "r"}}, "expected none of shared memory"),
    ("name", {"name": "other"}, "expected names among window, age"),
    ("name of another kind", {"name": ["window"]}, "expected names among window, age"),
    ("the other's name", {"name": "age"}, "expected the datatype INT8"),
]


@pytest.mark.parametrize(("change", "expected"), [each[1:] for each in WRONG_INPUTS], ids=[e[0] for e in WRONG_INPUTS])
def test_a_wrong_input_is_refused_with_its_name(change: dict[str, Any], expected: str) -> None:
    request = good()
    request["inputs"][0] |= change
    assert expected in error(ask(SIGNATURE, never, request))


WRONG_INTEGERS = [
    ("int8", [128]),
    ("uint8", [-1]),
    ("int8", [1.0]),
    ("int8", [True]),
    ("int8", ["1"]),
    ("uint64", [1 << 64]),
    ("int64", [1 << 63]),
    ("int64", [1e3]),
    ("bool", [1]),
    ("bool", ["true"]),
]


@pytest.mark.parametrize(("dtype", "data"), WRONG_INTEGERS)
def test_integers_are_neither_cut_nor_wrapped(dtype: str, data: list[Any]) -> None:
    request = {"inputs": [{"name": "x", "shape": [1], "datatype": datatype_of(dtype), "data": data}]}
    error(ask(echo((1,), dtype), never, request))


def test_large_integers_beside_small_ones_stay_exact() -> None:
    numbers = [(1 << 64) - 1, 0, (1 << 53) + 1]
    request = {"inputs": [{"name": "x", "shape": [3], "datatype": "UINT64", "data": numbers}]}
    tree, _ = read(ask(echo((3,), "uint64"), lambda inputs: inputs, request))
    assert tree["outputs"][0]["data"] == numbers


@pytest.mark.parametrize(
    "length", ["-1", "+5", " 5", "1_0", "0x5", "5.0", "", "99999999999999999999", "٣", "1000"], ids=repr
)
def test_a_hostile_header_length_is_refused(length: str) -> None:
    assert HEADER_LENGTH in error(ask(SIGNATURE, never, b"{}", length=length))


def test_bytes_after_the_json_have_to_be_somebodys() -> None:
    assert "expected 0 bytes after its JSON" in error(ask(SIGNATURE, never, good(), b"more"))


@pytest.mark.parametrize(
    "binary", [b"\x05\0\0\0abcd", b"\xff\xff\xff\xff", b"\x01\0", b"\x01\0\0\0\xff", b"\x01\0\0\0a" * 2]
)
def test_strings_in_binary_are_bounded_by_what_came(binary: bytes) -> None:
    tensor = {"name": "x", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(binary)}}
    error(ask(echo((1,), "object"), never, {"inputs": [tensor]}, binary))


@pytest.mark.parametrize("data", [["\ud800"], [1], [["a"], "b"], ["a", "b"]])
def test_strings_in_json_are_text(data: list[Any]) -> None:
    request = {"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": data}]}
    error(ask(echo((1,), "object"), never, request))


@pytest.mark.parametrize("data", [["a"], ["a", ["b"]], [["a"], ["b"]], [["a", "b", "c"]], [[["a"], ["b"]]]])
def test_strings_are_nested_as_their_shape(data: list[Any]) -> None:
    request = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "BYTES", "data": data}]}
    error(ask(echo((1, 2), "object"), never, request))


@pytest.mark.parametrize("dtype", NUMERIC)
@pytest.mark.parametrize("short", [-1, 1])
def test_binary_data_is_as_long_as_its_shape_says(dtype: str, short: int) -> None:
    data = bytes(4 * np.dtype(dtype).itemsize + short)
    tensor = {"name": "x", "shape": [4], "datatype": datatype_of(dtype), "parameters": {"binary_data_size": len(data)}}
    assert "bytes for the shape [4]" in error(ask(echo((4,), dtype), never, {"inputs": [tensor]}, data))


def test_a_dtype_that_the_protocol_does_not_have_is_named() -> None:
    request = {"inputs": [{"name": "x", "shape": [1], "datatype": "COMPLEX", "data": [1]}]}
    assert "got complex64" in error(ask(echo((1,), "complex64"), never, request))


def test_a_flag_in_binary_is_0_or_1() -> None:
    tensor = {"name": "x", "shape": [2], "datatype": "BOOL", "parameters": {"binary_data_size": 2}}
    error(ask(echo((2,), "bool"), never, {"inputs": [tensor]}, b"\x01\x02"))


def test_an_output_without_a_json_number_is_to_be_asked_for_in_binary() -> None:
    request = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [0]}]}
    signature = echo((1,), "float32")
    answer = ask(signature, lambda _inputs: {"x": np.array([np.nan], np.float32)}, request)
    assert "binary_data" in error(answer)
    answer = ask(
        signature,
        lambda _inputs: {"x": np.array([np.nan], np.float32)},
        request | {"parameters": {"binary_data_output": True}},
    )
    assert np.isnan(np.frombuffer(read(answer)[1], "<f4")[0])


def test_an_answer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skerry.inference.oip.MAX_ANSWER_BYTES", 100)
    request = {"inputs": [{"name": "x", "shape": [1], "datatype": "INT8", "data": [0]}]}
    signature = echo((1,), "int8")
    assert "expected at most 100 bytes" in error(ask(signature, lambda _: {"x": np.zeros(101, np.int8)}, request))
    assert "expected at most 100 bytes" in error(ask(signature, lambda _: {"x": np.zeros(60, np.int8)}, request))


def test_json_is_bounded_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skerry.inference.reading.MAX_JSON_BYTES", 50)
    assert "send binary tensors" in error(ask(SIGNATURE, never, good()))


def test_a_refusal_of_the_model_is_the_clients_and_a_broken_machine_is_not() -> None:
    def refuses(_inputs: Arrays) -> Arrays:
        raise Rejected("expected dimensions that agree, got others")

    def breaks(_inputs: Arrays) -> Arrays:
        raise Broken("expected a runtime, got none")

    assert error(ask(SIGNATURE, refuses, good())) == "expected dimensions that agree, got others"
    with pytest.raises(Broken):
        ask(SIGNATURE, breaks, good())


@given(st.binary(max_size=300), st.text(max_size=12))
def test_no_bytes_whatever_do_more_than_being_refused(body: bytes, length: str) -> None:
    answer = answer_request(SIGNATURE, never, name="m", version="7", head={HEADER_LENGTH: length}, body=body)
    error(answer)


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(["name", "shape", "datatype", "data", "parameters"])


@given(st.dictionaries(KEYS, TREES), st.dictionaries(st.sampled_from(["id", "parameters", "outputs"]), TREES))
def test_no_tree_whatever_does_more_than_being_refused(change: dict[str, Any], around: dict[str, Any]) -> None:
    request = good()
    request["inputs"][0] |= change
    answer = ask(SIGNATURE, twice, request | around)
    assert answer.status in (200, 400)
    json.loads(answer.body[: int(answer.headers.get(HEADER_LENGTH, len(answer.body)))])
