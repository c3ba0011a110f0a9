"""Fifteen days without a network: a window an hour, 16 features, three restarts and a full disk; then a slow link.

A real agent lives them, on a disk of its own that another program fills, and a control plane's real link hears what it
has to tell. Everything inside the byte budget arrives once, everything that was given up is in a gap record, and the
reconnect is over within a minute on 64 kbit/s with a round trip of 600 ms, at the default rate limit.
"""

import contextlib
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from sqlalchemy import func, select

from agent.telling.outbox import look
from control_plane.plane import Plane
from control_plane.schema.telemetry import Gap, OutboxMark, Window
from skerry.runtimes.arrays import pack
from tests.conftest import Mosquitto, not_run
from tests.integration.agent.shore import Device, Shore, wait_for
from tests.integration.outbox.account import heard
from tests.integration.outbox.shores import listening
from tests.relay import Relay, Shape

HOURS, HOUR_S = 15 * 24, 3600
FEATURES, ROWS = 16, 60
STEP_S = HOUR_S / ROWS
DISK_BYTES = 16 << 20
SLOW = Shape(rate_bytes_s=8_000, delay_s=0.3)
DISK_IS_FULL = "database or disk is full; check the disk"


class Signer(Shore):
    """Signs and publishes; what devices say is for a real control plane to hear."""

    def _hear(self, *_: object) -> None:
        """Leave it."""


