"""The Open Inference Protocol's codec: tensors there and back, and what is refused before a model sees it."""

import json
import random
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from skerry.errors import Broken, Rejected
from skerry.inference.datatypes import datatype_of
from skerry.inference.oip import Answer, Codec, answer_request
from skerry.inference.reading import HEADER_LENGTH
from skerry.runtimes import Signature, Tensor

NUMERIC = (
    "bool",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
)
SIGNATURE = Signature(
    inputs=(Tensor("window", (-1, 3), "float32"), Tensor("age", (1,), "int8")),
    outputs=(Tensor("twice", (-1, 3), "float32"), Tensor("age", (1,), "int8")),
)
Arrays = dict[str, Any]


def echo(shape: tuple[int, ...], dtype: str) -> Signature:
    """A model that gives back its one input."""
    return Signature(inputs=(Tensor("x", shape, dtype),), outputs=(Tensor("x", shape, dtype),))


def twice(inputs: Arrays) -> Arrays:
    return {"twice": inputs["window"] * 2, "age": inputs["age"]}


def never(_inputs: Arrays) -> Arrays:
    raise AssertionError("the model was run")


def ask(signature: Signature, run: Any, tree: Any, binary: bytes = b"", *, length: str | None = None) -> Answer:
    text = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    written = str(len(text)) if binary else length
    head = {} if written is None else {HEADER_LENGTH: written}
    return answer_request(signature, run, name="m", version="7", head=head, body=text + binary)


def good() -> dict[str, Any]:
    """A request that SIGNATURE takes."""
    return {
        "inputs": [
            {"name": "window", "shape": [1, 3], "datatype": "FP32", "data": [1, 2.5, 3]},
            {"name": "age", "shape": [1], "datatype": "INT8", "data": [-4]},
        ]
    }


def read(answer: Answer) -> tuple[dict[str, Any], bytes]:
    length = int(answer.headers.get(HEADER_LENGTH, len(answer.body)))
    return json.loads(answer.body[:length]), answer.body[length:]


def error(answer: Answer) -> str:
    assert answer.status == 400
    tree = json.loads(answer.body)
    assert list(tree) == ["error"]
    assert "\n" not in tree["error"]
    assert len(tree["error"]) < 400
    return str(tree["error"])


def test_a_request_in_json_is_answered_in_json_with_its_id_and_parameters() -> None:
    request = good() | {"id": "é1", "parameters": {"trace": "a", "binary_data_output": False}}
    answer = ask(SIGNATURE, twice, request)
    assert (answer.status, answer.headers) == (200, {"content-type": "application/json"})
    assert json.loads(answer.body) == {
        "model_name": "m",
        "model_version": "7",
        "id": "é1",
        "parameters": {"trace": "a"},
        "outputs": [
            {"name": "twice", "datatype": "FP32", "shape": [1, 3], "data": [2.0, 5.0, 6.0]},
            {"name": "age", "datatype": "INT8", "shape": [1], "data": [-4]},
        ],
    }


def test_null_stands_for_what_is_left_out() -> None:
    request: dict[str, Any] = {"id": None, "parameters": None, "outputs": None, **good()}
    for each in request["inputs"]:
        each["parameters"] = None
    request["inputs"][0]["parameters"] = {"content_type": "np", "headers": None}
    request["parameters"] = {"content_type": None}
    assert ask(SIGNATURE, twice, request) == ask(SIGNATURE, twice, good())
    request["outputs"] = [{"name": "age", "parameters": None}]
    tree, _ = read(ask(SIGNATURE, twice, request))
    assert [each["name"] for each in tree["outputs"]] == ["age"]


def test_only_wanted_outputs_come_each_in_the_form_that_was_asked_for() -> None:
    wanted = [{"name": "age"}, {"name": "twice", "parameters": {"binary_data": True}}]
    answer = ask(SIGNATURE, twice, good() | {"outputs": wanted})
    tree, binary = read(answer)
    assert [output["name"] for output in tree["outputs"]] == ["age", "twice"]
    assert tree["outputs"][0]["data"] == [-4]
    assert tree["outputs"][1] == {
        "name": "twice",
        "datatype": "FP32",
        "shape": [1, 3],
        "parameters": {"binary_data_size": 12},
    }
    assert binary == struct.pack("<3f", 2, 5, 6)
    assert answer.headers["content-type"] == "application/octet-stream"


def test_one_word_asks_for_all_outputs_in_binary_save_those_that_say_otherwise() -> None:
    wanted = [{"name": "age", "parameters": {"binary_data": False}}, {"name": "twice"}]
    request = good() | {"parameters": {"binary_data_output": True}}
    tree, binary = read(ask(SIGNATURE, twice, request | {"outputs": wanted}))
    assert ("data" in tree["outputs"][0], "data" in tree["outputs"][1], len(binary)) == (True, False, 12)
    tree, binary = read(ask(SIGNATURE, twice, request))
    assert len(binary) == 13
    assert "parameters" not in tree


def test_inputs_may_come_in_any_order_some_of_them_in_binary() -> None:
    request = {
        "inputs": [
            {"name": "age", "shape": [1], "datatype": "INT8", "parameters": {"binary_data_size": 1}},
            {"name": "window", "shape": [2, 3], "datatype": "FP32", "parameters": {"binary_data_size": 24}},
        ]
    }
    tree, _ = read(ask(SIGNATURE, twice, request, b"\x05" + struct.pack("<6f", 1, 2, 3, 4, 5, 6)))
    assert tree["outputs"][0]["data"] == [2, 4, 6, 8, 10, 12]
    assert tree["outputs"][0]["shape"] == [2, 3]


