"""Reading profiles: a name or a TOML file in, a checked `skerry.wire.profile.Profile` out, or one line of why not."""

import re
import tomllib
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from skerry.errors import Rejected
from skerry.wire import codec
from skerry.wire.profile import Budgets, Profile

FOLDER = Path(__file__).parent
MAX_BYTES = 64 * 1024


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
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise Rejected(f"{path}: expected a profile of at most {MAX_BYTES} bytes, got more")
        text = raw.decode()
        tree = tomllib.loads(text)
    except OSError as error:
        raise Rejected(f"{path}: expected a profile in TOML, got {error.strerror}") from error
    except ValueError as error:  # TOML and UTF-8 errors alike
        raise Rejected(f"{path}: expected a profile in TOML, got {error}") from error
    unknown = _unknown_keys(tree)
    if unknown:
        raise Rejected(f"{_place(path, text, unknown[0])}: expected only fields of a profile, got {unknown[0]!r}")
    missing = _missing_keys(tree)
    if missing:
        raise Rejected(f"{path}: {missing[0]}: expected a value, got none")
    try:
        profile = codec.from_tree(Profile, tree)
    except Rejected as error:
        message = str(error).removeprefix("Profile.").removeprefix("Profile: ")
        # the field comes first in every message of the codec and of the profile's own checks
        field = re.split(r"[:\[]", message, maxsplit=1)[0]
        raise Rejected(f"{_place(path, text, field)}: {message}") from error
    if profile.name != path.stem:
        raise Rejected(
            f"{_place(path, text, 'name')}: name: expected the file's name {path.stem!r}, got {profile.name!r}"
        )
    return profile


def _unknown_keys(tree: dict[str, Any]) -> list[str]:
    """A misspelt budget must not silently become the default."""
    budgets = tree.get("budgets")
    inner = budgets if isinstance(budgets, dict) else {}
    top = [key for key in tree if key not in {field.name for field in fields(Profile)}]
    return top + [f"budgets.{key}" for key in inner if key not in {field.name for field in fields(Budgets)}]


def _missing_keys(tree: dict[str, Any]) -> list[str]:
    required = [
        field.name for field in fields(Profile) if field.default is MISSING and field.default_factory is MISSING
    ]
    return [name for name in required if name not in tree]


def _place(path: Path, text: str, field: str) -> str:
    """Return `file` or `file:line` of the line that sets a field, as far as a plain search can tell."""
    key = re.escape(field.rsplit(".", maxsplit=1)[-1])
    pattern = re.compile(rf"\s*(\[{key}\]|{key}\s*=)")
    for number, line in enumerate(text.splitlines(), start=1):
        if pattern.match(line):
            return f"{path}:{number}"
    return str(path)
