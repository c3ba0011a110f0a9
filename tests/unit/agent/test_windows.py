"""Windows on a disk that refuses: what is counted is told, or counted as given up, whatever is opened meanwhile."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.config import Config
from agent.inference.windows import Windows
from agent.local.serving_port import Rows
from agent.telling.outbox import OutboxFile
from skerry.errors import Broken
from skerry.wire.report import decode_report
from tests.unit.agent.engine_bench import MANIFEST, WIDTH, row

ONE, OTHER = "ab" * 32, "cd" * 32


class Bench:
    """Windows on a disk that refuses at will."""

    def __init__(self, folder: Path) -> None:
        self.outbox = OutboxFile(folder / "outbox.db")
        self.refuses = False
        self._write = self.outbox._write
        vars(self.outbox)["_write"] = self._write_or_refuse
        self.windows = Windows(
            config=Config(save_rows=2), outbox=self.outbox, event_time=lambda: 1.0, on_window=lambda: None
        )

    def _write_or_refuse(self, work: Callable[[], object]) -> object:
        if self.refuses:
            raise Broken("the disk is full")
        return self._write(work)

    def count(self, rows: int) -> None:
        self.windows.count(Rows(WIDTH, row() * rows))

    def told(self) -> list[tuple[str, int, int]]:
        """Return (manifest, number, rows) of each window that was stored."""
        found = self.outbox._db.execute("select body from outbox where kind = 'window' order by sequence").fetchall()
        reports = [decode_report(body) for (body,) in found]
        return [(report.manifest[:2], report.window, report.rows) for report in reports]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.outbox.close()


def test_a_window_that_the_disk_does_not_keep_open_is_closed_early_and_told(bench: Bench) -> None:
    bench.windows.open(MANIFEST, ONE)
    bench.count(4)
    bench.refuses = True
    bench.count(3)

    bench.windows.open(MANIFEST, OTHER)
    bench.count(2)
    bench.windows.open(None)
    bench.refuses = False
    bench.windows.end()

    assert bench.told() == [("ab", 0, 7), ("cd", 0, 2)]


def test_a_manifest_that_returns_while_its_windows_are_held_goes_on_after_them(bench: Bench) -> None:
    bench.windows.open(MANIFEST, ONE)
    bench.count(4)
    bench.refuses = True
    bench.count(3)
    bench.windows.open(None)
    bench.windows.open(MANIFEST, ONE)
    bench.count(12)
    bench.refuses = False
    bench.windows.end()
    bench.windows.open(None)
    bench.windows.open(MANIFEST, ONE)
    bench.count(8)

    # the four rows on the disk were counted once
    assert bench.told() == [("ab", 0, 7), ("ab", 1, 10), ("ab", 2, 10)]


def test_a_disk_that_takes_it_keeps_the_window_open(bench: Bench) -> None:
    bench.windows.open(MANIFEST, ONE)
    bench.count(3)
    bench.windows.open(MANIFEST, OTHER)
    bench.windows.open(MANIFEST, ONE)
    bench.count(7)

    assert bench.told() == [("ab", 0, 10)]
