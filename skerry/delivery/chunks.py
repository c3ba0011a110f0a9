"""Fetching by chunks, as pure decisions: what to ask for next, and whether to believe what came.

A file is `FileEntry`: its chunks, 64 KiB each, are known by hash, so a chunk is checked before it is written anywhere.
What travels is its sealed form (`sealed`), under a name of its own; only what was opened is judged here.
`Progress` says which chunks of one file are held; the chunks of all files of an artifact are asked for in windows of at
most `WINDOW` explicit topics (never a wildcard: brokers drop retained messages beyond their queues without a word), or
in ranges of the sealed file, in which the chunks follow one another (`spans`).

    window = next_window([Progress(model), Progress(golden)], published=names)     # up to 8 Wanted
    progress, outcome = accept(progress, number, arrival)                          # STORED, or why not

This module does no IO; `partial` keeps the bytes and `agent.fetching.fetch` talks to the broker.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from skerry.wire import topics
from skerry.wire.manifest import CHUNK_BYTES, SEALED_CHUNK_BYTES, SEALING_BYTES, FileEntry

WINDOW = 8
# a window that takes longer than the one is halved, so that a fetch can be called off; one that is shorter is doubled
LONG_WINDOW_S, SHORT_WINDOW_S = 10.0, 2.0


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

    @property
    def held_bytes(self) -> int:
        """How much of the file is held."""
        held = self.have.bit_count() * CHUNK_BYTES
        last = len(self.entry.chunks) - 1
        return held - (CHUNK_BYTES - chunk_length(self.entry, last) if last >= 0 and self.holds(last) else 0)

    def holds(self, number: int) -> bool:
        """Say whether chunk `number` is held."""
        return bool(self.have >> number & 1)

    def missing(self) -> Iterator[int]:
        """Yield the numbers of the chunks still to come, in order."""
        # bit by bit from the lowest: whoever wants eight of a thousand does not pay for a thousand, in every window
        left = ~self.have & (1 << len(self.entry.chunks)) - 1
        while left:
            lowest = left & -left
            yield lowest.bit_length() - 1
            left ^= lowest


@dataclass(frozen=True, slots=True)
class Arrival:
    """One chunk as it came: `received` bytes on the wire, and what was sealed in them; None when they do not open.

    One that was made here, by a delta or from another slot, came in 0 bytes.
    """

    received: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """One chunk to ask for: `number` of the file `sha256`, which is published sealed under `published`."""

    sha256: str
    number: int
    published: str
    length: int

    @property
    def topic(self) -> str:
        """Where it is retained."""
        return topics.blob(self.published, self.number)

    @property
    def first_byte(self) -> int:
        """Where it begins in the sealed file."""
        return self.number * SEALED_CHUNK_BYTES

    @property
    def sealed_length(self) -> int:
        """How many bytes it has there."""
        return self.length + SEALING_BYTES


def next_window(
    files: Iterable[Progress],
    *,
    published: Mapping[str, str],
    size: int = WINDOW,
    unanswered: Collection[tuple[str, int]] = (),
) -> tuple[Wanted, ...]:
    """Return the chunks to ask for next, at most `size`, file by file; empty when nothing is missing.

    `published` says under which SHA-256 the sealed form of each file is to be had, by the SHA-256 of the file. Chunks
    that were asked for in vain, `unanswered` (SHA-256 and number), come last: one that is gone holds up no other.
    """
    first: list[Wanted] = []
    last: list[Wanted] = []
    for progress in files:
        digest = progress.entry.sha256
        for number in progress.missing():
            if len(first) == size:
                return tuple(first)
            in_vain = (digest, number) in unanswered
            if not in_vain or len(last) < size:
                wanted = Wanted(digest, number, published[digest], length=chunk_length(progress.entry, number))
                (last if in_vain else first).append(wanted)
    return tuple([*first, *last][:size])


def spans(wanted: Sequence[Wanted]) -> tuple[tuple[Wanted, ...], ...]:
    """Return the chunks as runs of neighbours in one sealed file, each run in order: a range to ask for at once."""
    runs: list[list[Wanted]] = []
    for each in sorted(wanted, key=lambda one: (one.published, one.number)):
        if runs and (runs[-1][-1].published, runs[-1][-1].number + 1) == (each.published, each.number):
            runs[-1].append(each)
        else:
            runs.append([each])
    return tuple(tuple(run) for run in runs)


def chunk_length(entry: FileEntry, number: int) -> int:
    """Return the length in bytes that chunk `number` must have."""
    return min(CHUNK_BYTES, entry.length - number * CHUNK_BYTES)


def accept(progress: Progress, number: int, arrival: Arrival) -> tuple[Progress, Outcome]:
    """Judge one chunk; only after `Outcome.STORED` may its data be written, at `number * CHUNK_BYTES`."""
    if not 0 <= number < len(progress.entry.chunks):
        return progress, Outcome.UNKNOWN
    if not arrival.received and not arrival.data:
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
class Flow:
    """How many chunks to ask for at once on this link: few where they take long."""

    size: int = WINDOW

    def after(self, took_s: float) -> "Flow":
        """Return the flow after a window that took so long."""
        if took_s > LONG_WINDOW_S:
            return Flow(max(self.size // 2, 1))
        return Flow(min(self.size * 2, WINDOW)) if took_s < SHORT_WINDOW_S else self


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