class Disk(NamedTuple):
    """A small file system."""

    folder: Path

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Meanwhile, let another program take all room that there is, and what becomes free."""
        over, log = threading.Event(), self.folder / "runaway.log"

        def take() -> None:
            with log.open("ab", buffering=0) as file:
                while not over.is_set():
                    try:
                        file.write(bytes(4096))
                    except OSError:
                        over.wait(0.02)

        thread = threading.Thread(target=take)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            log.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["/bin/mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        not_run("expected to mount a file system, got no permission: run it as root")
    yield Disk(folder)
    subprocess.run(["/bin/umount", "-l", str(folder)], check=True)


@pytest.fixture
def signer(mosquitto: Mosquitto, tmp_path: Path) -> Iterator[Signer]:
    """Whoever signs the model that the device runs."""
    signer = Signer(mosquitto.port, tmp_path)
    yield signer
    signer.close()


@pytest.fixture
def device(signer: Signer, disk: Disk, tmp_path: Path) -> Iterator[Device]:
    """The device that the control plane knows."""
    recording = tmp_path / "recording.npz"
    rows = np.random.default_rng(3).normal(size=(500, 100, FEATURES)).astype(np.float32)
    recording.write_bytes(pack({"X": rows}))
    device = Device(signer, "gull", disk.folder / "gull", recording)
    device.event_step_s = STEP_S
    yield device
    device.kill()
    print(device.log.read_text())


def closed(device: Device) -> int:
    """Return how many windows were closed: the number of the open one, as it stands on the disk."""
    uri = f"{(device.folder / 'outbox.db').resolve().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as db:
        return int(db.execute("select coalesce(max(window_number), 0) from accumulator").fetchone()[0])


def depth(device: Device) -> int:
    """Return how many rows were not heard."""
    return sum(look(device.folder / "outbox.db").rows.values())


def live(device: Device, hours: int) -> None:
    """Let so many windows be closed, as fast as that goes."""
    until = closed(device) + hours
    wait_for(lambda: closed(device) >= until, why=f"{hours} hours", timeout_s=240)


def restart(device: Device, *, rate: float = 0.0, kill: bool = False) -> None:
    """Start it again, all out unless told otherwise."""
    if kill:
        device.kill()
    else:
        assert device.stop() == 0
    device.start(rate=rate)


def outage(device: Device, disk: Disk) -> None:
    """Live fifteen days alone."""
    restart(device)
    live(device, 50)
    restart(device, kill=True)
    live(device, 70)
    # some hours a second: all out, days would pass while the disk is full, and what is held in memory has a bound
    restart(device, rate=6 * ROWS)
    with disk.full():
        wait_for(lambda: DISK_IS_FULL in device.log.read_text(), why="a word of the disk")
        refused = closed(device)
        time.sleep(3)
        assert closed(device) <= refused + 1
    restart(device)
    live(device, HOURS - 50 - 70)


# in the least quota that an owner may set there is no room for all reports of four times the size, which take longer
@pytest.mark.parametrize(
    ("quota_bytes", "pairs", "most_s"), [(4 << 20, 4, 60.0), (512 << 10, 48, 90.0)], ids=["as shipped", "least room"]
)
@pytest.mark.broker
@pytest.mark.long
@pytest.mark.timeout(300)
def test_fifteen_days_are_told_within_a_minute_each_hour_once_or_in_a_gap_record(
    plane: Plane,
    mosquitto: Mosquitto,
    signer: Signer,
    disk: Disk,
    device: Device,
    capsys: pytest.CaptureFixture[str],
    *,
    quota_bytes: int,
    pairs: int,
    most_s: float,
) -> None:
    # as an owner leaves it, but that nobody waits for minutes until the link tries again
    settings = f"window_rows = {ROWS}\nquota_bytes = {quota_bytes}\nreconnect_s = 0.3\n"
    (device.folder / "config.toml").write_text(settings)
    signer.release(1, axes=FEATURES, pairs=pairs)
    signer.assign(device.name, 1)
    plane = replace(plane, settings=replace(plane.settings, broker=mosquitto.url))
    with listening(plane), Relay(mosquitto.port) as relay:
        device.port = relay.port
        device.start(rate=100)
        wait_for(lambda: heard(plane), why="a first window", timeout_s=60)

        relay.cut()
        began = time.monotonic()
        outage(device, disk)
        alone_s = time.monotonic() - began
        # the next hour takes a day: what is to be told becomes no more
        restart(device, rate=0.001)
        rows, before = depth(device), len(heard(plane))

        relay.shape = SLOW
        connections, up, down = relay.connections, relay.up_bytes, relay.down_bytes
        relay.mend()
        wait_for(lambda: relay.connections > connections, why="the first connection")
        began = time.monotonic()
        wait_for(lambda: depth(device) == 0, why="an empty outbox", timeout_s=2 * most_s)
        seconds = time.monotonic() - began
        up, down = relay.up_bytes - up, relay.down_bytes - down
        assert device.stop() == 0

    total, arrived = closed(device), heard(plane)
    with plane.readers() as session:
        # how it was deployed counts for nothing: the control plane knows of no such deployment
        query = select(func.coalesce(func.sum(Gap.count), 0)).where(Gap.kind != "deployment")
        lost = session.scalar(query) or 0
        windows = list(session.scalars(select(Window).order_by(Window.number)))
        first = list(session.scalars(select(Window.number).order_by(Window.id).offset(before).limit(8)))
        mark = session.scalars(select(OutboxMark)).one()
    with capsys.disabled():
        print(
            f"\n{total} hours lived in {alone_s:.0f} s; {rows} rows of the outbox told in {seconds:.1f} s (64 kbit/s, "
            f"600 ms) with {up} bytes up and {down} down: {len(arrived)} windows, {lost} in gap records"
        )
    assert total >= HOURS
    assert set(arrived.values()) == {1}
    assert len(arrived) + lost == total
    assert (mark.conflicts, mark.beyond) == (0, {})
    # the default has room for weeks
    assert (lost > 0) == (quota_bytes < 4 << 20)
    assert lost < total / 2
    assert seconds < most_s
    # how it is now came first
    assert sorted(first) == sorted(arrived)[-8:]
    # no row was counted twice, and no time is in no window, whatever ended the agent
    assert {window.rows for window in windows} == {ROWS}
    neighbours = [pair for pair in pairwise(windows) if pair[1].number == pair[0].number + 1]
    holes = {window.number: after.start - window.end for window, after in neighbours}
    assert {number: s for number, s in holes.items() if not 0 <= s <= 2 * STEP_S} == {}
    assert "Traceback" not in device.log.read_text()
