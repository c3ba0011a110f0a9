"""One file on its way, on disk: the bytes so far, and beside them the bitmap that says which of them to trust.

The bytes are synced before the bitmap names them, so a power cut costs at most one window of chunks.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from skerry.delivery.checked import add_sum, check_sum
from skerry.delivery.chunks import WINDOW, Arrival, Outcome, Progress, accept
from skerry.delivery.durable import make_folder, sync_folder, write_durably
from skerry.delivery.vault import Vault, check_kept, keep, read_kept, read_pieces, stride
from skerry.errors import Broken, Rejected
from skerry.wire.manifest import CHUNK_BYTES, FileEntry


class PartialFile:
    """The file named by `entry`, growing in `folder` under its digest; sealed where there is a vault."""

    def __init__(self, folder: Path, entry: FileEntry, vault: Vault | None = None) -> None:
        # under another name: what is kept as it is and what is sealed are never taken for each other
        name = f"{entry.sha256}.sealed" if vault else entry.sha256
        self.path = folder / f"{name}.part"
        self._map = folder / f"{name}.map"
        self._vault = vault
        self.progress = Progress(entry)
        make_folder(folder)
        if self._map.exists() and self.path.exists():
            self.progress = _read_map(self._map, entry)
        if not self.path.exists():
            self._begin()

    def _begin(self) -> None:
        """Make the empty file; a bitmap that outlived its bytes in a power cut goes first: it would vouch for these."""
        if self._map.exists():
            self._map.unlink()
            sync_folder(self._map.parent)
        self.path.touch()

    def add(self, chunks: Mapping[int, Arrival]) -> dict[int, Outcome]:
        """Judge and keep the chunks of one window; what is kept is durable when this returns.

        Raises:
            Broken: the disk refused.
        """
        outcomes: dict[int, Outcome] = {}
        progress = self.progress
        try:
            with self.path.open("r+b") as file:
                for number, arrival in chunks.items():
                    progress, outcomes[number] = accept(progress, number, arrival)
                    if outcomes[number] is Outcome.STORED:
                        file.seek(number * stride(self._vault))
                        file.write(keep(self._vault, arrival.data or b"", sha256=progress.entry.sha256, number=number))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise Broken(f"expected to write {self.path}, got: {error.strerror}; check the disk") from error
        self._save(progress)
        return outcomes

    def make(self, pieces: Iterable[bytes]) -> None:
        """Fill the file with what was made on this device, in pieces of any length; each chunk is judged as always.

        Raises:
            Rejected: it is not the file; the chunks that were right are kept.
            Broken: the disk refused.
        """
        window: dict[int, Arrival] = {}
        for number, chunk in enumerate(_regular(pieces, limit=self.progress.entry.length)):
            if not self.progress.holds(number):
                window[number] = Arrival(received=0, data=chunk)
            if len(window) == WINDOW:
                self._add_made(window)
                window = {}
        self._add_made(window)
        if not self.progress.complete:
            raise Rejected(f"{self.progress.entry.name}: expected {self.progress.entry.length} bytes, got fewer")

    def _add_made(self, window: Mapping[int, Arrival]) -> None:
        for number, outcome in self.add(window).items():
            if outcome is not Outcome.STORED:
                raise Rejected(f"{self.progress.entry.name}: expected the bytes of chunk {number}, got others")

    def check(self) -> Path:
        """Return where the whole file is kept once its own digest holds; raises as `finish` does."""
        entry = self.progress.entry
        length = self.path.stat().st_size - len(entry.chunks) * (stride(self._vault) - CHUNK_BYTES)
        if length == entry.length and check_kept(self._vault, self.path, sha256=entry.sha256):
            return self.path
        # every chunk was checked when it came: this is the disk, or chunk hashes that do not make the file
        have = self._still_there()
        spoilt = len(entry.chunks) - have.bit_count()
        self._save(Progress(entry, have=have if spoilt else 0, received=self.progress.received))
        if spoilt:
            raise Broken(f"{entry.name}: expected the chunks that were kept, got {spoilt} other ones from the disk")
        raise Rejected(f"{entry.name}: expected SHA-256 {entry.sha256[:16]} over the whole file, got another")

    def _still_there(self) -> int:
        """Return the bitmap of the chunks that have their hash on the disk."""
        have = 0
        expected = self.progress.entry.chunks
        pieces = read_pieces(self._vault, self.path, sha256=self.progress.entry.sha256)
        for number, (piece, sha256) in enumerate(zip(pieces, expected, strict=False)):
            if piece is not None and hashlib.sha256(piece).hexdigest() == sha256:
                have |= 1 << number
        return have

    def pieces(self) -> Iterator[bytes]:
        """Yield the whole file chunk by chunk; raises `Rejected` where one is no longer what was kept."""
        sha256 = self.progress.entry.sha256
        for piece in read_pieces(self._vault, self.path, sha256=sha256):
            if piece is None:
                raise Rejected(f"{self.progress.entry.name}: expected what was kept, got other bytes")
            yield piece

    def finish(self) -> bytes:
        """Return the whole file once its own digest holds.

        Raises:
            Broken: the disk has spoilt chunks; those are missing again.
            Rejected: every chunk has its hash, and together they are another file: it never was one.
        """
        return read_kept(self._vault, self.check(), sha256=self.progress.entry.sha256) or b""

    def drop(self) -> None:
        """Delete the file and its bitmap."""
        self.path.unlink(missing_ok=True)
        self._map.unlink(missing_ok=True)

    def _save(self, progress: Progress) -> None:
        note = {"have": f"{progress.have:x}", "received": progress.received, "corrupt": progress.corrupt}
        write_durably(self._map, add_sum(json.dumps(note).encode()))
        self.progress = progress


def _regular(pieces: Iterable[bytes], *, limit: int) -> Iterable[bytes]:
    """Yield the same bytes in chunks of 64 KiB, and at most one chunk beyond `limit`."""
    held = bytearray()
    seen = 0
    for piece in pieces:
        held += piece
        while len(held) >= CHUNK_BYTES:
            yield bytes(held[:CHUNK_BYTES])
            del held[:CHUNK_BYTES]
            seen += CHUNK_BYTES
            if seen > limit:
                return
    if held:
        yield bytes(held)


def _read_map(path: Path, entry: FileEntry) -> Progress:
    try:
        note = json.loads(check_sum(path.read_bytes()))
        have = int(note["have"], 16) & (1 << len(entry.chunks)) - 1
        return Progress(entry, have=have, received=int(note["received"]), corrupt=int(note["corrupt"]))
    except (Rejected, ValueError, KeyError, TypeError, OverflowError):
        # a bitmap that cannot be read proves nothing: fetch again; one that is wrong would make a good file a bad one
        return Progress(entry)
