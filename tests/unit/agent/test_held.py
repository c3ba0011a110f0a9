"""What the disk would not take: held in order, bounded, stored a few at a time, and counted where it was given up."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.inference.held import AT_ONCE, MOST_BYTES, REASON, RETRY_S, Held
from agent.telling.outbox import OutboxFile
from skerry.errors import Broken
from skerry.wire import codec
from skerry.wire.messages import Gap

MANIFEST = "ab" * 32
REPORT = b"r" * 400


class Bench:
    """An outbox on a disk that refuses at will, and a clock."""

    def __init__(self, folder: Path) -> None:
        self.outbox = OutboxFile(folder / "outbox.db")
        self.refuses = False
        self.asked = 0
        self.now = 0.0
        self.number = 0
        self.held = Held(self.outbox, clock=lambda: self.now)
        self._write = self.outbox._write
        vars(self.outbox)["_write"] = self._write_or_refuse

    def _write_or_refuse(self, work: Callable[[], object]) -> object:
        self.asked += 1
        if self.refuses:
            raise Broken("the disk is full")
        return self._write(work)

    def close_windows(self, count: int) -> None:
        for _ in range(count):
            self.held.close_window(MANIFEST, REPORT, number=self.number, event_clock=float(self.number))
            self.number += 1

    def rows(self) -> list[tuple[str, int]]:
        """Return (kind, the window's number or how many a gap stands for) in their order."""
        found = self.outbox._db.execute("select kind, event_time, body from outbox order by sequence").fetchall()
        return [(kind, codec.decode(Gap, body).count if kind == "gap" else int(time)) for kind, time, body in found]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.outbox.close()


def test_a_disk_that_refused_is_spared_for_a_while(bench: Bench) -> None:
    bench.refuses = True
    for _ in range(100):
        bench.held.save_open(MANIFEST, b"body", number=0, event_clock=1.0)
    assert (bench.asked, bench.held.problem) == (1, "the disk is full")

    bench.now += RETRY_S
    bench.refuses = False
    bench.held.save_open(MANIFEST, b"body", number=0, event_clock=1.0)
    assert (bench.held.problem, bench.outbox.open_window(MANIFEST).body) == ("", b"body")


def test_what_was_held_is_stored_a_few_at_a_time_and_before_what_is_newer(bench: Bench) -> None:
    bench.refuses = True
    bench.close_windows(20)
    bench.now += RETRY_S
    bench.refuses = False

    bench.held.save_open(MANIFEST, b"open", number=20, event_clock=1.0)
    assert bench.rows() == [("window", number) for number in range(AT_ONCE)]
    assert bench.outbox.open_window(MANIFEST).body == b""
    bench.close_windows(2)
    bench.held.save_open(MANIFEST, b"open", number=22, event_clock=1.0)

    assert bench.rows() == [("window", number) for number in range(22)]
    assert (bench.outbox.open_window(MANIFEST).number, bench.outbox.open_window(MANIFEST).body) == (22, b"open")


def test_what_is_given_up_is_the_oldest_and_is_counted(bench: Bench) -> None:
    bench.refuses = True
    kept = MOST_BYTES // len(REPORT)
    bench.close_windows(kept + 30)
    for _ in range(3):
        bench.held.put_sample(b"sample", event_time=1.0)
    bench.refuses = False

    bench.held.end()

    assert bench.rows() == [("gap", 30), ("gap", 3), *(("window", number) for number in range(30, kept + 30))]
    bodies = bench.outbox._db.execute("select body from outbox where kind = 'gap' order by sequence").fetchall()
    gaps = [codec.decode(Gap, body) for (body,) in bodies]
    assert [(gap.kind, gap.first, gap.last, gap.reason) for gap in gaps] == [
        ("window", 1, 30, REASON),
        ("sample", 31, 33, REASON),
    ]


def test_what_is_lost_with_the_agent_is_said(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.refuses = True
    bench.close_windows(2)
    bench.held.put_sample(b"sample", event_time=1.0)

    bench.held.end()

    assert "2 windows, 1 samples and the open window are lost: the disk is full" in caplog.text
