"""What the power-cut matrix (`tests/power`) has found, each as the smallest case of it."""

import hashlib
import os
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root
from tuf.ngclient import Updater
from tuf.ngclient.urllib3_fetcher import Urllib3Fetcher

from agent.deployment.lifecycle import Effect, Event, Grant, Kind, State
from agent.deployment.runner import Runner, read_state
from agent.trust.repository import open_repository
from skerry.delivery.chunks import Arrival
from skerry.delivery.durable import make_folder
from skerry.delivery.partial import PartialFile
from skerry.wire.manifest import FileEntry

DATA = b"x" * 100
SHA256 = hashlib.sha256(DATA).hexdigest()
ENTRY = FileEntry(name="model", length=100, sha256=SHA256, chunks=(SHA256,))


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The paths that were synced, in order."""
    paths: list[Path] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        paths.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    return paths


def test_a_bitmap_that_outlived_its_bytes_vouches_for_no_others(tmp_path: Path, synced: list[Path]) -> None:
    part = PartialFile(tmp_path, ENTRY)
    part.add({0: Arrival(received=100, data=DATA)})
    assert PartialFile(tmp_path, ENTRY).progress.complete
    part.path.unlink()
    synced.clear()

    for _ in range(2):
        assert not PartialFile(tmp_path, ENTRY).progress.complete
    # the bitmap was gone for good before there was an empty file that it could have vouched for
    assert synced == [tmp_path]


class _Device:
    """Effects that know one assignment, and look at the disk when it is noted as decided."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._pending = True
        self.found: list[State] = []

    def pending(self) -> bool:
        return self._pending

    def decide(self, _state: State) -> Event | None:
        return Event(Kind.ASSIGN, grant=Grant(deployment="d1", release="strokes-1"))

    def decided(self) -> None:
        self._pending = False
        self.found.append(read_state(self._file))

    def perform(self, _effect: Effect, _state: State) -> Event | None:
        return None

    def measured(self) -> dict[str, float]:
        return {}


def test_an_assignment_is_noted_as_decided_when_what_came_of_it_is_saved(tmp_path: Path) -> None:
    file = tmp_path / "lifecycle.json"
    device = _Device(file)
    runner = Runner(file, announce=lambda _: None, retry_s=1.0, retry_most_s=1.0)

    runner.turn(device)

    assert [state.grant and state.grant.deployment for state in device.found] == ["d1"]


def test_a_folder_is_made_with_its_name_on_the_disk(tmp_path: Path, synced: list[Path]) -> None:
    make_folder(tmp_path / "slots" / "a")
    make_folder(tmp_path / "slots" / "a")

    assert (tmp_path / "slots" / "a").is_dir()
    assert synced == [tmp_path, tmp_path / "slots"]


def test_trusted_metadata_is_replaced_durably(tmp_path: Path, synced: list[Path]) -> None:
    # private in python-tuf: should it be renamed, the syncs would be gone and nothing would say so
    assert {"_persist_file", "_update_root_symlink"} <= vars(Updater).keys()
    signer = CryptoSigner.generate_ed25519()
    root = Root(consistent_snapshot=True)
    for role in ("root", "timestamp", "snapshot", "targets"):
        root.add_key(signer.public_key, role)
    signed = Metadata(root)
    signed.sign(signer)

    open_repository(Urllib3Fetcher(), tmp_path, signed.to_bytes(), at=0.0)

    assert tmp_path / "root_history" / ".1.root.json.new" in synced
    assert tmp_path / "root_history" in synced
    assert synced[-1] == tmp_path
