"""What tests of every kind share: free ports, and programs of the system that a test needs.

A missing program skips the test, unless SKERRY_REQUIRE_SERVERS=1 (as in CI): then it fails.
"""

import logging
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import settings

# the same examples in every run, so that a failure is a change of the code and not of the dice
settings.register_profile("fixed", derandomize=True)
settings.load_profile("fixed")

_handed_out: set[int] = set()


@pytest.fixture(autouse=True)
def _no_log_outlives_its_test() -> Iterator[None]:
    """A program that is run in this process logs to the standard error of that test, which is closed afterwards."""
    before, level = logging.root.handlers[:], logging.root.level
    yield
    for handler in logging.root.handlers[:]:
        if handler not in before and type(handler) is logging.StreamHandler:
            logging.root.removeHandler(handler)
    logging.root.setLevel(level)


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Return a function that picks a port of 127.0.0.1 which is free now, never the same twice."""
    return pick_port


def pick_port() -> int:
    """Return a port of 127.0.0.1 that is free now, never the same twice."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in _handed_out:
            _handed_out.add(port)
            return port


def wait_for_port(port: int, timeout_s: float = 15.0) -> None:
    """Wait until 127.0.0.1 accepts connections on `port`."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, f"expected a server on port {port} within {timeout_s} s, got none"
            time.sleep(0.02)
        else:
            return


@dataclass
class Mosquitto:
    """A Mosquitto of the test's own, on 127.0.0.1, configured with `lines` more; `stop` and `start` make an outage."""

    program: str
    folder: Path
    lines: tuple[str, ...] = ()
    port: int = field(default_factory=pick_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it; returns when it accepts connections."""
        config = self.folder / "mosquitto.conf"
        lines = (f"listener {self.port} 127.0.0.1", "allow_anonymous true", "set_tcp_nodelay true", *self.lines)
        config.write_text("\n".join(lines) + "\n")
        self.process = subprocess.Popen(
            [self.program, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for_port(self.port)

    def stop(self) -> None:
        """Stop it, if it runs."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)
            self.process = None


@pytest.fixture
def make_mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Mosquitto]]:
    """Return a function that starts a Mosquitto with more lines of configuration; mark such tests `broker`."""
    program = required("mosquitto", "/usr/sbin", package="mosquitto")
    servers: list[Mosquitto] = []

    def make(*lines: str) -> Mosquitto:
        servers.append(Mosquitto(program, tmp_path_factory.mktemp("mosquitto"), lines))
        servers[-1].start()
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture
def mosquitto(make_mosquitto: Callable[..., Mosquitto]) -> Mosquitto:
    """Run a Mosquitto for the test; mark such tests `broker`."""
    return make_mosquitto()


@pytest.fixture(scope="session")
def chromium() -> str:
    """Return the path of Chromium; mark such tests `browser`."""
    return required("chromium", "/usr/bin", package="chromium")


@pytest.fixture(scope="session")
def strace() -> str:
    """Return the path of strace."""
    return required("strace", "/usr/bin", package="strace")


def required(program: str, *also_in: str, package: str) -> str:
    """Return the path of a program; without it the test is skipped, or fails in CI."""
    found = shutil.which(program, path=os.pathsep.join((os.environ.get("PATH", ""), *also_in)))
    if found is None:
        not_run(f"expected {program}, got none: apt-get install {package}")
    return found


def not_run(why: str) -> NoReturn:
    """End a test that this machine has not everything for: skipped, or failed in CI."""
    if os.environ.get("SKERRY_REQUIRE_SERVERS") == "1":
        pytest.fail(why)
    pytest.skip(why)
