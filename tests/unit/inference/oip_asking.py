"""A model of many dtypes, and requests of the Open Inference Protocol to it."""

import json
from typing import Any

from skerry.inference.oip import Answer, answer_request
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
