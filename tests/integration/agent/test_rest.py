"""Encryption at rest: a disk that is taken out has no model on it, and a device with its key goes on as before."""

import subprocess
import sys
from pathlib import Path

import pytest

from agent.__main__ import main
from agent.config import read_config
from agent.fetching.rest import RestVault, begin_to_encrypt
from skerry.delivery.slots import MANIFEST, Slots
from skerry.errors import Broken, Rejected
from tests.integration.agent.shore import Device, Shore, make_artifact, wait_for

WINDOW = 32


def on_disk(folder: Path) -> set[bytes]:
    """Return every run of 32 bytes that any file in a folder has."""
    found: set[bytes] = set()
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            found |= {data[start : start + WINDOW] for start in range(len(data) - WINDOW + 1)}
    return found


def windows_of(data: bytes) -> set[bytes]:
    """Return every 97th run of 32 bytes of a file."""
    return {data[start : start + WINDOW] for start in range(0, len(data) - WINDOW, 97)}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """Where the owner keeps the key: not in the state folder."""
    return tmp_path / "token" / "rest.key"


@pytest.fixture
def encrypted(device: Device, key_file: Path) -> Device:
    """A device that was told to encrypt."""
    key_file.parent.mkdir()
    begin_to_encrypt(device.folder, key_file)
    return device


def refused(device: Device) -> str:
    """Start an agent that must end by itself with status 4; return its last line."""
    command = [sys.executable, "-m", "agent", "run", "--state", str(device.folder), "--replay", str(device.recording)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 4, done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_a_device_that_encrypts_updates_restarts_and_has_no_model_on_its_disk(
    shore: Shore, encrypted: Device, key_file: Path
) -> None:
    for version in (1, 2):
        shore.release(version)
    encrypted.start()
    assert shore.ends(encrypted.name, shore.assign(encrypted.name, 1)).state == "committed"
    encrypted.stop()
    encrypted.start()
    assert shore.ends(encrypted.name, shore.assign(encrypted.name, 2)).state == "committed"
    before = len(shore.windows(encrypted.name))
    wait_for(lambda: len(shore.windows(encrypted.name)) > before, why="a window of the second version")
    encrypted.stop()

    known = on_disk(encrypted.folder)
    for version in (1, 2):
        for name in ("model.onnx", "golden.npz", "manifest.json"):
            # digests are in the metadata, and the manifest is made of them
            seen = windows_of(shore.artifacts[version][name]) & known
            assert name == "manifest.json" or not seen, name
    assert shore.artifacts[2]["manifest.json"] not in b"".join(
        path.read_bytes() for path in encrypted.folder.rglob("*") if path.is_file()
    )
    assert key_file.stat().st_mode & 0o777 == 0o600


def test_a_device_that_does_not_encrypt_would_be_found_out(shore: Shore, device: Device) -> None:
    """The search of the test above can fail."""
    shore.release(1)
    device.start()
    assert shore.ends(device.name, shore.assign(device.name, 1)).state == "committed"
    device.stop()

    assert windows_of(shore.artifacts[1]["model.onnx"]) <= on_disk(device.folder)


def test_a_key_that_is_gone_or_another_stops_the_agent_and_gives_nothing_up(
    shore: Shore, encrypted: Device, key_file: Path
) -> None:
    shore.release(1)
    encrypted.start()
    assert shore.ends(encrypted.name, shore.assign(encrypted.name, 1)).state == "committed"
    encrypted.stop()
    key, pointer = key_file.read_bytes(), (encrypted.folder / "slots" / "pointer.json").read_bytes()

    key_file.unlink()
    assert "rest.key: expected a key of this device, got: No such file or directory" in refused(encrypted)
    key_file.write_text("ab" * 32)
    assert "expected the rest key" in refused(encrypted)
    key_file.write_text("not hex")
    assert "expected 64 hex digits" in refused(encrypted)
    (encrypted.folder / "config.toml").write_text("")
    assert "got none; restore the rest_key_file" in refused(encrypted)

    assert (encrypted.folder / "slots" / "pointer.json").read_bytes() == pointer
    key_file.write_bytes(key)
    (encrypted.folder / "config.toml").write_text(f'rest_key_file = "{key_file}"\n')
    before = len(shore.windows(encrypted.name))
    encrypted.start()
    wait_for(lambda: len(shore.windows(encrypted.name)) > before, why="another window")


def test_a_damaged_sealed_slot_is_noticed(tmp_path: Path, key_file: Path) -> None:
    key_file.parent.mkdir()
    begin_to_encrypt(tmp_path, key_file)
    vault = RestVault(key_file)
    slots = Slots(tmp_path / "slots", vault)
    name = slots.stage(make_artifact(tmp_path, version=1), release="strokes-1", deployment="d1")
    slots.read(name)

    path = slots.folder(name) / "model.onnx"
    data = bytearray(path.read_bytes())
    data[70_000] ^= 1
    path.write_bytes(data)

    with pytest.raises(Rejected, match=r"expected model\.onnx as signed"):
        slots.read(name)
    # files that are swapped are not what was sealed there either
    golden = slots.folder(name) / "golden.npz"
    path.write_bytes(golden.read_bytes())
    with pytest.raises(Rejected, match=r"expected model\.onnx as signed"):
        slots.read(name)
    vault.close()


def test_a_slot_from_before_encryption_is_still_read(tmp_path: Path, key_file: Path) -> None:
    files = make_artifact(tmp_path, version=1)
    Slots(tmp_path / "slots").stage(files, release="strokes-1", deployment="d1")
    key_file.parent.mkdir()
    begin_to_encrypt(tmp_path, key_file)

    slots = Slots(tmp_path / "slots", RestVault(key_file))

    assert slots.activate() == "a"
    assert slots.load("a", MANIFEST, sha256=slots.pointer.a.manifest) == files["manifest.json"]
    assert slots.source("a", "model.onnx", sha256="") == slots.folder("a") / "model.onnx"


def test_a_key_is_made_once_and_named_in_the_configuration(tmp_path: Path, key_file: Path) -> None:
    key_file.parent.mkdir()
    (tmp_path / "config.toml").write_text("rate = 5.0\n")
    begin_to_encrypt(tmp_path, key_file)
    key = key_file.read_bytes()
    begin_to_encrypt(tmp_path, key_file)

    config = read_config(tmp_path, {})
    assert (config.rest_key_file, config.rate, key_file.read_bytes()) == (str(key_file), 5.0, key)
    with pytest.raises(Rejected, match="expected no rest_key_file yet"):
        begin_to_encrypt(tmp_path, tmp_path / "another.key")
    with pytest.raises(Broken):
        begin_to_encrypt(tmp_path / "new", tmp_path / "nowhere" / "rest.key")


def test_a_first_request_may_ask_for_encryption(tmp_path: Path, key_file: Path) -> None:
    key_file.parent.mkdir()
    out, state = tmp_path / "request", tmp_path / "state"
    pinned = ["--anchor-sha256", "0" * 64, "--profile", "gateway"]
    options = ["--out", str(out), "--encrypt-at-rest", str(key_file), "--state", str(state)]

    assert main(["request", *pinned, *options]) == 0

    assert read_config(state, {}).rest_key_file == str(key_file)
    assert key_file.read_text().strip() not in out.read_text()
