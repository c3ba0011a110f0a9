"""Secrets are in no log, no process list, and no file that others may read: over a whole run of the real programs."""

import base64
import os
import re
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from control_plane.settings import load_settings
from skerry.wire.join import parse_join
from tests.integration.secrets.loop import PASSPHRASE, Loop, run_loop

pytestmark = [pytest.mark.broker, pytest.mark.long, pytest.mark.timeout(300)]
PRIVATE = re.compile(rb"-----BEGIN (?:ENCRYPTED )?PRIVATE KEY-----(.*?)-----END", re.DOTALL)


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    """One run, over; what it left is looked at."""
    umask = os.umask(0o022)
    try:
        with Loop(tmp_path_factory.mktemp("loop")) as loop:
            run_loop(loop)
        yield loop
    finally:
        os.umask(umask)


@pytest.fixture(scope="module")
def known(loop: Loop) -> dict[str, list[bytes]]:
    """All secrets of the run, by what they are."""
    with closing(sqlite3.connect(loop.home / "skerry.db")) as database:
        content = [row[0] for row in database.execute("SELECT key FROM sealed_artifact")]
    private = [line for path in _files(loop) for line in _private_lines(path)]
    return {
        "the claim token": [parse_join(loop.join).token.encode()],
        "the operator's token": [(loop.home / "operator.token").read_bytes().strip()],
        "the passphrase of keys": [loop.passphrase.encode()],
        "the broker's password": [(urlsplit(load_settings(loop.home).broker).password or "").encode()],
        "private keys": private,
        "content keys": [form for key in content for form in (key, base64.b64encode(key), key.hex().encode())],
    }


def _folders(loop: Loop) -> tuple[Path, ...]:
    return loop.home, loop.broker, loop.state, loop.offline_keys


def _files(loop: Loop) -> list[Path]:
    return [path for folder in _folders(loop) for path in sorted(folder.rglob("*")) if path.is_file()]


def _private_lines(path: Path) -> list[bytes]:
    """Return the lines of the private keys in a file: any of them would be telling."""
    bodies = PRIVATE.findall(path.read_bytes())
    return [line for body in bodies for line in body.split() if len(line) > 40]


def _found(known: dict[str, list[bytes]], where: bytes) -> list[str]:
    return [name for name, secrets in known.items() if any(secret in where for secret in secrets)]


def test_the_run_was_a_whole_one(loop: Loop, known: dict[str, list[bytes]]) -> None:
    assert loop.deployment["state"] == "committed"
    assert "its session has ended" in loop.revoked["done"]
    assert loop.offline_after
    assert {name: len(secrets) for name, secrets in known.items() if not all(map(len, secrets)) or not secrets} == {}
    # three online keys, two authorities, the server's, the broker's, the device's, and the offline ones
    assert len([path for path in _files(loop) if _private_lines(path)]) >= 9


def test_everything_spoke_as_much_as_it_can(loop: Loop) -> None:
    said = {path.name: path.read_bytes() for path in loop.logs.iterdir()}

    assert set(said) == {"server.log", "agent.log", "init.log", "mosquitto.log"}
    assert b"INFO" in said["server.log"]
    assert all(said.values())


def test_no_log_holds_a_secret(loop: Loop, known: dict[str, list[bytes]]) -> None:
    for path in loop.logs.iterdir():
        assert _found(known, path.read_bytes()) == [], path.name


def test_no_process_shows_a_secret(loop: Loop, known: dict[str, list[bytes]]) -> None:
    shown = b" ".join(each.arguments for each in loop.processes.values())
    for program in (b"skerry-server", b"skerry-agent", b"skerry\0", b"mosquitto", b"trust_child", b"init\0-\0"):
        assert program in shown, "all that ran were seen"

    for each in loop.processes.values():
        assert _found(known, each.arguments) == [], each.arguments
        kept = b"\0".join(value for name, value in each.environment.items() if name != PASSPHRASE.encode())
        assert _found(known, kept) == [], each.arguments


def test_the_passphrase_is_in_the_environment_of_the_command_alone(loop: Loop) -> None:
    having = [each.arguments for each in loop.processes.values() if PASSPHRASE.encode() in each.environment]

    assert having
    assert [each for each in having if b"skerry-server" in each or b"skerry-agent" in each or b"agent." in each] == []


def test_no_file_that_others_may_read_holds_a_secret(loop: Loop, known: dict[str, list[bytes]]) -> None:
    open_to_others = [path for path in _files(loop) if path.stat().st_mode & 0o077]

    for path in open_to_others:
        assert _found(known, path.read_bytes()) == [], path


def test_each_file_with_a_private_key_is_its_owners(loop: Loop) -> None:
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in _files(loop) if _private_lines(path)}

    assert set(modes.values()) == {0o600}


def test_each_folder_is_its_owners(loop: Loop) -> None:
    assert {folder.name: oct(stat.S_IMODE(folder.stat().st_mode)) for folder in _folders(loop)} == {
        folder.name: oct(0o700) for folder in _folders(loop)
    }


def test_what_is_retained_on_the_brokers_disk_tells_no_secret(loop: Loop, known: dict[str, list[bytes]]) -> None:
    assert _found(known, (loop.broker / "mosquitto.db").read_bytes()) == []


def test_the_offline_keys_are_encrypted(loop: Loop) -> None:
    files = [path for path in loop.offline_keys.iterdir() if b"PRIVATE KEY" in path.read_bytes()]

    assert files
    assert [path.name for path in files if b"ENCRYPTED" not in path.read_bytes()] == []
