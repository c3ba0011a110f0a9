"""The fetcher under any order of events: it ends complete or resumable, and never keeps a byte that was not signed."""

import os
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.fetching.fetch import Falsified, Fetched, Stalled, fetch_files
from skerry.delivery.chunks import Flow, Progress, Wanted, next_window, spans
from skerry.delivery.partial import PartialFile
from skerry.errors import Unavailable
from skerry.wire import topics
from skerry.wire.manifest import CHUNK_BYTES, SEALING_BYTES, FileEntry, describe_file

FILES = {
    "model.onnx": random.Random(1).randbytes(3 * CHUNK_BYTES + 17),
    "golden.npz": random.Random(2).randbytes(CHUNK_BYTES),
    "gate.json": b"{}",
}
ENTRIES = [describe_file(name, data) for name, data in FILES.items()]
PUBLISHED = {name: f"{number:064x}" for number, name in enumerate(FILES, 1)}
SEAL = b"s" * SEALING_BYTES


@pytest.fixture(autouse=True, scope="module")
def _no_disk() -> Iterator[None]:
    """What a power cut leaves is not tested here, so nothing waits for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)
        yield


def chunk(name: str, number: int) -> bytes:
    """Return a true chunk."""
    return FILES[name][number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]


class Opener:
    """Opens what begins as a sealed chunk does here."""

    def open(self, sealed: bytes, *, sha256: str, number: int) -> bytes | None:
        """Open a chunk."""
        assert sha256
        assert number >= 0
        return sealed.removeprefix(SEAL) if sealed.startswith(SEAL) else None


GOOD, CORRUPT, EMPTY, OVERSIZED, SHORT, FOREIGN, SHUT, SILENT = range(8)
WINDOW_ENDS = ["goes on", "disconnect", "cancel", "restart"]
EVENTS = st.lists(
    st.tuples(st.lists(st.integers(GOOD, SILENT), min_size=1, max_size=8), st.sampled_from(WINDOW_ENDS)), max_size=25
)


def payload(what: int, topic: str) -> bytes | None:
    """Return what comes on a topic of a chunk; None for nothing."""
    _, published, number = topic.rsplit("/", 2)
    name = next(each for each, sha256 in PUBLISHED.items() if sha256 == published)
    true = chunk(name, int(number))
    return {
        GOOD: SEAL + true,
        CORRUPT: SEAL + bytes([true[0] ^ 1]) + true[1:],
        EMPTY: b"",
        OVERSIZED: SEAL + true + bytes(3 * CHUNK_BYTES),
        SHORT: SEAL + true[:-1],
        FOREIGN: SEAL + chunk("model.onnx", 2),
        SHUT: b"?" + true,
        SILENT: None,
    }[what]


@dataclass
class Script:
    """A broker that does what is written, window by window, and after that is as it should be."""

    windows: list[tuple[list[int], str]]
    look: Callable[[], None]
    held: dict[str, int] = field(default_factory=dict)
    cancelled: bool = False
    asked: list[list[str]] = field(default_factory=list)

    def fetch_retained(self, wanted: Sequence[str], *, timeout_s: float) -> dict[str, bytes]:
        """Return what the script says."""
        assert timeout_s > 0
        self.look()
        self.asked.append(list(wanted))
        for name, held in self.held.items():
            again = {topics.blob(PUBLISHED[name], number) for number in range(8) if held >> number & 1}
            assert not again & set(wanted), "what is held is asked for again"
        whats, end = self.windows.pop(0) if self.windows else ([GOOD], "goes on")
        if end == "disconnect":
            raise Unavailable("cut off")
        if end == "restart":
            # the power goes: whoever fetched is no more
            raise InterruptedError
        self.cancelled = end == "cancel"
        found = {topic: payload(whats[index % len(whats)], topic) for index, topic in enumerate(wanted)}
        return {topic: data for topic, data in found.items() if data is not None}


def check_disk(folder: Path) -> dict[str, int]:
    """Check that every chunk on the disk is the true one or still nothing, and return the bitmaps."""
    held = {}
    for entry in ENTRIES:
        part = PartialFile(folder, entry)
        held[entry.name] = part.progress.have
        data = part.path.read_bytes()
        assert len(data) <= entry.length
        if data == FILES[entry.name]:
            continue
        for number in range(len(entry.chunks)):
            here = data[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
            true = chunk(entry.name, number)
            assert here == true or (not any(here) and not part.progress.holds(number))
    return held


def attempt(broker: Script, folder: Path) -> Fetched | None:
    """Fetch once; None when it was refused, cut off or ended."""
    broker.cancelled = False
    try:
        return fetch_files(
            broker,
            folder,
            ENTRIES,
            sealed=PUBLISHED,
            opener=Opener(),
            timeout_s=1.0,
            interrupted=lambda: broker.cancelled,
        )
    except (Unavailable, Falsified, InterruptedError):
        return None


@settings(max_examples=80, deadline=None)
@given(EVENTS)
def test_any_order_of_any_events_ends_complete_or_resumable(windows: list[tuple[list[int], str]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        held: dict[str, int] = dict.fromkeys(FILES, 0)

        def look() -> None:
            now = check_disk(folder)
            # what is held stays held, whatever comes
            assert all(now[each] & had == had for each, had in held.items())
            held.update(now)

        broker = Script(list(windows), look, held=held)
        # every attempt uses up a window at least, so this ends
        for _ in range(len(windows) + 1):
            fetched = attempt(broker, folder)
            look()
            if fetched is not None and fetched.complete:
                break
            assert not all(PartialFile(folder, entry).progress.complete for entry in ENTRIES) or broker.cancelled

        last = attempt(broker, folder)
        assert last is not None
        assert last.complete
        for entry in ENTRIES:
            assert PartialFile(folder, entry).finish() == FILES[entry.name]


@dataclass
class Unhurried:
    """A pace of a few chunks at once, for so many windows."""

    most_chunks: int
    windows: int = 100
    bytes_spent: int = 0

    def admit(self, interrupted: Callable[[], bool]) -> bool:
        """Count the windows."""
        assert not interrupted()
        self.windows -= 1
        return self.windows >= 0

    def spent(self, size_bytes: int) -> None:
        """Count the bytes."""
        self.bytes_spent += size_bytes


def test_a_chunk_that_is_gone_holds_up_no_other(tmp_path: Path) -> None:
    gone = topics.blob(PUBLISHED["model.onnx"], 0)
    windows: list[list[str]] = []

    class Broker:
        def fetch_retained(self, wanted: Sequence[str], *, timeout_s: float) -> dict[str, bytes]:
            assert timeout_s > 0
            windows.append(list(wanted))
            return {topic: payload(GOOD, topic) or b"" for topic in wanted if topic != gone}

    with pytest.raises(Stalled, match=r"model\.onnx: expected chunk 0, got no answer") as stalled:
        fetch_files(
            Broker(), tmp_path, ENTRIES, sealed=PUBLISHED, opener=Opener(), timeout_s=1.0, pace=Unhurried(most_chunks=2)
        )

    assert stalled.value.published == PUBLISHED["model.onnx"]
    assert [len(window) for window in windows] == [2, 2, 2, 1, 1, 1]
    assert [gone in window for window in windows] == [True, False, False, True, True, True]
    assert [tuple(PartialFile(tmp_path, entry).progress.missing()) for entry in ENTRIES] == [(0,), (), ()]


def test_a_fetch_tells_how_far_it_is_and_stops_for_its_pace(tmp_path: Path) -> None:
    seen: list[float] = []

    def watch(files: Sequence[Progress]) -> None:
        seen.append(sum(each.held_bytes for each in files))

    pace, broker = Unhurried(most_chunks=2, windows=2), Script([], lambda: None)
    fetched = fetch_files(
        broker, tmp_path, ENTRIES, sealed=PUBLISHED, opener=Opener(), timeout_s=1.0, pace=pace, watch=watch
    )

    assert not fetched.complete
    assert fetched.received == pace.bytes_spent == 3 * CHUNK_BYTES + 17 + 4 * SEALING_BYTES
    assert [len(window) for window in broker.asked] == [2, 2]
    assert seen == [2 * CHUNK_BYTES, 3 * CHUNK_BYTES + 17]


def test_windows_shrink_where_they_take_long_and_grow_again() -> None:
    flow = Flow().after(30.0).after(12.0)
    assert flow == Flow(2)
    assert flow.after(5.0) == Flow(2)
    assert flow.after(0.1).after(0.1).after(0.1) == Flow(8)
    assert Flow(1).after(99.0) == Flow(1)


@given(st.sets(st.tuples(st.integers(0, 2), st.integers(0, 12))))
def test_spans_hold_every_chunk_once_and_only_neighbours(asked: set[tuple[int, int]]) -> None:
    wanted = [Wanted("a" * 64, number, f"{blob:064x}", length=CHUNK_BYTES) for blob, number in asked]

    runs = spans(wanted)

    assert sorted(each.topic for run in runs for each in run) == sorted(each.topic for each in wanted)
    for run in runs:
        assert {each.published for each in run} == {run[0].published}
        assert [each.number for each in run] == list(range(run[0].number, run[0].number + len(run)))
        assert all(
            run[0].first_byte + index * (CHUNK_BYTES + SEALING_BYTES) == each.first_byte
            for index, each in enumerate(run)
        )
    assert len(runs) == sum((blob, number - 1) not in asked for blob, number in asked)


@given(st.integers(0, 6 * CHUNK_BYTES), st.integers(0, 63))
def test_held_bytes_count_the_short_last_chunk(length: int, have: int) -> None:
    chunks = -(-length // CHUNK_BYTES)
    entry = FileEntry("f", length, "0" * 64, ("0" * 64,) * chunks)
    progress = Progress(entry, have=have & (1 << chunks) - 1)

    missing = next_window([progress], published={"0" * 64: "f" * 64})
    assert progress.held_bytes + sum(each.length for each in missing) == length


@given(st.lists(st.integers(0, 3 * CHUNK_BYTES), max_size=6), st.booleans())
def test_what_is_made_here_is_judged_like_what_comes(cuts: list[int], spoilt: bool) -> None:
    entry, data = ENTRIES[0], FILES["model.onnx"]
    made = data[:-1] + b"?" if spoilt else data
    edges = [0, *sorted(cuts), len(made)]
    pieces = [made[begin:end] for begin, end in pairwise(edges)]
    with tempfile.TemporaryDirectory() as name:
        part = PartialFile(Path(name), entry)
        if spoilt:
            with pytest.raises(Exception, match="expected the bytes of chunk 3, got others"):
                part.make(pieces)
            assert tuple(part.progress.missing()) == (3,)
        else:
            part.make(pieces)
            assert part.finish() == data
        assert part.progress.received == 0
