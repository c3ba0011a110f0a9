"""Who died inside a model: a file per process that says, at any moment, inside which artifact it is.

    4096 bytes, mapped   a line that names the format, then records of 128 bytes: a flag, and a manifest's digest
    what follows         what `faulthandler` wrote there, when the process died by a fault

A process holds a lock on its file for as long as it lives; the kernel lets go of it, so a file that can be locked is of
a process that has died, whatever became of its number. That it died inside a model is not enough: who stops a program
with SIGTERM, or the kernel that is out of memory, most often hits it there too, and no model is at fault. So a death
counts only when Python's fault handler wrote down that a fault ended it (SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT).
Where a program has turned that handler on for itself, it keeps it, and a death inside a model is said in the log alone.
"""

import contextlib
import faulthandler
import fcntl
import logging
import mmap
import os
import re
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

_log = logging.getLogger("skerry.model")
FORMAT = b"skerry-marker-1\n"
_HEAD_BYTES = 4096
_RECORD_BYTES = 128
_RECORDS = range(_RECORD_BYTES, _HEAD_BYTES, _RECORD_BYTES)
_TRACE_BYTES = 4096
_KEPT = 8
_FAULT = re.compile(rb"Fatal Python error: ([^\n]{1,100})")
# where the thread that died was: in the call of `loaded`, or in one of the runtime's own, which has no frames
_OURS = re.compile(rb'skerry/local/loaded\.py", line \d+ in |<no Python frame>')


@dataclass(frozen=True, slots=True)
class Crash:
    """A process that died by a fault inside an artifact; `manifest` is its digest."""

    manifest: str
    reason: str


class Inside:
    """One artifact's record in a marker; `enter` and `leave` may be called from several threads."""

    __slots__ = ("_at", "_count", "_lock", "_map")

    def __init__(self, mapped: mmap.mmap | bytearray, at: int) -> None:
        self._map = mapped
        self._at = at
        self._count = 0
        self._lock = threading.Lock()

    def enter(self) -> None:
        """A thread goes into the runtime."""
        with self._lock:
            self._count += 1
            self._map[self._at] = 1

    def leave(self) -> None:
        """A thread came back."""
        with self._lock:
            self._count -= 1
            if not self._count:
                self._map[self._at] = 0


class Marker:
    """This process's marker in one folder; `Marker.of` shares it among the models that run here."""

    _all: ClassVar[dict[Path, "Marker"]] = {}
    # one that is taken again: a model that is collected while its thread holds it is forgotten then and there
    _all_lock: ClassVar[contextlib.AbstractContextManager[bool]] = threading.RLock()
    # where the fault handler writes, once it writes to a file of ours; it is never closed under it
    _trace: ClassVar[int | None] = None

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o770, exist_ok=True)
        self._folder = folder
        self._holders = 0
        self.path = folder / f"{os.getpid()}-{secrets.token_hex(4)}.marker"
        temporary = self.path.with_suffix(".new")
        self._file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o660)
        try:
            os.ftruncate(self._file, _HEAD_BYTES)
            self._map = mmap.mmap(self._file, _HEAD_BYTES)
            self._map[: len(FORMAT)] = FORMAT
            os.lseek(self._file, 0, os.SEEK_END)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            # locked before it has the name by which others find it
            temporary.rename(self.path)
        except OSError:
            temporary.unlink(missing_ok=True)
            os.close(self._file)
            raise
        self._free = list(reversed(_RECORDS))
        self._trace_here()

    def _trace_here(self) -> None:
        if Marker._trace is None and faulthandler.is_enabled():
            return
        before, Marker._trace = Marker._trace, self._file
        faulthandler.enable(self._file, all_threads=False)
        if before is not None and before not in self._files():
            os.close(before)

    @classmethod
    def of(cls, folder: Path) -> "Marker | None":
        """Return this process's marker in a folder; None, and a line in the log, where it cannot be written."""
        with cls._all_lock:
            marker = cls._all.get(folder)
            if marker is None:
                try:
                    marker = cls._all[folder] = cls(folder)
                except OSError as error:
                    _log.warning("a crash inside the model could not be attributed: %s: %s", folder, error.strerror)
                    return None
            marker._holders += 1
            return marker

    def record(self, manifest: str) -> Inside:
        """Return a record for an artifact; one that nobody reads when there is no more room."""
        with self._all_lock:
            if not self._free:
                return Inside(bytearray(1), 0)
            at = self._free.pop()
            self._map[at : at + _RECORD_BYTES] = manifest.encode()[:64].rjust(65, b"\0").ljust(_RECORD_BYTES, b"\0")
            return Inside(self._map, at)

    def forget(self, record: Inside) -> None:
        """Take a record back; nobody is inside any more, nor will be."""
        with self._all_lock:
            if record._map is self._map:  # noqa: SLF001 -- they belong together
                self._free.append(record._at)  # noqa: SLF001 -- as above

    def close(self) -> None:
        """Remove the file with its last holder; the mapping lives on for whoever is still inside."""
        with self._all_lock:
            self._holders -= 1
            if self._holders:
                return
            self._all.pop(self._folder, None)
            with contextlib.suppress(OSError):
                self.path.unlink()
            if self._file != Marker._trace:
                os.close(self._file)

    @classmethod
    def _files(cls) -> set[int]:
        return {marker._file for marker in cls._all.values()}  # noqa: SLF001 -- its own class

    @classmethod
    def forget_parents(cls) -> None:
        """In a forked child: let go of the parent's markers, whose locks it would hold, and leave its own death out."""
        descriptors = cls._files()
        if cls._trace is not None:
            faulthandler.disable()
            descriptors.add(cls._trace)
        for descriptor in descriptors:
            os.close(descriptor)
        cls._trace = None
        cls._all = {}
        cls._all_lock = threading.RLock()


os.register_at_fork(after_in_child=Marker.forget_parents)


def sweep(folder: Path, tell: Callable[[Crash], bool]) -> None:
    """Tell of each process that died inside a model, and remove the markers of the dead.

    What `tell` did not get rid of (False) is kept for the next time, the first few of it.
    """
    kept = 0
    # where no marker can be removed, who has died would be told of at every opening
    for path in sorted(folder.glob("*.marker")) if folder.is_dir() and os.access(folder, os.W_OK) else []:
        with contextlib.suppress(OSError), path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # alive
            crashes = read_crashes(path.name, file.read(_HEAD_BYTES + _TRACE_BYTES))
            heard = [tell(crash) for crash in crashes]
            if all(heard) or kept == _KEPT:
                path.unlink(missing_ok=True)
            else:
                kept += 1


def read_crashes(name: str, data: bytes) -> list[Crash]:
    """Return what a dead process's marker says; two models that threads were inside are both suspects."""
    head, trace = data[:_HEAD_BYTES], data[_HEAD_BYTES:]
    if not head.startswith(FORMAT) or len(head) < _HEAD_BYTES:
        return []
    manifests = sorted({_digest(head, at) for at in _RECORDS if head[at]} - {""})
    fault = _FAULT.search(trace)
    pid = name.partition("-")[0]
    if manifests and (fault is None or not _OURS.search(trace)):
        _log.info("process %s ended while inside a model, and not by a fault of it that is known", pid)
        return []
    # what a fault handler wrote is ASCII; anything else in it was not written by one
    why = fault[1].decode("ascii", "replace") if fault else ""
    return [Crash(manifest, f"process {pid} died inside the model: {why}") for manifest in manifests]


def _digest(head: bytes, at: int) -> str:
    text = head[at + 1 : at + 65].decode("ascii", "replace")
    return text if re.fullmatch(r"[0-9a-f]{64}", text) else ""
