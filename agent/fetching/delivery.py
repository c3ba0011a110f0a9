"""How this device comes by the files of an artifact: as little as can be, by whichever road, at its owner's pace.

    a file that runs already      from the active slot
    a delta that is offered       fetched, applied in a child (`agent.fetching.delta`), every chunk judged
    anything else                 whole

What goes wrong on a shorter way is counted, and the next one is taken; only a road that is closed is waited for. What
was found to be no way is kept on disk beside the files, until the deployment has ended.
"""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agent.config import Config
from agent.deployment.lifecycle import Grant
from agent.fetching.delta import MAX_DELTA_BYTES, MAX_SOURCE_IN_MEMORY_BYTES, NO_SOURCE, make_from_delta
from agent.fetching.fetch import Chunks, Falsified, Fetched, Retained, Stalled, fetch_files
from agent.fetching.pace import OwnersPace
from agent.fetching.unseal import Opener, Unsealer
from skerry.delivery.chunks import Progress
from skerry.delivery.durable import write_durably
from skerry.delivery.partial import PartialFile
from skerry.delivery.slots import MANIFEST, Slots
from skerry.errors import Rejected
from skerry.wire import codec
from skerry.wire.manifest import CHUNK_BYTES, FileEntry, Manifest
from skerry.wire.messages import Content, Delta

_log = logging.getLogger("skerry.agent.delivery")


@dataclass(frozen=True, slots=True)
class Note:
    """What is remembered of a deployment's fetch: `received` are bytes of deltas that are done with.

    `delta_bytes` are those that made a file, `fallbacks` the shorter ways that led nowhere, and `refused` the SHA-256
    of deltas that were proven bad.
    """

    deployment: str = ""
    received: int = 0
    delta_bytes: int = 0
    fallbacks: int = 0
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Key:
    """Whose the content key is, and where that one's private key lies."""

    who: str
    file: Path


