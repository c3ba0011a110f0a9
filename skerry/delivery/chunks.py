"""Fetching by chunks, as pure decisions: what to ask for next, and whether to believe what came.

A file is `FileEntry`: its chunks, 64 KiB each, are known by hash, so a chunk is checked before it is written anywhere.
What travels is its sealed form (`sealed`), under a name of its own; only what was opened is judged here.
`Progress` says which chunks of one file are held; the chunks of all files of an artifact are asked for in windows of at
most `WINDOW` explicit topics (never a wildcard: brokers drop retained messages beyond their queues without a word).

    window = next_window([Progress(model), Progress(golden)], published=names)     # up to 8 Wanted
    progress, outcome = accept(progress, number, arrival)                          # STORED, or why not

This module does no IO; `partial` keeps the bytes and `agent.fetch` talks to the broker.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from skerry.wire import topics
from skerry.wire.manifest import CHUNK_BYTES, FileEntry

WINDOW = 8


class Outcome(Enum):
    """What became of a chunk that arrived."""

    STORED = "stored"  # new and true: write it
    REPEATED = "repeated"  # held already
    EMPTY = "empty"  # an empty retained message: somebody deleted the chunk, it counts as missing
    CORRUPT = "corrupt"  # does not open, or not to the bytes that the manifest names
    UNKNOWN = "unknown"  # the file has no such chunk


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one file is: `have` is a bitmap (bit N for chunk N), `received` the payload bytes that really came."""

    entry: FileEntry
    have: int = 0
    received: int = 0
    corrupt: int = 0

    @property
    def complete(self) -> bool:
        """True when every chunk is held."""
        return self.have == (1 << len(self.entry.chunks)) - 1

    def holds(self, number: int) -> bool:
        """Say whether chunk `number` is held."""
        return bool(self.have >> number & 1)

    def missing(self) -> tuple[int, ...]:
        """Return the numbers of the chunks still to come, in order."""
        return tuple(number for number in range(len(self.entry.chunks)) if not self.holds(number))


@dataclass(frozen=True, slots=True)
class Arrival:
    """One chunk as it came: `received` bytes on the wire, and what was sealed in them; None when they do not open."""

    received: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """One chunk to ask for: of which file, which number, on which topic."""

    sha256: str
    number: int
    topic: str


def next_window(files: Iterable[Progress], *, published: Mapping[str, str], size: int = WINDOW) -> tuple[Wanted, ...]:
    """Return the chunks to ask for next, at most `size`, file by file; empty when nothing is missing.

    `published` says under which SHA-256 the sealed form of each file is to be had, by the SHA-256 of the file.
    """
    window: list[Wanted] = []
    for progress in files:
        for number in progress.missing():
            if len(window) == size:
                return tuple(window)
            digest = progress.entry.sha256
            window.append(Wanted(sha256=digest, number=number, topic=topics.blob(published[digest], number)))
    return tuple(window)


def chunk_length(entry: FileEntry, number: int) -> int:
    """Return the length in bytes that chunk `number` must have."""
    return min(CHUNK_BYTES, entry.length - number * CHUNK_BYTES)


def accept(progress: Progress, number: int, arrival: Arrival) -> tuple[Progress, Outcome]:
    """Judge one chunk; only after `Outcome.STORED` may its data be written, at `number * CHUNK_BYTES`."""
    if not 0 <= number < len(progress.entry.chunks):
        return progress, Outcome.UNKNOWN
    if not arrival.received:
        return progress, Outcome.EMPTY
    counted = replace(progress, received=progress.received + arrival.received)
    if progress.holds(number):
        return counted, Outcome.REPEATED
    data = arrival.data or b""
    right_length = len(data) == chunk_length(progress.entry, number)
    if not right_length or hashlib.sha256(data).hexdigest() != progress.entry.chunks[number]:
        return replace(counted, corrupt=progress.corrupt + 1), Outcome.CORRUPT
    return replace(counted, have=progress.have | 1 << number), Outcome.STORED


@dataclass(frozen=True, slots=True)
class Stall:
    """How often the windows brought nothing: `silent` windows without an answer, `corrupt` ones with lies alone."""

    silent: int = 0
    corrupt: int = 0

    def after(self, outcomes: Mapping[Wanted, Outcome]) -> "Stall":
        """Return the stall after a window; any progress ends it."""
        if Outcome.STORED in outcomes.values():
            return Stall()
        if Outcome.CORRUPT in outcomes.values():
            return replace(self, corrupt=self.corrupt + 1)
        return replace(self, silent=self.silent + 1)
