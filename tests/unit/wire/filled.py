"""Messages with every field filled in, by their types: for whatever must hold for any message of the wire."""

import dataclasses
import types
import typing
from typing import Any

from skerry.wire import enrolment, evidence, manifest, messages

HEX = "0123456789abcdef" * 4
# what a field's own rule asks for; all others are filled by type
_RULED: dict[tuple[str, str], Any] = {
    ("Delta", "length"): 70_000,
    ("Delta", "source"): HEX,
    ("Delta", "sha256"): HEX,
    ("Delta", "sealed"): HEX,
    ("Delta", "chunks"): (HEX, HEX[::-1]),
    ("Content", "files"): {"manifest.json": HEX, "model.onnx": HEX[::-1]},
    ("Content", "roads"): ("https", "mqtt"),
    ("FileEntry", "name"): "model.onnx",
    ("FileEntry", "length"): 70_000,
    ("FileEntry", "chunks"): (HEX, HEX[::-1]),
    ("SamplePolicy", "rows_per_window"): 3,
    ("SamplePolicy", "max_bytes"): 512,
    ("BuildRun", "golden"): "passed",
    ("Race", "assigned_us"): (11.5, 12.5),
    ("Race", "other_us"): (13.5, 14.25),
}


def messages_of_the_wire() -> list[type[Any]]:
    """Return the dataclasses that travel by themselves: those that carry a version."""
    kinds = [
        each
        for module in (messages, enrolment, evidence, manifest)
        for each in vars(module).values()
        if dataclasses.is_dataclass(each) and isinstance(each, type) and each.__module__ == module.__name__
    ]
    return [kind for kind in kinds if any(field.name == "v" for field in dataclasses.fields(kind))]


def filled(kind: type[Any]) -> Any:
    """Return a message in which no field has its default."""
    hints = typing.get_type_hints(kind)
    values = {}
    for number, field in enumerate(dataclasses.fields(kind)):
        ruled = _RULED.get((kind.__name__, field.name))
        values[field.name] = ruled if ruled is not None else _value(hints[field.name], field.name, number + 2)
    return kind(**{**values, **({"v": 1} if "v" in values else {})})


def _value(hint: Any, name: str, number: int) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _value(next(each for each in inner if each is not type(None)), name, number)
    if origin is tuple:
        return (_value(inner[0], name, number), _value(inner[0], name, number + 1))
    if origin is dict:
        return {"one": _value(inner[1], name, number), "two": _value(inner[1], name, number + 1)}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return filled(hint)
    if hint is Any:
        return [number, {"nested": f"{name} ünïcode"}]
    plain = {str: f"{name} {number}", int: 1000 + number, float: number + 0.25, bool: True}
    return plain[hint]
