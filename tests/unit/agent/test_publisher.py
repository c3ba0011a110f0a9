"""Emptying the outbox: a bounded window, back-pressure, the newest first, and no flood after an outage."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.telling.outbox import OutboxFile
from agent.telling.publisher import BACKLOG_JITTER_S, MAX_IN_FLIGHT, NEWEST_ROWS, RESUME_JITTER_S, Publisher
from control_plane.outbox_mark import Mark, as_ranges, take
from skerry.errors import Unavailable
from skerry.wire import codec
from skerry.wire.batch import MAGIC, decode_batch
from skerry.wire.messages import Ack, Outbox

WINDOW = 8


@dataclass
class Shore:
    """Hears what is published, and answers when it is asked to; an older one knows of no window."""

    window: int = WINDOW
    connected: bool = True
    said: list[bytes] = field(default_factory=list)
    refuses: bool = False
    mark: Mark = field(default_factory=Mark)

    def publish(self, name: str, payload: bytes, *, retain: bool = False) -> None:
        assert (name, retain) == ("outbox", False)
        if self.refuses:
            raise Unavailable("no connection")
        self.said.append(payload)

    def heard(self) -> list[Outbox]:
        """Return the batches since the last look."""
        batches = [decode_batch(payload) for payload in self.said]
        self.said.clear()
        return batches

    def answer(self, batch: Outbox) -> bytes:
        numbers = [entry.sequence for entry in batch.entries]
        for number in numbers:
            self.mark = take(self.mark, number)
        ranges = as_ranges(number for number in numbers if number > self.mark.up_to) if self.window else ()
        return codec.encode(Ack(epoch=batch.epoch, up_to=self.mark.up_to, ranges=ranges, window=self.window))


@dataclass
class Clock:
    """A clock that a test moves."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outbox(tmp_path: Path) -> OutboxFile:
    return OutboxFile(tmp_path / "outbox.db")


def fill(outbox: OutboxFile, rows: int) -> None:
    outbox._db.execute("pragma synchronous = off")
    for number in range(rows):
        outbox.put("window", b"%d " % number * 100, event_time=1.0)


def make(outbox: OutboxFile, clock: Callable[[], float], *, rate: int = 0) -> Publisher:
    return Publisher(outbox, ack_timeout_s=5.0, rate_bytes_s=lambda: rate, now=clock, jitter=lambda _least, most: most)


def acquainted(outbox: OutboxFile, clock: Clock, shore: Shore, *, rate: int = 0) -> Publisher:
    """Return a publisher whose control plane has acknowledged a first row."""
    publisher = make(outbox, clock, rate=rate)
    outbox.put("window", b"first", event_time=1.0)
    publisher.connected(again=False)
    publisher.tick(shore)
    publisher.acknowledged(shore.answer(*shore.heard()))
    publisher.tick(shore)
    return publisher


def numbers(batches: list[Outbox]) -> list[int]:
    return [entry.sequence for batch in batches for entry in batch.entries]


def test_to_an_older_control_plane_one_batch_is_said_at_a_time_in_order_and_in_plain_json(
    outbox: OutboxFile, clock: Clock
) -> None:
    shore = Shore(window=0)
    publisher = make(outbox, clock)
    fill(outbox, 80)
    publisher.connected(again=False)
    for first in (1, 33, 65):
        publisher.tick(shore)
        publisher.tick(shore)
        (payload,) = shore.said
        assert payload.startswith(b"{")
        (batch,) = shore.heard()
        assert batch.entries[0].sequence == first
        publisher.acknowledged(shore.answer(batch))
    publisher.tick(shore)
    assert (outbox.depth, shore.said) == (0, [])


def test_each_answer_lets_one_more_batch_go_up_to_what_the_control_plane_takes(
    outbox: OutboxFile, clock: Clock
) -> None:
    shore = Shore(window=3)
    publisher = acquainted(outbox, clock, shore)
    fill(outbox, 32 * 10)
    counts = []
    waiting: list[Outbox] = []
    for _ in range(4):
        publisher.tick(shore)
        waiting += shore.heard()
        counts.append(len(waiting))
        publisher.acknowledged(shore.answer(waiting.pop(0)))
    assert counts == [2, 3, 3, 3]
    assert len(set(numbers(waiting))) == 2 * 32


def test_no_control_plane_gets_more_at_once_than_the_device_may_hold(outbox: OutboxFile, clock: Clock) -> None:
    shore = Shore(window=1000)
    publisher = acquainted(outbox, clock, shore)
    fill(outbox, 32 * 30)
    waiting: list[Outbox] = []
    for _ in range(20):
        publisher.tick(shore)
        waiting += shore.heard()
        publisher.acknowledged(shore.answer(waiting.pop(0)))
    publisher.tick(shore)
    assert len(waiting) + len(shore.heard()) == MAX_IN_FLIGHT


