"""A cloned device, with real outboxes: two that share one identity are told, a restored backup is not."""

import contextlib
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from agent.config import Config
from agent.telling.outbox import OutboxFile
from control_plane import alarms, clones
from control_plane.ingest import handle
from control_plane.plane import Plane
from control_plane.schema.telemetry import Alarm, OutboxMark
from skerry.wire import codec, topics
from skerry.wire.batch import encode_batch
from skerry.wire.messages import Ack
from tests.conftest import Mosquitto
from tests.integration.outbox.account import window
from tests.integration.outbox.shores import WHO, Device, listening

UP = topics.up(WHO, "outbox")


def say(plane: Plane, outbox: OutboxFile) -> None:
    """Let a device say what it has to say, and hear each answer."""
    while (batch := outbox.batch()) is not None:
        (reply,) = handle(plane, UP, encode_batch(batch, packed=True))
        outbox.acknowledge(codec.decode(Ack, reply.payload))


def live(plane: Plane, outbox: OutboxFile, numbers: range, *, bins: int = 20) -> None:
    """Let a device see some windows, and say each when it is there."""
    for number in numbers:
        outbox.put("window", window(number, bins=bins), event_time=1.0)
        say(plane, outbox)


def raised(plane: Plane) -> list[Alarm]:
    """Return the alarms that stand."""
    with plane.readers() as session:
        return alarms.listed(session)


def epochs(plane: Plane) -> dict[str, int]:
    """Return the epochs that were heard, with their conflicts, the oldest first."""
    with plane.readers() as session:
        return {row.epoch: row.conflicts for row in session.query(OutboxMark).order_by(OutboxMark.first_seen)}


def test_a_restored_backup_is_a_conflict_and_a_new_epoch_and_no_alarm(plane: Plane, tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db")
    live(plane, outbox, range(20))
    outbox.close()
    shutil.copy(tmp_path / "outbox.db", tmp_path / "backup.db")
    outbox = OutboxFile(tmp_path / "outbox.db")
    live(plane, outbox, range(20, 40))
    outbox.close()

    outbox = OutboxFile(tmp_path / "backup.db")
    live(plane, outbox, range(100, 200))
    first, second = epochs(plane)
    assert outbox.epoch == second
    assert epochs(plane)[first] >= 1
    assert raised(plane) == []


def test_a_copied_disk_is_a_conflict_first_and_then_a_clone(plane: Plane, tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db")
    live(plane, outbox, range(5))
    outbox.close()
    shutil.copy(tmp_path / "outbox.db", tmp_path / "copy.db")
    pair = (OutboxFile(tmp_path / "outbox.db"), OutboxFile(tmp_path / "copy.db"))
    for turn in range(clones.MOST_RETURNS + 4):
        for which, each in enumerate(pair):
            live(plane, each, range(10 + turn, 11 + turn), bins=20 + which)
    (alarm,) = raised(plane)
    assert {each["epoch"] for each in alarm.detail["epochs"]} == {each.epoch for each in pair}


@pytest.mark.broker
@pytest.mark.long
def test_two_that_take_over_each_others_session_are_a_clone(
    plane: Plane, mosquitto: Mosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clones, "MOST_RETURNS", 3)
    plane = replace(plane, settings=replace(plane.settings, broker=mosquitto.url))
    outboxes = [OutboxFile(tmp_path / f"{name}.db") for name in ("gull", "copy")]
    deadline = time.monotonic() + 60
    with contextlib.ExitStack() as before, listening(plane):
        for number, outbox in enumerate([*outboxes] * 5):
            outbox.put("window", window(number), event_time=1.0)
            device = Device(tmp_path, outbox, port=mosquitto.port, config=Config())
            device.link.start()
            connections = 0
            while outbox.depth and time.monotonic() < deadline:
                connections = device.converse(connections)
                if connections:
                    # its session was taken over, and it does not take it back at once
                    before.close()
            before.callback(device.link.stop)
    assert [outbox.depth for outbox in outboxes] == [0, 0]
    (alarm,) = raised(plane)
    assert {each["epoch"] for each in alarm.detail["epochs"]} == {each.epoch for each in outboxes}
