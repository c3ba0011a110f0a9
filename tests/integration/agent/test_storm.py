"""A thousand devices lose their broker at once: their links come back, all of them, and not all at once."""

import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.link.backoff import RECONNECT_S
from tests.conftest import Mosquitto, not_run
from tests.integration.agent.shore import wait_for

LINKS, PROCESSES = 1000, 5
OUTAGE_S = 2.0
# of a thousand that spread their first attempts over RECONNECT_S
MEAN_PER_S = LINKS / RECONNECT_S
# of a thousand one or none tries three times in vain in so short an outage, and then waits up to eight spreads
MOST_S = 8 * RECONNECT_S
ROOT = Path(__file__).resolve().parents[3]


class Fleet:
    """The links, in their processes; `up` are those that are connected, `back` when each was let in last."""

    def __init__(self, broker: str) -> None:
        self.up: set[int] = set()
        self.back: dict[int, float] = {}
        self.ended: list[tuple[int, int]] = []
        each = LINKS // PROCESSES
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.integration.agent.many_links", broker, str(first), str(each)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for first in range(0, LINKS, each)
        ]
        self._readers = [threading.Thread(target=self._hear, args=(process,)) for process in self._processes]
        for reader in self._readers:
            reader.start()

    def _hear(self, process: "subprocess.Popen[str]") -> None:
        for line in process.stdout or ():
            word, number, at = line.split()
            if word == "up":
                self.back[int(number)] = float(at)
                self.up.add(int(number))
            elif word == "down":
                self.up.discard(int(number))
            else:
                self.ended.append((int(number), int(at)))

    def memory_bytes(self) -> int:
        """Return what all processes hold, each page once (PSS)."""
        rolls = (Path(f"/proc/{process.pid}/smaps_rollup").read_text() for process in self._processes)
        return sum(int(line.split()[1]) * 1024 for roll in rolls for line in roll.splitlines() if line[:4] == "Pss:")

    def end(self) -> None:
        """Let all links go."""
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
        for process, reader in zip(self._processes, self._readers, strict=True):
            with process:
                reader.join(30)
                process.kill()


@pytest.fixture
def broker(make_mosquitto: Callable[..., Mosquitto]) -> Iterator[Mosquitto]:
    """A Mosquitto that may hold a thousand connections."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * LINKS:
        not_run(f"expected to be allowed {2 * LINKS} open files, got {hard}: raise ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before, 2 * LINKS), hard))
    yield make_mosquitto("max_connections -1")
    resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))


@pytest.fixture
def fleet(broker: Mosquitto) -> Iterator[Fleet]:
    """Links to it."""
    fleet = Fleet(broker.url)
    yield fleet
    fleet.end()


@pytest.mark.broker
@pytest.mark.long
def test_a_thousand_links_come_back_spread_over_seconds(
    broker: Mosquitto, fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    wait_for(lambda: len(fleet.up) == LINKS, why="all to connect", timeout_s=60)
    fleet.back.clear()

    assert broker.process is not None
    broker.process.kill()
    lost = time.monotonic()
    wait_for(lambda: not fleet.up, why="all to notice")
    broker.stop()
    wait_for(lambda: time.monotonic() - lost >= OUTAGE_S, why="the outage to pass")
    broker.start()
    began = time.monotonic()
    wait_for(lambda: len(fleet.up) == LINKS, why="all to come back", timeout_s=MOST_S)

    back = sorted(fleet.back.values())
    fullest = max(sum(first <= each < first + 1 for each in back) for first in back)
    memory = fleet.memory_bytes()
    fleet.end()
    with capsys.disabled():
        print(
            f"\nan outage of {OUTAGE_S:g} s: {LINKS} links in {PROCESSES} processes came back over "
            f"{back[-1] - back[0]:.1f} s, the last {back[-1] - began:.1f} s after the broker, at most {fullest} in any "
            f"second (evenly spread: {MEAN_PER_S:g}); {memory / LINKS / 1024:.0f} KiB for each"
        )
    assert len(back) == LINKS
    assert fullest <= 2.5 * MEAN_PER_S
    assert back[-1] - back[0] > RECONNECT_S / 2
    # nobody's fault, in any of them
    assert fleet.ended == [(0, 0)] * PROCESSES
