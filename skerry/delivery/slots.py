"""A/B slots: two places for an artifact, and one pointer, replaced as a whole, that says which one runs.

    stage     choose the slot that is not good, mark it bad before the first byte, empty it
    seal      all files are in it: pending
    activate  the pointer names the pending slot (a trial)
    commit    the active slot is good
    roll back the active slot is bad, the pointer names the other one if that is good and not revoked, or nothing

Every verb may be repeated after a power cut and ends in the same place. A slot is read only after its digests held.
This module does not know where the files came from, nor when to do what (`agent.deployment.lifecycle`).
"""

import hashlib
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from skerry.delivery.checked import add_sum, check_sum
from skerry.delivery.durable import copy_durably, make_folder, sync_folder, write_durably
from skerry.delivery.vault import Vault, check_kept, keep_file, read_kept, read_pieces
from skerry.errors import Broken, Rejected
from skerry.wire import codec
from skerry.wire.manifest import NO_SAMPLES, Manifest, SamplePolicy

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
    """One slot: its mark, the SHA-256 of the manifest in it, and which release and deployment brought it.

    `revoked` says that the image repository no longer lists the manifest: it is never rolled back to. `rest_key` is the
    id of the key that its files are sealed with; empty where they are kept as they are. `samples` is what the offline
    keys let leave the device of its inputs; the manifest may narrow it.
    """

    mark: str = Mark.EMPTY.value
    manifest: str = ""
    release: str = ""
    deployment: str = ""
    revoked: bool = False
    rest_key: str = ""
    samples: SamplePolicy = NO_SAMPLES

    @property
    def fit(self) -> bool:
        """True when it ran, was committed, and is still a genuine release."""
        return self.mark == Mark.GOOD.value and not self.revoked


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
    """The two slots in one folder; single writer. With a vault, what is staged from now on is kept sealed."""

    def __init__(self, folder: Path, vault: Vault | None = None) -> None:
        self._folder = folder
        self.vault = vault
        self._file = folder / "pointer.json"
        self.pointer = Pointer()
        # a disk that refuses has none, and has them for nobody who only reads
        with suppress(OSError):
            for name in NAMES:
                make_folder(folder / name)
        if self._file.exists():
            try:
                self.pointer = decode_pointer(self._file.read_bytes())
            except Rejected as error:
                raise Broken(f"{self._file}: {error}; start the agent: it makes the pointer anew") from error

    @property
    def active(self) -> str:
        """The slot that runs: "a", "b" or empty."""
        return self.pointer.active

    def folder(self, name: str) -> Path:
        """Return the folder of a slot."""
        return self._folder / name

    def stage(
        self,
        files: Mapping[str, bytes],
        *,
        release: str,
        deployment: str,
        kept: Mapping[str, Path] | None = None,
        samples: SamplePolicy = NO_SAMPLES,
    ) -> str:
        """Write an artifact (its files by name, `manifest.json` among them) into the inactive slot and seal it.

        `kept` are files of it that lie on the disk as a slot keeps them, sealed where there is a vault: they are copied
        and never whole in memory. Returns the slot's name. Raises `Rejected` when a digest does not hold; the slot
        stays bad then.
        """
        digest = hashlib.sha256(files[MANIFEST]).hexdigest()
        name = self._free_slot()
        if self.pointer.slot(name).mark == Mark.PENDING.value and self.pointer.slot(name).manifest == digest:
            return name
        rest_key = self.vault.key_id if self.vault else ""
        bad = Slot(
            mark=Mark.BAD.value,
            manifest=digest,
            release=release,
            deployment=deployment,
            rest_key=rest_key,
            samples=samples,
        )
        self._save(self.pointer.with_slot(name, bad))

        folder = self.folder(name)
        try:
            shutil.rmtree(folder)
            folder.mkdir()
            for each, data in files.items():
                write_durably(folder / each, keep_file(self.vault, data))
            for each, path in (kept or {}).items():
                copy_durably(path, folder / each)
            sync_folder(self._folder)
        except OSError as error:
            raise Broken(f"expected to write the slot {folder}, got: {error.strerror}; check the disk") from error
        self.read(name)
        self._save(self.pointer.with_slot(name, replace(bad, mark=Mark.PENDING.value)))
        return name

    def read(self, name: str) -> Manifest:
        """Return the manifest in a slot after checking every digest again; raises `Rejected` when one does not hold."""
        manifest = self.read_manifest(name)
        for entry in manifest.files:
            self._check(name, entry.name, sha256=entry.sha256)
        return manifest

    def read_manifest(self, name: str) -> Manifest:
        """Return the manifest in a slot if its digest holds, whatever else is in it; raises as `load` does."""
        return codec.decode(Manifest, self.load(name, MANIFEST, sha256=self.pointer.slot(name).manifest))

    def load(self, name: str, file: str, *, sha256: str) -> bytes:
        """Return a file of a slot.

        Raises:
            Rejected: it is gone, or no longer what was staged.
            Broken: it is sealed with a key that is not here.
        """
        vault = self._vault_of(name)
        try:
            data = read_kept(vault, self.folder(name) / file, sha256=sha256)
        except OSError as error:
            raise Rejected(f"slot {name}: expected whole files, got: {error.strerror}; assign it again") from error
        if data is None or hashlib.sha256(data).hexdigest() != sha256:
            raise Rejected(f"slot {name}: expected {file} as signed, got other bytes; assign it again")
        return data

    def _check(self, name: str, file: str, *, sha256: str) -> None:
        """Raise as `load` does, with memory for one chunk."""
        vault = self._vault_of(name)
        try:
            whole = check_kept(vault, self.folder(name) / file, sha256=sha256)
        except OSError as error:
            raise Rejected(f"slot {name}: expected whole files, got: {error.strerror}; assign it again") from error
        if not whole:
            raise Rejected(f"slot {name}: expected {file} as signed, got other bytes; assign it again")

    def pieces(self, name: str, file: str, *, sha256: str) -> Iterator[bytes]:
        """Yield a file of a slot chunk by chunk; what it comes to is for the caller to check. Raises as `load` does."""
        vault = self._vault_of(name)
        try:
            for piece in read_pieces(vault, self.folder(name) / file, sha256=sha256):
                if piece is None:
                    raise Rejected(f"slot {name}: expected {file} as signed, got other bytes; assign it again")
                yield piece
        except OSError as error:
            raise Rejected(f"slot {name}: expected whole files, got: {error.strerror}; assign it again") from error

    def source(self, name: str, file: str, *, sha256: str) -> Path | bytes:
        """Return what a runtime is given: a file's path, or its bytes where it is sealed; raises as `load` does."""
        return self.load(name, file, sha256=sha256) if self.pointer.slot(name).rest_key else self.folder(name) / file

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
        good = next((name for name in NAMES if pointer.slot(name).fit), "")
        pointer = replace(pointer, active=good)
        if pointer != self.pointer:
            self._save(pointer)
        return pointer.slot(good) if good else Slot()

    def note_standing(
        self, *, revoked: Collection[str], listed: Collection[str], samples: Mapping[str, SamplePolicy] | None = None
    ) -> None:
        """Keep which manifests were revoked, durably; one in neither keeps the standing that it had.

        `samples` is what may leave the device of what is listed, by digest: nothing where it is not named.
        """
        allowed = samples or {}
        pointer = self.pointer
        for name in NAMES:
            slot = pointer.slot(name)
            if slot.manifest in revoked or slot.manifest in listed:
                may = allowed.get(slot.manifest, NO_SAMPLES)
                pointer = pointer.with_slot(name, replace(slot, revoked=slot.manifest in revoked, samples=may))
        if pointer != self.pointer:
            self._save(pointer)

    def _vault_of(self, name: str) -> Vault | None:
        wanted = self.pointer.slot(name).rest_key
        if not wanted:
            return None
        held = self.vault.key_id if self.vault else "none"
        if held != wanted:
            # not damage: nothing must be given up for it
            raise Broken(f"slot {name}: expected the rest key {wanted}, got {held}; restore the rest_key_file")
        return self.vault

    def _free_slot(self) -> str:
        """Never the active one; while nothing is active, one that could not be rolled back to."""
        if self.pointer.active:
            return NAMES[1 - NAMES.index(self.pointer.active)]
        return next(name for name in NAMES if not self.pointer.slot(name).fit)

    def _save(self, pointer: Pointer) -> None:
        write_durably(self._file, encode_pointer(pointer))
        self.pointer = pointer


def encode_pointer(pointer: Pointer) -> bytes:
    """Return what `pointer.json` holds, with its checksum."""
    return add_sum(codec.encode(pointer))


def decode_pointer(data: bytes) -> Pointer:
    """Return the pointer in `pointer.json`; raises `Rejected` when the disk has spoilt it."""
    pointer = codec.decode(Pointer, check_sum(data))
    marks = {mark.value for mark in Mark}
    if pointer.active not in ("", *NAMES) or not {pointer.a.mark, pointer.b.mark} <= marks:
        raise Rejected(f"expected a slot and marks, got {pointer.active!r:.40}, {pointer.a.mark!r:.40}")
    return pointer
