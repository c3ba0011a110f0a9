"""What every command has at hand: the client for the right server, and how to print an answer."""

import getpass
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skerry.client import Client
from skerry.errors import Broken, Rejected

DEFAULT_HOME = Path("~/.local/share/skerry")


@dataclass(frozen=True, slots=True)
class Session:
    """The options and environment of one command."""

    home: Path | None
    url: str
    token: str
    ca: str
    key_passphrase: str
    as_json: bool

    def client(self) -> Client:
        """Return a client for the server of the home folder, or of the environment.

        Raises:
            Rejected: neither names a server.
        """
        if self.home is None and self.url:
            if not self.token:
                raise Rejected("expected SKERRY_TOKEN beside SKERRY_URL, got none")
            return Client(self.url, self.token, ca=self.ca or None)
        home = (self.home or DEFAULT_HOME).expanduser()
        if not (home / "settings.toml").is_file():
            raise Rejected(
                f"expected a server's home folder, got {home} without settings.toml; "
                "give --home, or SKERRY_URL and SKERRY_TOKEN"
            )
        from control_plane.settings import load_settings

        settings = load_settings(home)
        return Client(f"http://127.0.0.1:{settings.pages_port}", read_text(home / "operator.token").strip())

    def passphrase(self, folder: Path) -> str | None:
        """Return the passphrase of a key folder that needs one: of the environment, or asked for at a terminal."""
        from control_plane.key_files import encrypted

        if self.key_passphrase or not encrypted(folder):
            return self.key_passphrase or None
        return getpass.getpass(f"passphrase of {folder}: ") if sys.stdin.isatty() else None

    def new_passphrase(self, folder: Path) -> str | None:
        """Return the passphrase for new keys: of the environment, or asked for; without one they are not encrypted.

        Raises:
            Rejected: the second entry was another.
        """
        if self.key_passphrase or not sys.stdin.isatty():
            return self.key_passphrase or None
        chosen = getpass.getpass(f"passphrase for the new keys in {folder} (empty: they are not encrypted): ")
        if chosen and getpass.getpass("again: ") != chosen:
            raise Rejected("passphrase: expected the same twice, got another; begin again")
        return chosen or None

    def show(self, answer: Any, text: str) -> None:
        """Print the answer as JSON where asked for, as the text otherwise."""
        say(json.dumps(answer, indent=2, sort_keys=True) if self.as_json else text)


def say(text: str) -> None:
    """Print text in which a device may have had its say: what is not printable could command the terminal."""
    shown = (each if each.isprintable() or each in "\n\t" else each.encode("unicode_escape").decode() for each in text)
    print("".join(shown))


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, empty: str) -> str:
    """Return the rows as an aligned table with the column names on top, or `empty` when there are none."""
    if not rows:
        return empty
    cells = [[cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(column), *(len(line[i]) for line in cells)) for i, column in enumerate(columns)]
    lines = [[column.upper() for column in columns], *cells]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def cell(value: Any) -> str:
    """Return a value as a table shows it: on one line, "-" for nothing."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("\n", " ")


def read_bytes(path: Path, *, limit: int = 256 << 20) -> bytes:
    """Read a file that the user named; raises `Rejected` when it is missing or too large."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError as error:
        raise Rejected(f"{path}: expected a file, got none; check the path") from error
    except IsADirectoryError as error:
        raise Rejected(f"{path}: expected a file, got a folder") from error
    except OSError as error:
        raise Broken(f"{path}: expected a readable file, got: {error.strerror}") from error
    if len(data) > limit:
        raise Rejected(f"{path}: expected at most {limit} bytes, got more")
    return data


def read_text(path: Path) -> str:
    """Read a UTF-8 text file that the user named; raises `Rejected`."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise Rejected(f"{path}: expected UTF-8 text, got other bytes") from error


def read_pairs(words: Sequence[str]) -> dict[str, str]:
    """Return KEY=VALUE words as a dictionary; raises `Rejected` for any other word."""
    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise Rejected(f"configure: expected KEY=VALUE, or KEY= to take it away, got {word!r:.60}")
        pairs[key] = value
    return pairs