def test_after_an_outage_the_newest_rows_come_first_packed_and_then_the_oldest(
    outbox: OutboxFile, clock: Clock
) -> None:
    shore = Shore()
    publisher = acquainted(outbox, clock, shore)
    fill(outbox, 60)

    publisher.connected(again=True)
    publisher.tick(shore)
    assert shore.said == []
    clock.now += RESUME_JITTER_S
    publisher.tick(shore)
    assert shore.said[0].startswith(MAGIC)
    (newest,) = shore.heard()
    assert numbers([newest]) == list(range(62 - NEWEST_ROWS, 62))
    publisher.acknowledged(shore.answer(newest))

    publisher.tick(shore)
    assert shore.said == []
    clock.now += BACKLOG_JITTER_S
    publisher.tick(shore)
    assert numbers(shore.heard()) == list(range(2, 62 - NEWEST_ROWS))


def test_a_backlog_is_told_at_the_limited_rate_and_what_comes_after_it_at_once(
    outbox: OutboxFile, clock: Clock
) -> None:
    shore = Shore()
    publisher = acquainted(outbox, clock, shore, rate=1000)
    fill(outbox, 32 * 20)
    publisher.connected(again=True)
    began, sizes = clock.now, 0
    while outbox.depth:
        clock.now += 0.25
        publisher.tick(shore)
        sizes += sum(map(len, shore.said))
        for batch in shore.heard():
            publisher.acknowledged(shore.answer(batch))
    jitters = RESUME_JITTER_S + BACKLOG_JITTER_S
    assert 0.8 * sizes / 1000 < clock.now - began < 1.2 * sizes / 1000 + jitters

    clock.now += 5.0
    publisher.tick(shore)
    fill(outbox, 64)
    publisher.tick(shore)
    assert len(shore.heard()) == 2


def test_silence_leads_back_to_one_batch_at_a_time_later_and_later(outbox: OutboxFile, clock: Clock) -> None:
    shore = Shore()
    publisher = acquainted(outbox, clock, shore)
    fill(outbox, 32 * 10)
    publisher.tick(shore)
    assert len(shore.heard()) == 2
    pauses, forms, last = [], [], clock.now
    for _ in range(400):
        clock.now += 1.0
        publisher.tick(shore)
        if shore.said:
            forms.append(shore.said[0].startswith(MAGIC))
            assert numbers(shore.heard()) == list(range(2, 34))
            pauses.append(round(clock.now - last))
            last = clock.now
    assert pauses[:4] == [7, 13, 25, 50]
    assert set(pauses[4:]) == {75}
    # it may be an older one by now: nothing is said that such a one could not read
    assert forms == [True, *[False] * (len(forms) - 1)]


def test_an_answer_that_comes_late_is_an_answer(outbox: OutboxFile, clock: Clock) -> None:
    shore = Shore()
    publisher = acquainted(outbox, clock, shore)
    fill(outbox, 64)
    publisher.tick(shore)
    first, second = shore.heard()
    clock.now += 10.0
    publisher.tick(shore)
    assert numbers(shore.heard()) == numbers([first])

    publisher.acknowledged(shore.answer(second))
    publisher.acknowledged(shore.answer(first))

    assert outbox.depth == 0


def test_a_link_that_refuses_is_asked_again_with_the_same(outbox: OutboxFile, clock: Clock) -> None:
    shore = Shore(refuses=True)
    publisher = make(outbox, clock)
    fill(outbox, 3)
    publisher.connected(again=False)
    publisher.tick(shore)
    shore.refuses = False
    publisher.tick(shore)
    assert numbers(shore.heard()) == [1, 2, 3]


def test_the_window_is_remembered_over_a_restart(outbox: OutboxFile, clock: Clock) -> None:
    shore = Shore()
    acquainted(outbox, clock, shore)
    fill(outbox, 20)
    publisher = make(outbox, clock)
    publisher.connected(again=False)
    publisher.tick(shore)
    assert numbers(shore.heard()) == list(range(22 - NEWEST_ROWS, 22))


def test_what_is_no_acknowledgement_is_left_alone(outbox: OutboxFile, clock: Clock) -> None:
    publisher = make(outbox, clock)
    fill(outbox, 1)
    publisher.acknowledged(b"{")
    publisher.acknowledged(b'{"epoch": "ab", "up_to": 1, "ranges": [[3, 1]]}')
    assert outbox.depth == 1
