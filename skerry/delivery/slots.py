"""A/B slots: two places for an artifact, and one pointer, replaced as a whole, that says which one runs.

    stage     choose the slot that is not good, mark it bad before the first byte, empty it
    seal      all files are in it: pending
    activate  the pointer names the pending slot (a trial)
    commit    the active slot is good
    roll back the active slot is bad, the pointer names the other one if that is good, or nothing

Every verb may be repeated after a power cut and ends in the same place. A slot is read only after its digests held.
This module does not know where the files came from, nor when to do what (`agent.lifecycle`).
"""

import hashlib
import shutil
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from skerry.delivery.durable import sync_folder, write_durably
from skerry.errors import Broken, Rejected
from skerry.wire import codec
from skerry.wire.manifest import Manifest

MANIFEST = "manifest.json"
NAMES = ("a", "b")


class Mark(Enum):
    """What is known about a slot."""

    EMPTY = "empty"  # never written
    BAD = "bad"  # being written, or failed
    PENDING = "pending"  # whole, not yet trusted
    GOOD = "good"  # ran and was committed


@dataclass(frozen=True, slots=True)
class Slot:
    """One slot: its mark, the SHA-256 of the manifest in it, and which release and deployment brought it."""

    mark: str = Mark.EMPTY.value
    manifest: str = ""
    release: str = ""
    deployment: str = ""


@dataclass(frozen=True, slots=True)
class Pointer:
    """What `pointer.json` holds; `active` is "a", "b" or empty."""

    active: str = ""
    a: Slot = Slot()
    b: Slot = Slot()
    v: int = 1

    def slot(self, name: str) -> Slot:
        """Return slot "a" or "b"."""
        return self.a if name == "a" else self.b

    def with_slot(self, name: str, slot: Slot) -> "Pointer":
        """Return a pointer with that slot replaced."""
        return replace(self, a=slot) if name == "a" else replace(self, b=slot)


class Slots:
    """The two slots in one folder; single writer."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "pointer.json"
        self.pointer = Pointer()
        for name in NAMES:
            (folder / name).mkdir(parents=True, exist_ok=True)
        if self._file.exists():
            try:
                self.pointer = codec.decode(Pointer, self._file.read_bytes())
            except Rejected as error:
                raise Broken(f"{self._file}: {error}; remove the state folder and enrol again") from error

    @property
    def active(self) -> str:
        """The slot that runs: "a", "b" or empty."""
        return self.pointer.active

    def folder(self, name: str) -> Path:
        """Return the folder of a slot."""
        return self._folder / name

    def stage(self, files: dict[str, bytes], *, release: str, deployment: str) -> str:
        """Write an artifact (its files by name, `manifest.json` among them) into the inactive slot and seal it.

        Returns the slot's name. Raises `Rejected` when a digest does not hold; the slot stays bad then.
        """
        digest = hashlib.sha256(files[MANIFEST]).hexdigest()
        name = self._free_slot()
        if self.pointer.slot(name).mark == Mark.PENDING.value and self.pointer.slot(name).manifest == digest:
            return name
        bad = Slot(mark=Mark.BAD.value, manifest=digest, release=release, deployment=deployment)
        self._save(self.pointer.with_slot(name, bad))

        folder = self.folder(name)
        try:
            shutil.rmtree(folder)
            folder.mkdir()
            for each, data in files.items():
                write_durably(folder / each, data)
            sync_folder(self._folder)
        except OSError as error:
            raise Broken(f"expected to write the slot {folder}, got: {error.strerror}; check the disk") from error
        self.read(name)
        self._save(self.pointer.with_slot(name, replace(bad, mark=Mark.PENDING.value)))
        return name

    def read(self, name: str) -> Manifest:
        """Return the manifest in a slot after checking every digest again; raises `Rejected` when one does not hold."""
        folder = self.folder(name)
        try:
            data = (folder / MANIFEST).read_bytes()
            if hashlib.sha256(data).hexdigest() != self.pointer.slot(name).manifest:
                raise Rejected(f"slot {name}: expected the manifest that was staged, got another; assign it again")
            manifest = codec.decode(Manifest, data)
            for entry in manifest.files:
                if _digest(folder / entry.name) != entry.sha256:
                    raise Rejected(f"slot {name}: expected {entry.name} as signed, got other bytes; assign it again")
        except OSError as error:
            raise Rejected(f"slot {name}: expected whole files, got: {error.strerror}; assign it again") from error
        return manifest

    def activate(self) -> str:
        """Point at the pending slot and return its name; raises `Broken` when none is pending and none is on trial."""
        for name in NAMES:
            if self.pointer.slot(name).mark == Mark.PENDING.value:
                if self.pointer.active != name:
                    self._save(replace(self.pointer, active=name))
                return name
        raise Broken("slots: expected one that is pending, got none; assign the artifact again")

    def commit(self) -> None:
        """Declare the active slot good."""
        name = self.pointer.active
        slot = self.pointer.slot(name)
        if name and slot.mark != Mark.GOOD.value:
            self._save(self.pointer.with_slot(name, replace(slot, mark=Mark.GOOD.value)))

    def roll_back(self, manifest: str) -> Slot:
        """Give up the artifact `manifest`: its slot is bad, and the pointer names the last good slot, or nothing.

        Returns the slot that is active now (an empty one when none is good).
        """
        pointer = self.pointer
        for name in NAMES:
            slot = pointer.slot(name)
            if manifest and slot.manifest == manifest and slot.mark != Mark.BAD.value:
                pointer = pointer.with_slot(name, replace(slot, mark=Mark.BAD.value))
        good = next((name for name in NAMES if pointer.slot(name).mark == Mark.GOOD.value), "")
        pointer = replace(pointer, active=good)
        if pointer != self.pointer:
            self._save(pointer)
        return pointer.slot(good) if good else Slot()

    def _free_slot(self) -> str:
        """Never the active one; while nothing is active, the one that is not good."""
        if self.pointer.active:
            return NAMES[1 - NAMES.index(self.pointer.active)]
        return next(name for name in NAMES if self.pointer.slot(name).mark != Mark.GOOD.value)

    def _save(self, pointer: Pointer) -> None:
        write_durably(self._file, codec.encode(pointer))
        self.pointer = pointer


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
