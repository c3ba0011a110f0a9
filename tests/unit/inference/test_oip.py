"""The Open Inference Protocol's codec: tensors there and back, in JSON and in binary."""

import json
import random
import struct
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from skerry.inference.datatypes import datatype_of
from skerry.inference.oip import Codec, answer_request
from skerry.inference.reading import HEADER_LENGTH
from skerry.runtimes import Signature, Tensor
from tests.unit.inference.oip_asking import NUMERIC, SIGNATURE, Arrays, ask, echo, good, read, twice


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
