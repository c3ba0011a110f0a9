"""One identity, two devices: always told, once; and never told of one device, whatever befell it and its network."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from control_plane import alarms, clones, revocation
from control_plane.clones import MOST_RETURNS, SILENCE
from control_plane.outbox_intake import take_outbox
from control_plane.outbox_mark import BATCHES_IN_FLIGHT
from control_plane.plane import Plane
from control_plane.refusals import Conflict, Unknown
from control_plane.schema.devices import Device
from control_plane.schema.tables import Table
from control_plane.schema.telemetry import Alarm, OutboxMark
from control_plane.schema.work import Event
from skerry.wire import codec, messages
from tests.unit.fleet.test_ingest import entry, say, window

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
MOST_RESTORED = 4


@dataclass(frozen=True, slots=True)
class Said:
    """One message of a device: its epoch and the numbers of the rows in it; `copy` is which history of the epoch."""

    epoch: str
    numbers: tuple[int, ...]
    copy: int = 0


@dataclass
class Shore:
    """The real intake over a database in memory, one second from message to message."""

    session: Session
    device: Device
    now: datetime = NOW
    acks: list[messages.Ack] = field(default_factory=list)

    def take(self, said: Said) -> None:
        """Take one message in."""
        self.now += timedelta(seconds=1)
        rows = (entry(number, "window", window(1000 * said.copy + number)) for number in said.numbers)
        payload = codec.encode(messages.Outbox(epoch=said.epoch, entries=tuple(rows)))
        self.acks.append(take_outbox(cast("Plane", SimpleNamespace()), self.session, self.device, payload, self.now))

    def alarms(self) -> list[Alarm]:
        """Return all alarms there have been."""
        return alarms.listed(self.session, cleared=True)


def open_shore() -> Iterator[Shore]:
    engine = create_engine("sqlite://")
    Table.metadata.create_all(engine)
    with Session(engine) as session:
        ends = NOW + timedelta(days=90)
        device = Device(name="gull", profile="p", certificate_serial="1", certificate_expires=ends, enrolled_at=NOW)
        session.add(device)
        session.flush()
        yield Shore(session, device)
    engine.dispose()


@pytest.fixture
def shore() -> Iterator[Shore]:
    """Open an intake that knows gull."""
    yield from open_shore()


@st.composite
def histories(draw: st.DrawFn) -> list[Said]:
    """Draw what one device says in its lives, as it arrives.

    A life ends by a wipe, with up to `BATCHES_IN_FLIGHT` batches on their way, which come at any time later, or never;
    or its backup is restored, and says other bodies under numbers that were heard, or goes on, until it is told to
    begin another epoch. Anything may come again at any time.
    """
    arrives: list[Said] = []
    late: list[tuple[int, Said]] = []
    ended: list[tuple[str, int]] = []
    restored = 0
    for life in range(draw(st.integers(1, 6))):
        if ended and restored < MOST_RESTORED and draw(st.booleans()):
            restored += 1
            epoch, heard = draw(st.sampled_from(ended))
            first = draw(st.integers(1, heard + 1))
            # it begins another epoch when all that it said is answered: nothing of it is late
            arrives += [Said(epoch, (number,), restored) for number in range(first, first + draw(st.integers(1, 6)))]
            continue
        epoch, count = f"{life:x}e", draw(st.integers(1, 12))
        said = [Said(epoch, (number,)) for number in range(1, count + 1)]
        under_way = draw(st.integers(0, min(BATCHES_IN_FLIGHT, count - 1)))
        arrives += said[: count - under_way]
        late += [(len(arrives), each) for each in said[count - under_way :]]
        ended.append((epoch, count))
    for after, each in late:
        if draw(st.booleans()):
            arrives.insert(draw(st.integers(after, len(arrives))), each)
    for _ in range(draw(st.integers(0, 20))):
        at = draw(st.integers(0, len(arrives) - 1))
        arrives.insert(draw(st.integers(at + 1, len(arrives))), arrives[at])
    return arrives


@settings(deadline=None, max_examples=40)
@given(histories())
def test_one_device_raises_no_alarm_whatever_befell_it(history: list[Said]) -> None:
    for shore in open_shore():
        for said in history:
            shore.take(said)
        assert shore.alarms() == []


def test_all_that_was_on_its_way_at_each_wipe_and_every_other_batch_late_is_no_alarm(shore: Shore) -> None:
    # the worst that one device can do: each late batch comes between two of the epoch after it
    older = [Said("a", (number,)) for number in range(1, 12)]
    newer = [Said("b", (number,)) for number in range(1, 60)]
    for said in [*older[:3], *(each for pair in zip(older[3:], newer, strict=False) for each in pair), *newer]:
        shore.take(said)
    assert shore.alarms() == []
    assert shore.session.get_one(OutboxMark, ("gull", "a")).returns == BATCHES_IN_FLIGHT - 1


def test_what_is_said_again_and_again_is_no_alarm(shore: Shore) -> None:
    for number in range(1, 3 * MOST_RETURNS):
        shore.take(Said("a", (1, 2)))
        shore.take(Said("b", (number,)))
    assert shore.alarms() == []


paces = st.lists(st.integers(1, 4), min_size=2 * MOST_RETURNS + 3, max_size=2 * MOST_RETURNS + 8)


@settings(deadline=None, max_examples=10)
@given(paces, st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)), max_size=20), st.integers(2, 3))
def test_two_or_more_that_go_on_raise_one_alarm_at_whatever_pace(
    runs: list[int], again: list[tuple[int, int]], devices: int
) -> None:
    arrives: list[Said] = []
    heard = dict.fromkeys(range(devices), 0)
    for turn, run in enumerate(runs * (devices - 1)):
        who = turn % devices
        arrives.append(Said(f"{who:x}f", tuple(range(heard[who] + 1, heard[who] + run + 1))))
        heard[who] += run
    for at, further in again:
        of = at % len(arrives)
        arrives.insert(min(of + 1 + further, len(arrives)), arrives[of])
    for shore in open_shore():
        for said in arrives:
            shore.take(said)
        (alarm,) = shore.alarms()
        assert (alarm.kind, alarm.device, alarm.cleared_at) == (alarms.CLONE, "gull", None)
        told = {each["epoch"] for each in alarm.detail["epochs"]}
        assert len(told) == 2
        assert told <= {f"{who:x}f" for who in range(devices)}
        assert len(shore.session.scalars(select(Event).where(Event.kind == "alarm")).all()) == 1


def alternate(shore: Shore, turns: int, *, epochs: Sequence[str] = ("a1", "b2"), since: int = 0) -> None:
    """Let two epochs bring a window each, in turns."""
    for number in range(since + 1, since + turns + 1):
        for epoch in epochs:
            shore.take(Said(epoch, (number,)))


def test_the_alarm_says_which_two_and_since_when_in_plain_words(shore: Shore) -> None:
    alternate(shore, MOST_RETURNS + 2)
    (alarm,) = shore.alarms()
    assert alarm.text == (
        "gull may be cloned: two outboxes speak in its name, a1 (since 2026-03-01 12:00 UTC) and b2 (since 2026-03-01 "
        "12:00 UTC), and each goes on after the other; find the second machine, or invite gull anew, which ends the "
        "certificates of both"
    )
    assert [each["epoch"] for each in alarm.detail["epochs"]] == ["a1", "b2"]
    assert alarm.detail["epochs"][0]["first_seen"] == "2026-03-01T12:00:01+00:00"
    assert alarm.detail["epochs"][0]["heard_at"] == alarm.raised_at.isoformat()


def test_a_device_with_two_state_folders_that_changes_them_seldom_raises_no_alarm(shore: Shore) -> None:
    for number in range(1, 3 * MOST_RETURNS):
        for epoch in ("a1", "b2"):
            shore.now += timedelta(days=20)
            shore.take(Said(epoch, (number,)))
    assert shore.alarms() == []


def test_after_an_alarm_no_epoch_has_a_start_over_the_others(shore: Shore) -> None:
    # of three, all but the youngest return
    alternate(shore, MOST_RETURNS + 2, epochs=("a1", "b2", "c3"))
    assert len(shore.alarms()) == 1
    alarms.acknowledge(shore.session, shore.alarms()[0].id, by="me", now=shore.now)
    assert shore.session.scalars(select(OutboxMark.returns)).all() == [0, 0, 0]


def test_an_alarm_is_raised_again_only_when_they_go_on_after_it_was_acknowledged(shore: Shore) -> None:
    turns = MOST_RETURNS + 2
    alternate(shore, 3 * turns)
    (alarm,) = shore.alarms()
    cleared = alarms.acknowledge(shore.session, alarm.id, by="operator at 127.0.0.1", now=shore.now)
    assert cleared.cleared == "acknowledged by operator at 127.0.0.1"
    with pytest.raises(Conflict, match="cleared: acknowledged by operator at 127"):
        alarms.acknowledge(shore.session, alarm.id, by="another", now=shore.now)
    with pytest.raises(Unknown, match="got 77; see: skerry alarm list --all"):
        alarms.acknowledge(shore.session, 77, by="another", now=shore.now)

    alternate(shore, MOST_RETURNS, since=3 * turns)
    assert len(shore.alarms()) == 1
    alternate(shore, 2, since=4 * turns)
    assert [row.cleared_at is None for row in shore.alarms()] == [True, False]
    told = shore.session.scalars(select(Event.text).where(Event.kind == "alarm").order_by(Event.id)).all()
    assert len(told) == 3
    assert told[1] == (
        "gull: the alarm that it may be cloned: two outboxes speak in its name is cleared: "
        "acknowledged by operator at 127.0.0.1"
    )


def raise_alarm(plane: Plane) -> None:
    """Have the intake of a whole plane raise the alarm."""
    for number in range(1, MOST_RETURNS + 3):
        for epoch in ("a1", "b2"):
            say(plane, [entry(number, "window", window(number))], epoch=epoch)


def standing(plane: Plane) -> list[str]:
    """Return why the alarms were cleared; empty for those that stand."""
    with plane.readers() as session:
        return [row.cleared for row in alarms.listed(session, cleared=True)]


def test_an_alarm_ends_when_one_has_long_been_silent_and_the_other_was_heard(plane: Plane) -> None:
    raise_alarm(plane)
    later = plane.clock() + 2 * SILENCE
    assert clones.settle(plane) == 0

    # both are silent: nobody knows
    with plane.sessions.begin() as session:
        for mark in session.scalars(select(OutboxMark)):
            mark.heard_at = mark.first_seen - 2 * SILENCE
    assert clones.settle(plane) == 0

    with plane.sessions.begin() as session:
        session.get_one(OutboxMark, ("gull", "b2")).heard_at = later
    assert clones.settle(plane) == 1
    assert standing(plane) == ["for 7 days one outbox alone has gone on"]
    assert clones.settle(plane) == 0


def test_an_alarm_of_two_that_speak_seldom_is_not_over_before_its_silence_has_passed(plane: Plane) -> None:
    raise_alarm(plane)
    with plane.sessions.begin() as session:
        session.get_one(OutboxMark, ("gull", "a1")).heard_at = plane.clock() - SILENCE - timedelta(days=1)
    assert clones.settle(plane) == 0
    assert standing(plane) == [""]


def test_an_alarm_ends_with_the_identity(plane: Plane) -> None:
    raise_alarm(plane)
    revocation.revoke(plane, "gull")
    assert standing(plane) == ["the device is revoked"]


def test_health_says_how_many_alarms_there_are_and_names_nobody(plane: Plane) -> None:
    assert alarms.summary(plane) == []
    raise_alarm(plane)
    assert alarms.summary(plane) == ["1 alarm of devices; see: skerry alarm list"]
