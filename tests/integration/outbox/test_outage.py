"""Fifteen days without a network: a window an hour, 16 features, three restarts and a full disk; then a slow link.

Everything inside the byte budget arrives once, everything that was given up is in a gap record, and the reconnect is
over within a minute on 64 kbit/s with a round trip of 600 ms, at the default rate limit.
"""

import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import func, select

from agent.config import Config
from agent.telling.outbox import OutboxFile, decode_open, encode_open
from control_plane.plane import Plane
from control_plane.schema.devices import Device as DeviceRow
from control_plane.schema.telemetry import OutboxMark, Window
from skerry.drift.counting import Counter
from skerry.drift.monitor import Monitor
from skerry.drift.reference import build_monitor
from skerry.errors import Broken
from skerry.wire.report import WindowReport, encode_report
from tests.conftest import Mosquitto
from tests.integration.outbox.account import given_up, heard
from tests.integration.outbox.shores import Device, listening
from tests.relay import Relay, Shape

DAYS, HOUR_S = 15, 3600
FEATURES, ROWS = 16, 360
DIGEST = "ab" * 32
LABELS = "abcd"
SLOW = Shape(rate_bytes_s=8_000, delay_s=0.3)
MOST_S = 60.0


@pytest.fixture(scope="module")
def monitor() -> Monitor:
    luck = random.Random(3)
    columns = {f"f{number}": [luck.gauss(0, 1) for _ in range(2000)] for number in range(FEATURES)}
    labels = [luck.choice(LABELS) for _ in range(2000)]
    chances = [luck.random() for _ in range(2000)]
    return build_monitor(columns, categories={"prediction": labels}, confidence=chances, window_n=ROWS)


