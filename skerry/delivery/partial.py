"""One file on its way, on disk: the bytes so far, and beside them the bitmap that says which of them to trust.

The bytes are synced before the bitmap names them, so a power cut costs at most one window of chunks.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from skerry.delivery.chunks import Arrival, Outcome, Progress, accept
from skerry.delivery.durable import write_durably
from skerry.delivery.vault import Vault, keep, read_kept, stride
from skerry.errors import Broken, Rejected
from skerry.wire.manifest import FileEntry


class PartialFile:
    """The file named by `entry`, growing in `folder` under its digest; sealed where there is a vault."""

    def __init__(self, folder: Path, entry: FileEntry, vault: Vault | None = None) -> None:
        # under another name: what is kept as it is and what is sealed are never taken for each other
        name = f"{entry.sha256}.sealed" if vault else entry.sha256
        self.path = folder / f"{name}.part"
        self._map = folder / f"{name}.map"
        self._vault = vault
        self.progress = Progress(entry)
        folder.mkdir(parents=True, exist_ok=True)
        if self._map.exists() and self.path.exists():
            self.progress = _read_map(self._map, entry)
        if not self.path.exists():
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

    def finish(self) -> bytes:
        """Return the whole file once its own digest holds; raises `Rejected`, and starts anew, when it does not."""
        entry = self.progress.entry
        data = read_kept(self._vault, self.path, sha256=entry.sha256) or b""
        if len(data) != entry.length or hashlib.sha256(data).hexdigest() != entry.sha256:
            # every chunk was checked when it came: this is the disk, or chunk hashes that do not make the file
            self._save(Progress(entry, received=self.progress.received))
            raise Rejected(f"{entry.name}: expected SHA-256 {entry.sha256[:16]} over the whole file, got another")
        return data

    def _save(self, progress: Progress) -> None:
        note = {"have": f"{progress.have:x}", "received": progress.received, "corrupt": progress.corrupt}
        write_durably(self._map, json.dumps(note).encode())
        self.progress = progress


def _read_map(path: Path, entry: FileEntry) -> Progress:
    try:
        note = json.loads(path.read_bytes())
        have = int(note["have"], 16) & (1 << len(entry.chunks)) - 1
        return Progress(entry, have=have, received=int(note["received"]), corrupt=int(note["corrupt"]))
    except (ValueError, KeyError, TypeError):
        # a bitmap that cannot be read proves nothing: fetch again
        return Progress(entry)