def test_what_a_model_gets_is_aligned_writable_and_its_own() -> None:
    def run(inputs: Arrays) -> Arrays:
        assert inputs["x"].flags.aligned
        assert inputs["x"].flags.c_contiguous
        assert inputs["x"].flags.owndata or inputs["x"].base.flags.owndata
        inputs["x"][0] = 9
        return inputs

    data = {"name": "x", "shape": [2], "datatype": "FP64", "parameters": {"binary_data_size": 16}}
    for space in range(8):
        text = (json.dumps({"inputs": [data]}) + " " * space).encode()
        tree, _ = read(ask(echo((2,), "float64"), run, text, struct.pack("<2d", 1, 2)))
        assert tree["outputs"][0]["data"] == [9, 2]


@given(data=st.data(), dtype=st.sampled_from(NUMERIC), binary=st.booleans(), nested=st.booleans())
def test_any_tensor_comes_back_as_it_went(data: st.DataObject, dtype: str, binary: bool, nested: bool) -> None:
    shape = data.draw(arrays_of.array_shapes(min_dims=0, max_dims=4, max_side=4))
    elements = {"allow_nan": False, "allow_infinity": False} if dtype.startswith("float") and not binary else None
    array = data.draw(arrays_of.arrays(dtype, shape, elements=elements))
    tensor: dict[str, Any] = {"name": "x", "shape": list(shape), "datatype": datatype_of(dtype)}
    sent = b""
    if binary:
        sent = array.astype(array.dtype.newbyteorder("<")).tobytes()
        tensor["parameters"] = {"binary_data_size": len(sent)}
    else:
        tensor["data"] = array.tolist() if nested and shape else array.ravel().tolist()
    request = {"inputs": [tensor], "parameters": {"binary_data_output": binary}}
    seen: Arrays = {}

    def run(inputs: Arrays) -> Arrays:
        seen.update(inputs)
        return inputs

    tree, blob = read(ask(echo(tuple(-1 for _ in shape), dtype), run, request, sent))
    assert seen["x"].dtype == array.dtype
    np.testing.assert_array_equal(seen["x"], array)
    output = tree["outputs"][0]
    assert (output["datatype"], output["shape"]) == (datatype_of(dtype), list(shape))
    if binary:
        assert blob == sent
    else:
        np.testing.assert_array_equal(np.array(output["data"], dtype=dtype).reshape(shape), array)


@given(texts=st.lists(st.text(), min_size=1, max_size=6), binary=st.booleans())
def test_a_model_that_takes_strings_gets_them(texts: list[str], binary: bool) -> None:
    tensor: dict[str, Any] = {"name": "x", "shape": [1, len(texts)], "datatype": "BYTES"}
    sent = b""
    if binary:
        sent = b"".join(struct.pack("<I", len(each.encode())) + each.encode() for each in texts)
        tensor["parameters"] = {"binary_data_size": len(sent)}
    else:
        tensor["data"] = [texts]
    request = {"inputs": [tensor], "parameters": {"binary_data_output": binary}}
    tree, blob = read(ask(echo((1, -1), "object"), lambda inputs: inputs, request, sent))
    assert blob == sent
    if not binary:
        assert tree["outputs"][0]["data"] == texts


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


def requests_in_many_forms() -> list[tuple[dict[str, str], bytes]]:
    """Requests that differ in as little as one byte: of a tensor, the JSON, the header or the length."""
    found = []
    extras: tuple[dict[str, Any], ...] = (
        {},
        {"id": "a"},
        {"id": "b"},
        {"parameters": {"binary_data_output": True}},
        {"parameters": {"k": 1}},
    )
    for extra in extras:
        for rows in (1, 2):
            for texts in (["one", "two"], ["three", ""]):
                sizes = sum(4 + len(text) for text in texts)
                inputs = [
                    {"name": "flag", "shape": [rows], "datatype": "BOOL", "parameters": {"binary_data_size": rows}},
                    {"name": "words", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": sizes}},
                ]
                line = json.dumps({"inputs": inputs, **extra}).encode()
                binary = b"".join(struct.pack("<I", len(text)) + text.encode() for text in texts)
                for flags in (bytes(rows), b"\1" * rows, b"\2" * rows):
                    body = line + flags + binary
                    found += [({HEADER_LENGTH: str(len(line))}, body), ({HEADER_LENGTH: str(len(line) + 1)}, body)]
                found.append(({}, line))
                found.append(({HEADER_LENGTH: str(len(line))}, line + binary))
    return found


def test_a_codec_answers_as_one_that_has_seen_no_other_request() -> None:
    tensors = (Tensor("flag", (-1,), "bool"), Tensor("words", (-1,), "object"))
    signature = Signature(inputs=tensors, outputs=tensors)

    def run(inputs: Arrays) -> Arrays:
        # the same request may be answered in another shape
        return {"flag": inputs["flag"] if inputs["flag"].all() else inputs["flag"][:0], "words": inputs["words"][::-1]}

    codec = Codec(signature, name="m", version="7")
    requests = 3 * requests_in_many_forms()
    random.Random(11).shuffle(requests)
    statuses = set()
    for head, body in [each for each in requests for _ in range(2)]:
        answer = codec.answer(run, head=head, body=body)
        assert answer == answer_request(signature, run, name="m", version="7", head=head, body=body)
        statuses.add(answer.status)
    assert statuses == {200, 400}
