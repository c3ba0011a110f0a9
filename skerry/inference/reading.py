"""A request of the Open Inference Protocol: its JSON, checked against the model, and its tensors as arrays."""

import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from skerry.errors import Rejected
from skerry.inference.datatypes import datatype_of
from skerry.inference.tensors import from_binary, from_json

if TYPE_CHECKING:
    import numpy as np

    Arrays = dict[str, np.ndarray[Any, Any]]

HEADER_LENGTH = "inference-header-content-length"
MAX_JSON_BYTES = 8 << 20
_REFUSED = {
    "sequence_id": "sequences",
    "shared_memory_region": "shared memory",
    "classification": "the classification extension",
}


class TensorLike(Protocol):
    """A tensor by name, shape (-1 where it is open) and NumPy dtype."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype(self) -> str:
        """Its dtype."""


class SignatureLike(Protocol):
    """What a model takes and gives: a session's `Signature`, or a manifest."""

    @property
    def inputs(self) -> Sequence[TensorLike]:
        """What it takes."""

    @property
    def outputs(self) -> Sequence[TensorLike]:
        """What it gives."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A requested output; `binary` says how."""

    name: str
    binary: bool


class Place(NamedTuple):
    """Where among the bytes behind the JSON an input is that fits the model."""

    name: str
    start: int
    end: int
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """All that a request says but its tensors; `places` are those of the binary ones."""

    id: str
    parameters: dict[str, Any]
    wanted: tuple[Wanted, ...]
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A request that fits the model: every input, and the rest of what it says."""

    form: Form
    arrays: "Arrays"


def read_request(signature: SignatureLike, *, head: Mapping[str, str], body: memoryview) -> Request:
    """Read a request for a model; raises `Rejected`, naming the tensor and what it should have been."""
    tree, binary = _split_body(head, body)
    parameters = _parameters(tree, what="request")
    specs = {spec.name: spec for spec in signature.inputs}
    arrays: Arrays = {}
    places = []
    at = 0
    for each in _objects(tree, "inputs"):
        name = _name(each, among=specs, already=arrays, what="inputs")
        length = _binary_length(each, room=len(binary) - at)
        arrays[name] = _read_input(each, specs[name], binary=None if length is None else binary[at : at + length])
        if length is not None:
            places.append(Place(name, at, at + length, arrays[name].shape, specs[name].dtype))
            at += length
    if at != len(binary):
        raise Rejected(f"request: expected {at} bytes after its JSON by binary_data_size, got {len(binary)}")
    missing = [name for name in specs if name not in arrays]
    if missing:
        raise Rejected(f"inputs: expected {', '.join(specs)}, got none named {', '.join(missing)}")
    form = Form(
        id=_text(tree, "id"),
        # what only says how to write the outputs is not echoed beside them
        parameters={key: value for key, value in parameters.items() if key != "binary_data_output"},
        wanted=_wanted(tree, signature, binary=_flag(parameters, "binary_data_output", default=False)),
        places=tuple(places),
    )
    return Request(form, arrays)


def read_places(places: Sequence[Place], binary: memoryview) -> "Arrays":
    """Read inputs of which all but the bytes is known already; raises `Rejected` where these are none of the dtype."""
    return {
        place.name: from_binary(
            binary[place.start : place.end], shape=place.shape, dtype=place.dtype, what=f"input {place.name}"
        )
        for place in places
    }


def _split_body(head: Mapping[str, str], body: memoryview) -> tuple[dict[str, Any], memoryview]:
    """Return a request's JSON, and the bytes behind it."""
    written = head.get(HEADER_LENGTH)
    length = len(body) if written is None else _length(written, at_most=len(body))
    if length > MAX_JSON_BYTES:
        raise Rejected(f"request: expected at most {MAX_JSON_BYTES} bytes of JSON, got {length}: send binary tensors")
    try:
        tree = json.loads(str(body[:length], "utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Rejected(f"request: expected JSON, got {bytes(body[: min(length, 40)])!r}: {str(error)[:160]}") from error
    if not isinstance(tree, dict):
        raise Rejected(f"request: expected an object, got {type(tree).__name__}")
    return tree, body[length:]


def _length(written: str, *, at_most: int) -> int:
    # isdecimal alone takes the digits of every script, and int any number of them
    if not (written.isascii() and written.isdecimal() and len(written) < 12 and int(written) <= at_most):
        raise Rejected(f"{HEADER_LENGTH}: expected 0 to {at_most}, the body's length, got {written[:40]!r}")
    return int(written)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON; send the tensor with binary_data_size")


def _objects(tree: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = _given(tree, key, [])
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise Rejected(f"{key}: expected a list of objects, got {_shown(found)}")
    return found


def _given(tree: Mapping[str, Any], key: str, default: Any) -> Any:
    """Return what is optional; clients made from the protocol's schema write null for what they leave out."""
    found = tree.get(key)
    return default if found is None else found


def _name(tree: Mapping[str, Any], *, among: Mapping[str, Any], already: Mapping[str, Any], what: str) -> str:
    name = tree.get("name")
    if not isinstance(name, str) or name not in among:
        raise Rejected(f"{what}: expected names among {', '.join(among)}, got {_shown(name)}")
    if name in already:
        raise Rejected(f"{what}: expected each name once, got {name} twice")
    return name


def _read_input(tree: Mapping[str, Any], spec: TensorLike, *, binary: memoryview | None) -> Any:
    what = f"input {spec.name}"
    datatype = datatype_of(spec.dtype)
    if tree.get("datatype") != datatype:
        raise Rejected(f"{what}: expected the datatype {datatype}, got {_shown(tree.get('datatype'))}")
    shape = _shape(tree.get("shape"), spec, what=what)
    if binary is None:
        return from_json(tree.get("data"), shape=shape, dtype=spec.dtype, what=what)
    if tree.get("data") is not None:
        raise Rejected(f"{what}: expected data or binary_data_size, got both")
    return from_binary(binary, shape=shape, dtype=spec.dtype, what=what)


def _shape(found: Any, spec: TensorLike, *, what: str) -> tuple[int, ...]:
    fits = (
        isinstance(found, list)
        and len(found) == len(spec.shape)
        and all(type(size) is int and 1 <= size < 1 << 31 for size in found)
        and all(size in (-1, got) for size, got in zip(spec.shape, found, strict=True))
    )
    if not fits:
        raise Rejected(f"{what}: expected the shape {list(spec.shape)} (-1: any from 1 on), got {_shown(found)}")
    return tuple(found)


def _parameters(tree: Mapping[str, Any], *, what: str) -> dict[str, Any]:
    found = _given(tree, "parameters", {})
    if not isinstance(found, dict) or not all(each is None or _is_plain(each) for each in found.values()):
        raise Rejected(f"{what}: expected parameters that are strings, numbers or flags, got {_shown(found)}")
    for key, extension in _REFUSED.items():
        if found.get(key):
            raise Rejected(f"{what}: expected none of {extension}, got the parameter {key}: leave it out")
    return {key: value for key, value in found.items() if value is not None}


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _binary_length(tree: Mapping[str, Any], *, room: int) -> int | None:
    """Return how many of the bytes behind the JSON are this input's; None when its data is JSON."""
    size = _parameters(tree, what="input").get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or not 0 <= size <= room:
        raise Rejected(f"binary_data_size: expected 0 to {room}, what is left of the body, got {_shown(size)}")
    return size


def _wanted(tree: Mapping[str, Any], signature: SignatureLike, *, binary: bool) -> tuple[Wanted, ...]:
    """Return which outputs are wanted, and how; without a word on it, all of them."""
    names = {spec.name: Wanted(spec.name, binary) for spec in signature.outputs}
    wanted: dict[str, Wanted] = {}
    for each in _objects(tree, "outputs"):
        name = _name(each, among=names, already=wanted, what="outputs")
        parameters = _parameters(each, what=f"output {name}")
        wanted[name] = Wanted(name, _flag(parameters, "binary_data", default=binary))
    return tuple((wanted or names).values())


def _flag(parameters: Mapping[str, Any], key: str, *, default: bool) -> bool:
    flag = parameters.get(key, default)
    if not isinstance(flag, bool):
        raise Rejected(f"{key}: expected true or false, got {_shown(flag)}")
    return flag


def _text(tree: Mapping[str, Any], key: str) -> str:
    text = _given(tree, key, "")
    if not isinstance(text, str):
        raise Rejected(f"{key}: expected a string, got {_shown(text)}")
    return text


def _shown(value: Any) -> str:
    # neither deep nor long values are written out to be cut off
    return reprlib.repr(value)[:80]