class Delivery:
    """The files of one deployment at a time, in `folder`; what was fetched stays there until `clean`."""

    def __init__(self, folder: Path, *, key: Key, config: Config, link: Retained, slots: Slots) -> None:
        self._folder = folder
        self._key = key
        self._config = config
        self._link = link
        self._slots = slots
        self._note = Note()
        self._lengths: dict[str, int] = {}
        self._shares: dict[str, float] = {}
        self.https: Chunks | None = None
        self.pace: OwnersPace | None = None
        self.interrupted: Callable[[], bool] = lambda: False
        self.progress = 0.0
        self.received = 0
        self.stalled = ""

    def fetch(self, entries: Sequence[FileEntry], grant: Grant) -> int | None:
        """Fetch the files; return the bytes that came, over all attempts, or None when it was interrupted.

        Raises:
            Rejected: the assignment brings no content key, or one for another device.
            Unavailable, Broken: as `fetch_files`.
        """
        content = grant.content
        if content is None:
            raise Rejected("assignment: expected a content key, got none; upgrade the control plane, then assign again")
        self._begin(grant, entries)
        with Unsealer(content.key, who=self._key.who, key_file=self._key.file) as opener:
            for entry in entries:
                if not self._take_shorter_way(entry, content, opener):
                    return None
            fetched = self._fetch(entries, content.files, content, opener, self._show)
        self.received = self._note.received + fetched.received
        if fetched.complete:
            # what was asked for in vain was a shorter way, and is needed no more
            self.stalled = ""
        return self.received if fetched.complete else None

    def fetch_manifest(self, grant: Grant) -> int | None:
        """Fetch the manifest, one chunk, as `fetch` does; raises `Rejected` too when it is said to be longer."""
        if not 0 < grant.length <= CHUNK_BYTES:
            raise Rejected(f"manifest: expected 1 to {CHUNK_BYTES} bytes, got {grant.length}")
        return self.fetch([manifest_entry(grant)], grant)

    def part(self, entry: FileEntry) -> PartialFile:
        """Return a file, as far as it is here."""
        return PartialFile(self._folder, entry, self._slots.vault)

    def manifest(self, grant: Grant) -> Manifest:
        """Return the manifest that was fetched; its digest is the one that both repositories signed."""
        return codec.decode(Manifest, self.part(manifest_entry(grant)).finish())

    def stage(self, grant: Grant) -> None:
        """Bring what was fetched into the inactive slot; raises `Rejected` where it is not what was signed."""
        entry = manifest_entry(grant)
        data = self.part(entry).finish()
        kept = {each.name: self.part(each).check() for each in codec.decode(Manifest, data).files}
        named = {"release": grant.release, "deployment": grant.deployment}
        self._slots.stage({MANIFEST: data}, kept=kept, samples=grant.samples, **named)

    def measured(self) -> dict[str, float]:
        """Return what the shorter ways brought the deployment whose files are here, where there were any."""
        note = self._read_note()
        if not (note.delta_bytes or note.fallbacks):
            return {}
        return {"delta_bytes": float(note.delta_bytes), "fallbacks": float(note.fallbacks)}

    @property
    def waiting(self) -> str:
        """What the fetch waits for, by the owner's limits; empty when for nothing."""
        return self.pace.waiting if self.pace is not None else ""

    def clean(self) -> None:
        """Drop what was fetched."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._note, self._lengths, self._shares = Note(), {}, {}
        self.progress, self.received, self.stalled = 0.0, 0, ""

    # --- the shorter ways

    def _take_shorter_way(self, entry: FileEntry, content: Content, opener: Opener) -> bool:
        """Make a file without fetching it whole, if that can be; False when interrupted meanwhile."""
        if self.part(entry).progress.complete:
            return True
        if self._copy_from_slot(entry):
            return True
        for delta in self._deltas(entry, content):
            try:
                fetched = self._fetch_delta(entry, delta, content, opener)
                if not fetched.complete:
                    return False
                self._apply(entry, delta)
            except Stalled as error:
                # it may be published yet: this attempt goes another way
                self._fall_back(delta, error, refused=False)
            except (Rejected, Falsified) as error:
                self._fall_back(delta, error, refused=True)
            else:
                return True
        return True

    def _copy_from_slot(self, entry: FileEntry) -> bool:
        name = self._source(entry.sha256)
        if not name:
            return False
        try:
            self.part(entry).make(self._slots.pieces(self._slots.active, name, sha256=entry.sha256))
        except Rejected as error:
            _log.warning("%s: fetched, because what runs is damaged: %s", entry.name, error)
            return False
        return True

    def _deltas(self, entry: FileEntry, content: Content) -> list[Delta]:
        """Return what is shorter than what is still missing of the file, the shortest first."""
        part = self.part(entry).progress
        room = shutil.disk_usage(self._slots.folder("a")).free - self._config.quota_bytes - 2 * entry.length
        most = min(entry.length - part.held_bytes, room, MAX_DELTA_BYTES)
        fit = [
            delta
            for delta in content.deltas
            if delta.file == entry.name
            and delta.length - self.part(_delta_entry(delta)).progress.held_bytes < most
            and delta.sha256 not in self._note.refused
            and self._has_source(delta)
        ]
        return sorted(fit, key=lambda delta: delta.length)

    def _has_source(self, delta: Delta) -> bool:
        if not delta.source:
            return True
        name = self._source(delta.source)
        if not name or self._slots.vault is None:
            return bool(name)
        return (self._slots.folder(self._slots.active) / name).stat().st_size <= MAX_SOURCE_IN_MEMORY_BYTES

    def _source(self, sha256: str) -> str:
        """Return the name of the file with this digest in the active slot; empty when it has none."""
        if not self._slots.active:
            return ""
        try:
            manifest = self._slots.read_manifest(self._slots.active)
        except Rejected:
            return ""
        return next((each.name for each in manifest.files if each.sha256 == sha256), "")

    def _fetch_delta(self, entry: FileEntry, delta: Delta, content: Content, opener: Opener) -> Fetched:
        part = _delta_entry(delta)

        def show(files: Sequence[Progress]) -> None:
            self._share({entry.sha256: files[0].held_bytes / max(delta.length, 1)})
            self.received = self._note.received + files[0].received

        return self._fetch([part], {part.name: delta.sealed}, content, opener, show)

    def _apply(self, entry: FileEntry, delta: Delta) -> None:
        part = self.part(_delta_entry(delta))
        name = self._source(delta.source) if delta.source else ""
        if not name:
            source: Path | None = NO_SOURCE
        else:
            source = self._slots.folder(self._slots.active) / name if self._slots.vault is None else None
        make_from_delta(
            part,
            source or self._slots.pieces(self._slots.active, name, sha256=delta.source),
            self.part(entry),
        )
        self._end_delta(delta, delta_bytes=part.progress.received)

    def _fall_back(self, delta: Delta, why: Exception, *, refused: bool) -> None:
        kind = "delta" if delta.source else "packed form"
        _log.warning("%s: the %s led nowhere, taking another way: %s", delta.file, kind, why)
        note = replace(self._note, fallbacks=self._note.fallbacks + 1)
        if refused:
            self._save(replace(note, refused=(*note.refused, delta.sha256)))
            self._end_delta(delta, delta_bytes=0)
        else:
            self._save(note)

    def _end_delta(self, delta: Delta, *, delta_bytes: int) -> None:
        part = self.part(_delta_entry(delta))
        note = self._note
        self._save(
            replace(note, received=note.received + part.progress.received, delta_bytes=note.delta_bytes + delta_bytes)
        )
        part.drop()

    # --- what they share

    def _fetch(
        self,
        entries: Sequence[FileEntry],
        sealed: dict[str, str],
        content: Content,
        opener: Opener,
        watch: Callable[[Sequence[Progress]], None],
    ) -> Fetched:
        try:
            fetched = fetch_files(
                self._link,
                self._folder,
                entries,
                sealed=sealed,
                opener=opener,
                vault=self._slots.vault,
                timeout_s=self._config.fetch_timeout_s,
                interrupted=self.interrupted,
                https=self.https,
                roads=content.roads,
                pace=self.pace,
                watch=watch,
            )
        except Stalled as error:
            self.stalled = error.published
            raise
        return fetched

    def _begin(self, grant: Grant, entries: Sequence[FileEntry]) -> None:
        note = self._read_note()
        self._note = note if note.deployment == grant.deployment else Note(deployment=grant.deployment)
        files = [self.part(entry).progress for entry in entries]
        if self.pace is not None:
            self.pace.begin(grant.deployment, urgent=grant.rollback, begun=any(each.have for each in files))
        self._lengths = {entry.sha256: entry.length for entry in entries if entry.name != MANIFEST}
        self._shares = {}
        self._show(files)

    def _show(self, files: Sequence[Progress]) -> None:
        self._share({each.entry.sha256: each.held_bytes / max(each.entry.length, 1) for each in files})
        self.received = self._note.received + sum(each.received for each in files)

    def _share(self, shares: Mapping[str, float]) -> None:
        """Note which share of some files is here, and which of all files together."""
        self._shares |= shares
        here = sum(length * self._shares.get(sha256, 0.0) for sha256, length in self._lengths.items())
        self.progress = here / max(sum(self._lengths.values()), 1)

    def _file(self) -> Path:
        return self._folder / "note.json"

    def _read_note(self) -> Note:
        """Return what is remembered; what cannot be read is nothing."""
        try:
            return codec.decode(Note, self._file().read_bytes())
        except (OSError, Rejected):
            return Note()

    def _save(self, note: Note) -> None:
        write_durably(self._file(), codec.encode(note))
        self._note = note


def manifest_entry(grant: Grant) -> FileEntry:
    """Return the manifest of what was granted, as a file of one chunk."""
    return FileEntry(name=MANIFEST, length=grant.length, sha256=grant.manifest, chunks=(grant.manifest,))


def _delta_entry(delta: Delta) -> FileEntry:
    return FileEntry(name="delta", length=delta.length, sha256=delta.sha256, chunks=delta.chunks)
