"""Turns the calls of a program into operations on the files of one folder, and into what it published meanwhile.

A call that touches the folder and is none of the ones below is an `UnreadableTraceError`. `-shm` files are left out:
SQLite rebuilds them after a crash, and what is in them is written through a mapping that no trace sees; so are sockets.
"""

import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.power.mqtt import PublishReader
from tests.power.strace import Call, UnreadableTraceError, read_descriptor, read_string

END = -1
VOLATILE = ("-shm", ".sock")
_PATHS = re.compile(r"<[^>]*>")
_STRINGS = re.compile(r'"(?:\\x[0-9a-f]{2})*"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What happened to a path, between which lines of the recording, and when (seconds since 1970)."""

    began: int
    ended: int
    time: float
    path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Open(Operation):
    """A file was opened; made if it was not there, emptied if `truncate`."""

    truncate: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Write(Operation):
    """Bytes at an offset; `END` appends."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize(Operation):
    """A file has another length."""

    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sync(Operation):
    """A file, or a folder's names, reached the disk, as far as they were written when this began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rename(Operation):
    """A name moved, over another one if that was there."""

    to: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove(Operation):
    """A file or an empty folder lost its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Make(Operation):
    """A folder, or with `target` a symbolic link, got a name."""

    target: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent(Operation):
    """The program handed a message to the network: what is in it, others may know from now on; no path."""

    topic: str
    payload: bytes


@dataclass
class _Reader:
    root: str
    places: dict[tuple[int, int], int] = field(default_factory=dict)
    appending: set[tuple[int, int]] = field(default_factory=set)
    sockets: dict[str, PublishReader] = field(default_factory=dict)

    def inside(self, path: str) -> str | None:
        """Return a path as the folder knows it ("" for the folder itself), or None for one that does not concern us."""
        if path != self.root and not path.startswith(f"{self.root}/"):
            return None
        path = path[len(self.root) + 1 :]
        return None if path.endswith(VOLATILE) else path

    def named(self, arg: str, folder: str = "") -> str | None:
        """Return the path that a string argument names, beside an open folder if there is one."""
        return self.inside(posixpath.normpath(posixpath.join(folder, read_string(arg).decode())))

    def read(self, call: Call) -> Iterable[Operation]:
        """Return what a call that succeeded did to the folder."""
        reader = _READERS.get(call.name)
        if reader is not None:
            return reader(self, call)
        self.expect_elsewhere(call)
        return ()

    def expect_elsewhere(self, call: Call) -> None:
        """Raise unless a call that nobody here understands has nothing to do with the folder."""
        # descriptors stand inside of structures too
        paths = [read_descriptor(f"0{each}")[1] for arg in call.args for each in _PATHS.findall(arg)]
        paths += [read_string(each).decode(errors="replace") for arg in call.args for each in _STRINGS.findall(arg)]
        if any(self.inside(path) is not None for path in paths) or call.name == "io_uring_setup":
            raise UnreadableTraceError(
                f"line {call.ended}: expected an operation that the model knows, got {call.name}"
            )


def read_operations(calls: Iterable[Call], root: str) -> Iterator[Operation]:
    """Yield what was done to the folder `root` (an absolute path without links in it)."""
    reader = _Reader(root)
    for call in calls:
        if not call.failed:
            yield from reader.read(call)


def _when(call: Call) -> dict[str, Any]:
    return {"began": call.began, "ended": call.ended, "time": call.time}


def _open(reader: _Reader, call: Call) -> Iterable[Operation]:
    flags = set(call.args[2 if call.name == "openat" else 1].split("|"))
    # behind the new descriptor stands the real path, whatever links led there
    path = reader.inside(read_descriptor(f"{call.result}{call.tail.strip()}")[1])
    if path is None or flags & {"O_DIRECTORY", "O_TMPFILE"}:
        return
    if flags & {"O_SYNC", "O_DSYNC", "O_DIRECT"}:
        raise UnreadableTraceError(f"line {call.ended}: expected plain writes to {path}, got {flags}")
    place = (call.thread, call.result)
    reader.places[place] = 0
    reader.appending.discard(place)
    if "O_APPEND" in flags:
        reader.appending.add(place)
    if flags & {"O_CREAT", "O_TRUNC"}:
        yield Open(path=path, truncate="O_TRUNC" in flags, **_when(call))


def _close(reader: _Reader, call: Call) -> Iterable[Operation]:
    number, path = read_descriptor(call.args[0])
    reader.places.pop((call.thread, number), None)
    reader.sockets.pop(path, None)
    return ()


def _seek(reader: _Reader, call: Call) -> Iterable[Operation]:
    number, path = read_descriptor(call.args[0])
    if reader.inside(path) is not None:
        reader.places[call.thread, number] = call.result
    return ()


def _write(reader: _Reader, call: Call) -> Iterable[Operation]:
    number, path = read_descriptor(call.args[0])
    inside = reader.inside(path)
    if inside is None:
        return
    place = (call.thread, number)
    if place not in reader.places:
        raise UnreadableTraceError(f"line {call.ended}: expected to know where {path} is written, got no open of it")
    data = read_string(call.args[1])[: call.result]
    offset = END if place in reader.appending else reader.places[place]
    reader.places[place] += len(data)
    yield Write(path=inside, offset=offset, data=data, **_when(call))


def _write_at(reader: _Reader, call: Call) -> Iterable[Operation]:
    inside = reader.inside(read_descriptor(call.args[0])[1])
    if inside is not None:
        data = read_string(call.args[1])[: call.result]
        yield Write(path=inside, offset=int(call.args[3]), data=data, **_when(call))


def _resize(reader: _Reader, call: Call) -> Iterable[Operation]:
    inside = reader.inside(read_descriptor(call.args[0])[1])
    if inside is not None:
        yield Resize(path=inside, length=int(call.args[1]), **_when(call))


def _sync(reader: _Reader, call: Call) -> Iterable[Operation]:
    inside = reader.inside(read_descriptor(call.args[0])[1])
    if inside is not None:
        yield Sync(path=inside, **_when(call))


def _rename(reader: _Reader, call: Call) -> Iterable[Operation]:
    beside = call.name != "rename"
    if beside:
        (_, here), (_, there) = read_descriptor(call.args[0]), read_descriptor(call.args[2])
        path, to = reader.named(call.args[1], here), reader.named(call.args[3], there)
    else:
        path, to = reader.named(call.args[0]), reader.named(call.args[1])
    if (path is None) != (to is None) or (call.name == "renameat2" and call.args[4] != "0"):
        raise UnreadableTraceError(f"line {call.ended}: expected a plain rename within the folder, got {call.args}")
    if path is not None and to is not None:
        yield Rename(path=path, to=to, **_when(call))


def _remove(reader: _Reader, call: Call) -> Iterable[Operation]:
    if call.name == "unlinkat":
        path = reader.named(call.args[1], read_descriptor(call.args[0])[1])
    else:
        path = reader.named(call.args[0])
    if path is not None:
        yield Remove(path=path, **_when(call))


def _make(reader: _Reader, call: Call) -> Iterable[Operation]:
    path = reader.named(call.args[0]) if call.name == "mkdir" else None
    if call.name == "mkdirat":
        path = reader.named(call.args[1], read_descriptor(call.args[0])[1])
    if path is not None:
        yield Make(path=path, **_when(call))


def _link(reader: _Reader, call: Call) -> Iterable[Operation]:
    path = reader.named(call.args[1])
    if path is not None:
        yield Make(path=path, target=read_string(call.args[0]).decode(), **_when(call))


def _map(reader: _Reader, call: Call) -> Iterable[Operation]:
    path = reader.inside(read_descriptor(call.args[4])[1])
    if path is not None and "PROT_WRITE" in call.args[2] and "MAP_SHARED" in call.args[3]:
        raise UnreadableTraceError(f"line {call.ended}: expected no writes through memory, got a mapping of {path}")
    return ()


def _send(reader: _Reader, call: Call) -> Iterable[Operation]:
    path = read_descriptor(call.args[0])[1]
    stream = reader.sockets.setdefault(path, PublishReader())
    for topic, payload in stream.feed(read_string(call.args[1])[: call.result]):
        yield Sent(topic=topic, payload=payload, **_when(call))


_READERS = {
    **dict.fromkeys(("open", "openat", "creat"), _open),
    **dict.fromkeys(("fsync", "fdatasync"), _sync),
    **dict.fromkeys(("rename", "renameat", "renameat2"), _rename),
    **dict.fromkeys(("unlink", "unlinkat", "rmdir"), _remove),
    **dict.fromkeys(("mkdir", "mkdirat"), _make),
    "close": _close,
    "lseek": _seek,
    "write": _write,
    "pwrite64": _write_at,
    "ftruncate": _resize,
    "symlink": _link,
    "mmap": _map,
    "sendto": _send,
}
