"""What the service manager hears: a real datagram socket, the real agent, and threads that stand still."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.config import Config
from agent.daemon import Daemon
from agent.identity.folder import StateFolder
from agent.upkeep.service import BUSY_S, STALL_S, Service
from tests.integration.agent.shore import Device, Shore, wait_for


class Manager:
    """A service manager's ear."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._sock.setblocking(False)
        self.heard: list[str] = []

    def hear(self) -> list[str]:
        """Return all that was said so far."""
        try:
            while True:
                self.heard += self._sock.recv(4096).decode().split("\n")
        except BlockingIOError:
            return self.heard

    def close(self) -> None:
        self._sock.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    """A service manager that listens."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@skerry-{os.urandom(6).hex()}"
    manager = Manager(address)
    yield manager
    manager.close()


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_watchdog_is_fed_only_while_all_threads_get_on(manager: Manager) -> None:
    clock = Clock()
    service = Service(manager.address, watchdog_s=90.0, clock=clock)
    beats = {"engine": 0, "updater": 0, "link": 0}

    def live(for_s: float, *moving: str) -> int:
        before = manager.hear().count("WATCHDOG=1")
        for _ in range(int(for_s / 10)):
            clock.now += 10
            beats.update({name: beats[name] + 1 for name in moving})
            service.turn(beats, "all is well")
            manager.hear()
        return manager.hear().count("WATCHDOG=1") - before

    assert live(600, "engine", "updater", "link") == 20
    # one that stands still is borne for a while, and then starves it
    assert 1 <= live(STALL_S, "engine", "updater") <= STALL_S / 30
    assert live(600, "engine", "updater") == 0
    assert live(600, "engine", "updater", "link") == 20
    # an updater may be busy for longer, but not for ever
    assert live(BUSY_S, "engine", "link") > 200
    assert live(600, "engine", "link") == 0
    # a component that has ended in order is not waited for
    beats.pop("updater")
    assert live(300, "engine", "link") == 10


def test_what_is_told_is_news_and_one_line(manager: Manager) -> None:
    service = Service(manager.address)
    service.ready("not connected")
    service.turn({}, "not connected")
    service.turn({}, "connected,\nall is well " + "x" * 1000)
    service.stopping()
    heard = manager.hear()
    assert heard[:2] == ["READY=1", "STATUS=not connected"]
    assert heard[2].startswith("STATUS=connected, all is well x")
    assert (len(heard[2]) < 250, heard[3:]) == (True, ["STOPPING=1"])


def test_nobody_and_a_full_ear_do_not_hold_up_the_agent(tmp_path: Path) -> None:
    Service("").ready()
    Service(str(tmp_path / "gone")).ready()
    deaf = Manager(str(tmp_path / "full"))
    service = Service(deaf.address)
    for number in range(2000):
        service.turn({}, f"status {number}")
    deaf.close()


def test_the_watchdog_of_another_process_is_not_ours(manager: Manager) -> None:
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "1000000"}
    for pid, fed in ((str(os.getpid()), 1), ("1", 0), ("", 1)):
        before = manager.hear().count("WATCHDOG=1")
        Service.of({**environment, "WATCHDOG_PID": pid}).turn({"engine": 1}, "")
        assert manager.hear().count("WATCHDOG=1") - before == fed


def test_a_stalled_engine_starves_the_watchdog_of_a_living_agent(device: Device, manager: Manager) -> None:
    clock = Clock()
    service = Service(manager.address, watchdog_s=3.0, clock=clock)
    daemon = Daemon(StateFolder(device.folder), Config(), service=service)
    engine, stop, gate = daemon.units.main.engine, threading.Event(), threading.Event()
    turn: Callable[[], float] = engine.turn

    def turn_unless_stalled() -> float:
        gate.wait(60)
        return turn()

    gate.set()
    engine.turn = turn_unless_stalled  # type: ignore[method-assign]
    thread = threading.Thread(target=daemon.run, args=(stop,))
    thread.start()

    def fed(after_s: float) -> int:
        """Return how often it is fed in three turns of the main thread, the first of them `after_s` later."""
        turned, before, clock.now = threading.Semaphore(0), manager.hear().count("WATCHDOG=1"), clock.now + after_s
        told = service.turn

        def tell(beats: dict[str, int], status: str) -> None:
            told(beats, status)
            turned.release()

        service.turn = tell  # type: ignore[method-assign, assignment]
        for _ in range(3):
            assert turned.acquire(timeout=20)
            daemon._news.set()
        service.turn = told  # type: ignore[method-assign]
        return manager.hear().count("WATCHDOG=1") - before

    try:
        wait_for(lambda: "READY=1" in manager.hear(), why="READY=1")
        assert fed(2.0) >= 1
        gate.clear()
        for _ in range(3):
            clock.now += STALL_S * 0.6
            # the others have turned since, or they would be at fault as well
            link, updater = daemon._link.beats, daemon.units.main.runner.beats
            moved = lambda: daemon._link.beats > link and daemon.units.main.runner.beats > updater  # noqa: E731, B023
            wait_for(moved, why="the others to turn")
            fed(0.0)
        assert fed(2.0) == 0
        assert service._stalled == ("engine",)
        gate.set()
        wait_for(lambda: fed(2.0) >= 1, why="the watchdog to be fed again")
    finally:
        gate.set()
        stop.set()
        daemon._news.set()
        thread.join(30)
    assert manager.hear()[-1] == "STOPPING=1"


def test_the_real_agent_is_ready_fed_and_stops(device: Device, shore: Shore, manager: Manager) -> None:
    environment = {**os.environ, "NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "600000"}
    command = [sys.executable, "-m", "agent", "run", "--state", str(device.folder), "--log-format", "json"]
    with device.log.open("ab") as log:
        process = subprocess.Popen(command, stderr=log, env=environment)
    try:
        wait_for(lambda: "READY=1" in manager.hear(), why="READY=1")
        wait_for(lambda: any(each.startswith("STATUS=connected") for each in manager.hear()), why="a status")
        wait_for(lambda: manager.hear().count("WATCHDOG=1") >= 3, why="a fed watchdog")
    finally:
        process.terminate()
        assert process.wait(20) == 0
    assert manager.hear()[-1] == "STOPPING=1"
    assert '"device": "watch.' in device.log.read_text()
