"""Reading profiles: a name or a TOML file in, a checked `skerry.wire.profile.Profile` out, or one line of why not."""

import difflib
import re
import tomllib
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from skerry.errors import Rejected
from skerry.wire import codec
from skerry.wire.profile import Budgets, Hardware, Profile, TransportLimits, check_profile

FOLDER = Path(__file__).parent
OPERATORS = FOLDER / "operators"
"""One TOML file for each set of operators; a profile refers to one as `@NAME`."""
MAX_BYTES = 64 * 1024
SECTIONS: dict[str, Any] = {"budgets": Budgets, "hardware": Hardware, "transport": TransportLimits}


def list_profiles() -> tuple[str, ...]:
    """Return the names of the profiles that ship with Skerry, in order."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.toml")))


def load_profile(name: str) -> Profile:
    """Return a profile that ships with Skerry; raises `Rejected`, which lists the known names, for any other name."""
    known = list_profiles()
    if name not in known:
        raise Rejected(f"profile: expected one of {', '.join(known)}, got {name!r}")
    return load_profile_file(FOLDER / f"{name}.toml")


def load_profile_file(path: Path) -> Profile:
    """Read a profile from a TOML file whose stem is the profile's name.

    Raises:
        Rejected: the file is missing, is not TOML, or has a field that is wrong; says file, line, expected and got.
    """
    text = _read(path)
    tree = _parse(path, text)
    _check_keys(path, text, tree)
    if isinstance(tree.get("operators"), list):
        tree["operators"] = [each for written in tree["operators"] for each in _expanded(path, text, written)]
    try:
        profile = codec.from_tree(Profile, tree)
        check_profile(profile)
    except (Rejected, ValueError) as error:
        message = re.sub(r"^Profile(?:\.|: )", "", str(error))
        # the field comes first in every message of the codec and of the profile's own checks
        field = re.split(r"[:\[]", message, maxsplit=1)[0]
        section = re.match(r"(\w+): (\w+): ", message)
        if section and section[1] in SECTIONS:
            field = f"{section[1]}.{section[2]}"
        raise Rejected(f"{_place(path, text, field)}: {message}") from error
    if profile.name != path.stem:
        raise Rejected(
            f"{_place(path, text, 'name')}: name: expected the file's name {path.stem!r}, got {profile.name!r}"
        )
    return profile


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise Rejected(f"{path}: expected a profile of at most {MAX_BYTES} bytes, got more")
        return raw.decode()
    except OSError as error:
        raise Rejected(f"{path}: expected a profile in TOML, got {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Rejected(f"{path}: expected a profile in TOML, got bytes that are not UTF-8") from error


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        found = re.search(r"\(at line (\d+), column \d+\)|\(at end of document\)", str(error))
        number = 0 if found is None else int(found[1] or max(len(text.splitlines()), 1))
        place = f"{path}:{number}" if number else str(path)
        raise Rejected(f"{place}: expected a profile in TOML, got {error}") from error


def _check_keys(path: Path, text: str, tree: dict[str, Any]) -> None:
    """Refuse unknown and missing keys: a misspelt budget must not silently become the default."""
    parts = {"": (Profile, tree)} | {
        f"{name}.": (kind, tree[name]) for name, kind in SECTIONS.items() if isinstance(tree.get(name), dict)
    }
    for prefix, (kind, part) in parts.items():
        known = {field.name: field for field in fields(kind)}
        for key in part:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f" (did you mean {near[0]}?)" if near else ""
                got = f"{prefix}{key}"
                place = _place(path, text, got)
                raise Rejected(f"{place}: expected only fields of a profile, got {got!r}{hint}")
    for prefix, (kind, part) in parts.items():
        for field in fields(kind):
            required = field.default is MISSING and field.default_factory is MISSING
            if required and field.name not in part:
                # the section's own line, where the key belongs
                place = _place(path, text, prefix.removesuffix(".")) if prefix else str(path)
                expected = "a section" if is_dataclass(SECTIONS.get(field.name)) else "a value"
                raise Rejected(f"{place}: {prefix}{field.name}: expected {expected}, got none")


def _expanded(path: Path, text: str, written: Any) -> list[Any]:
    """Return the operators that an entry stands for: its own name, or the set that `@NAME` names."""
    if not isinstance(written, str) or not written.startswith("@"):
        return [written]
    known = sorted(file.stem for file in OPERATORS.glob("*.toml"))
    if written[1:] not in known:
        place = _place(path, text, "operators")
        raise Rejected(
            f"{place}: operators: expected a set of {', '.join(f'@{each}' for each in known)}, got {written!r}"
        )
    return list(tomllib.loads((OPERATORS / f"{written[1:]}.toml").read_text(encoding="utf-8"))["operators"])


def _place(path: Path, text: str, field: str) -> str:
    """Return `file` or `file:line` of the line that sets a field, or heads its section, as far as a search can tell."""
    section, _, key = field.rpartition(".")
    inside, header = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        heading = re.match(r"\s*\[\s*([\w.-]+)\s*\]", line)
        if heading:
            inside = heading[1]
            if field == inside:
                return f"{path}:{number}"
            header = number if inside == section else header
        elif inside == section and re.match(rf"\s*{re.escape(key)}\s*=", line):
            return f"{path}:{number}"
        elif not inside and section and re.match(rf"\s*{re.escape(section)}(\.{re.escape(key)})?\s*=", line):
            return f"{path}:{number}"  # an inline table, or a dotted key
    return f"{path}:{header}" if header else str(path)