class Days:
    """A device's life: it counts rows, closes a window each hour, saves the open one half-way, and is restarted."""

    def __init__(self, path: Path, monitor: Monitor, *, quota_bytes: int) -> None:
        self.path = path
        self.monitor = monitor
        self.quota_bytes = quota_bytes
        self.luck = random.Random(5)
        self.outbox = OutboxFile(path, quota_bytes=quota_bytes)
        self.closed: list[int] = []
        self.refused = 0
        self.begin()

    def begin(self) -> None:
        """Go on with the open window, as the engine does after a start."""
        self.counter = Counter(self.monitor)
        kept = self.outbox.open_window(DIGEST)
        self.number = kept.number
        fields = decode_open(kept.body)
        self.rows = 0
        if fields is not None:
            self.counter.restore(tuple(map(tuple, fields["counts"])))  # type: ignore[call-overload] # it is what `hour` wrote
            self.rows = int(fields["rows"])  # type: ignore[call-overload] # as above

    def count(self, rows: int) -> None:
        while self.rows < rows:
            features = [self.luck.gauss(0, 1) for _ in range(FEATURES)]
            self.counter.add((*features, self.luck.choice(LABELS), self.luck.random()))
            self.rows += 1

    def hour(self) -> None:
        """Live an hour; what the disk refuses is tried again, and counted."""
        self.count(ROWS // 2)
        fields = {"counts": self.counter.counts(), "rows": self.rows}
        self.insist(lambda: self.outbox.save_open(DIGEST, encode_open(fields), number=self.number, event_clock=0.0))
        self.count(ROWS)
        start = 1_700_000_000 + self.number * HOUR_S
        report = WindowReport(
            manifest=DIGEST[:16],
            monitor=self.monitor.digest()[:16],
            window=self.number,
            start=start,
            end=start + HOUR_S,
            rows=self.rows,
            labelled=0,
            correct=0,
            latency_p50_us=120 + self.luck.randrange(9),
            latency_p99_us=200 + self.luck.randrange(60),
            tables=self.counter.counts(),
        )
        body, clock = encode_report(report), float(start + HOUR_S)
        if self.insist(lambda: self.outbox.close_window(DIGEST, body, number=self.number, event_clock=clock)):
            self.closed.append(self.number)
            self.counter.reset()
            self.number, self.rows = self.number + 1, 0

    def insist(self, work: Callable[[], object]) -> bool:
        try:
            work()
        except Broken:
            self.refused += 1
            return False
        return True

    def pull_the_plug(self) -> None:
        """Start anew in the middle of an hour, from what is on the disk."""
        self.count(ROWS // 2)
        fields = {"counts": self.counter.counts(), "rows": self.rows}
        self.outbox.save_open(DIGEST, encode_open(fields), number=self.number, event_clock=0.0)
        copy = self.path.with_name("after.db")
        # nothing is closed in order: the files are taken as they are
        for side in ("", "-wal"):
            Path(f"{copy}{side}").write_bytes(Path(f"{self.path}{side}").read_bytes())
        self.outbox.close()
        for side in ("", "-wal"):
            Path(f"{copy}{side}").replace(f"{self.path}{side}")
        Path(f"{self.path}-shm").unlink(missing_ok=True)
        self.outbox = OutboxFile(self.path, quota_bytes=self.quota_bytes)
        self.begin()

    def fill_the_disk(self) -> None:
        """Leave SQLite no page more than it has."""
        (pages,) = self.outbox._db.execute("pragma page_count").fetchone()
        self.outbox._db.execute(f"pragma max_page_count = {pages}")

    def make_room(self) -> None:
        self.outbox._db.execute(f"pragma max_page_count = {self.quota_bytes // 4096}")


@pytest.mark.broker
@pytest.mark.long
def test_fifteen_days_are_told_within_a_minute_each_hour_once_or_in_a_gap_record(
    plane: Plane, monitor: Monitor, mosquitto: Mosquitto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config()
    days = Days(tmp_path / "outbox.db", monitor, quota_bytes=config.quota_bytes)
    days.outbox._db.execute("pragma synchronous = normal")
    # a first acquaintance, before the outage
    days.hour()
    plane = replace(plane, settings=replace(plane.settings, broker=mosquitto.url))
    with listening(plane):
        with Relay(mosquitto.port) as relay:
            tell_all(days, tmp_path, relay, config)
        for hour in range(1, DAYS * 24):
            if hour in (50, 170, 290):
                days.pull_the_plug()
            if hour == 120:
                days.fill_the_disk()
            if hour == 130:
                days.make_room()
            days.hour()
        depth, size = days.outbox.depth, days.outbox.size_bytes

        with Relay(mosquitto.port, SLOW) as relay:
            seconds, said = tell_all(days, tmp_path, relay, config)
            up, down = relay.up_bytes, relay.down_bytes

    arrived, lost = heard(plane), given_up(plane)
    with capsys.disabled():
        print(
            f"\n{depth} rows, {size} bytes of outbox after {DAYS} days: told in {seconds:.1f} s (64 kbit/s, 600 ms): "
            f"batches of {said} bytes, the link carried {up} up and {down} down; {len(arrived)} windows, {lost} in gaps"
        )
    assert set(arrived.values()) == {1}
    assert len(arrived) + lost == len(days.closed) == DAYS * 24 - days.refused
    assert set(arrived) <= set(days.closed)
    # the full disk cost some, and nothing else did
    assert 0 < lost < 120
    assert seconds < MOST_S
    with plane.readers() as session:
        mark = session.scalars(select(OutboxMark)).one()
        assert (mark.conflicts, mark.beyond) == (0, {})
        assert session.get_one(DeviceRow, "gull").reported["outbox_depth"] == depth
        # how it is now came first: the newest window was merged before all others of the outage
        after = select(Window.number).order_by(Window.id).offset(1).limit(8)
        assert list(session.scalars(after)) == sorted(arrived)[-8:]
        assert session.scalar(select(func.count()).select_from(Window)) == len(arrived)


def tell_all(days: Days, folder: Path, relay: Relay, config: Config) -> tuple[float, int]:
    """Let the device tell everything; return in how many seconds, and the bytes of its batches."""
    device = Device(folder, days.outbox, port=relay.port, config=config)
    began = time.monotonic()
    device.link.start()
    connections = 0
    try:
        while days.outbox.depth and time.monotonic() - began < 2 * MOST_S:
            connections = device.converse(connections)
        return time.monotonic() - began, device.publisher.bytes_said
    finally:
        device.link.stop()
        assert days.outbox.depth == 0
