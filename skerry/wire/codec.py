"""Strict JSON for frozen dataclasses: what a field does not declare is dropped, what it declares is checked.

Unknown keys are ignored, so that an older reader understands a newer writer (the control plane speaks to agents of
N-2); a missing key without a default, or a value of the wrong type, is `Rejected` with the path of the field.
Sizes are capped before parsing (`MAX_BYTES`).
"""

import dataclasses
import json
import math
import types
import typing
from typing import Any, TypeVar

from skerry.errors import Rejected

MAX_BYTES = 1 << 20
T = TypeVar("T")


def encode(value: Any) -> bytes:
    """Encode a dataclass as canonical JSON: sorted keys, no spaces, UTF-8."""
    return json.dumps(dataclasses.asdict(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def decode(kind: type[T], payload: bytes, *, limit: int = MAX_BYTES) -> T:
    """Decode JSON bytes into the dataclass `kind`.

    Raises:
        Rejected: the payload is longer than `limit`, is not JSON, or does not fit the fields of `kind`.
    """
    if len(payload) > limit:
        raise Rejected(f"{kind.__name__}: expected at most {limit} bytes, got {len(payload)}")
    try:
        tree = json.loads(payload, parse_float=_finite, parse_constant=_finite)
        if b"\\u" in payload:
            # half of a surrogate pair is JSON, and no text that a database would take
            json.dumps(tree, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Rejected(f"{kind.__name__}: expected JSON, got {payload[:40]!r}") from error
    return from_tree(kind, tree)


def from_tree(kind: type[T], tree: Any) -> T:
    """Check a parsed JSON tree against the dataclass `kind` and build it; raises `Rejected`."""
    return typing.cast("T", _build(kind, tree, kind.__name__))


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number, got {text[:40]}")
    return number


def _build(kind: Any, tree: Any, path: str) -> Any:
    if not isinstance(tree, dict):
        raise Rejected(f"{path}: expected an object, got {_shown(tree)}")
    hints = typing.get_type_hints(kind)
    values = {}
    for field in dataclasses.fields(kind):
        if field.name in tree:
            values[field.name] = _check(hints[field.name], tree[field.name], f"{path}.{field.name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise Rejected(f"{path}.{field.name}: expected a value, got none")
    try:
        return kind(**values)
    except ValueError as error:
        raise Rejected(f"{path}: {error}") from error


def _check(hint: Any, value: Any, path: str) -> Any:
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, path)
    if origin in (types.UnionType, typing.Union):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        return _check(next(option for option in options if option is not type(None)), value, path)
    if origin is tuple:
        if not isinstance(value, list):
            raise Rejected(f"{path}: expected a list, got {_shown(value)}")
        item = typing.get_args(hint)[0]
        return tuple(_check(item, each, f"{path}[{index}]") for index, each in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise Rejected(f"{path}: expected an object, got {_shown(value)}")
        item = typing.get_args(hint)[1]
        return {key: _check(item, each, f"{path}.{key}") for key, each in value.items()}
    return _scalar(hint, value, path)


def _scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise Rejected(f"{path}: expected a finite number, got one of {value.bit_length()} bits") from error
    # `decode` leaves none through, but a tree may come from a parser that does
    if isinstance(value, float) and not math.isfinite(value):
        raise Rejected(f"{path}: expected a finite number, got {value}")
    # bool is a subclass of int in Python, and a flag where a count belongs is a mistake
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise Rejected(f"{path}: expected {hint.__name__}, got {_shown(value)}")
    if hint is int and not -(1 << 63) <= value < 1 << 63:
        raise Rejected(f"{path}: expected a number of 64 bits, got one of {value.bit_length()}")
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)  # TOML has dates
    return text if len(text) <= 60 else text[:57] + "..."
