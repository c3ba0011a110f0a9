"""What devices say, taken in: each entry once, whatever comes how often in which order."""

import base64
import json
import zlib
from dataclasses import replace as changed

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from control_plane import ingest, samples
from control_plane.ingest import handle
from control_plane.outbox_mark import BATCHES_IN_FLIGHT
from control_plane.plane import Plane
from control_plane.schema.devices import Device
from control_plane.schema.releases import Deployment, Release, Rollout
from control_plane.schema.telemetry import Gap, OutboxMark, Sample, Window
from control_plane.schema.work import Event
from skerry.wire import codec, messages, topics
from skerry.wire.batch import encode_batch
from skerry.wire.manifest import Manifest, SamplePolicy
from skerry.wire.report import WindowReport, encode_report
from skerry.wire.sample import Sample as Said
from skerry.wire.sample import encode_sample

GULL = topics.identity("watch", "gull")


def window(number: int, *, rows: int = 10) -> bytes:
    """Return the body of a window."""
    report = WindowReport(
        manifest="ab" * 8,
        monitor="cd" * 8,
        window=number,
        start=number * 10,
        end=number * 10 + 10,
        rows=rows,
        labelled=rows,
        correct=rows - 1,
        latency_p50_us=100,
        latency_p99_us=200,
        tables=((rows, 0), (1, rows - 1)),
    )
    return encode_report(report)


def entry(sequence: int, kind: str, body: bytes, *, event_time: float = 5.0) -> messages.Entry:
    """Return an entry of the outbox."""
    text = base64.b64encode(body).decode()
    return messages.Entry(sequence=sequence, kind=kind, event_time=event_time, crc=zlib.crc32(body), body=text)


def say(plane: Plane, entries: list[messages.Entry], *, epoch: str = "e1") -> messages.Ack:
    """Let gull say it; return the acknowledgement."""
    payload = codec.encode(messages.Outbox(epoch=epoch, entries=tuple(entries)))
    (reply,) = handle(plane, topics.up(GULL, "outbox"), payload)
    assert reply.topic == topics.down(GULL, "ack")
    assert not reply.retain
    return codec.decode(messages.Ack, reply.payload)


def texts(plane: Plane, kind: str) -> list[str]:
    """Return the texts of the events of a kind."""
    with plane.readers() as session:
        return list(session.scalars(select(Event.text).where(Event.kind == kind).order_by(Event.id)))


_epochs = iter(range(1, 1_000_000))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=6), max_size=12))
def test_batches_in_any_order_and_number_merge_each_entry_once(plane: Plane, batches: list[list[int]]) -> None:
    epoch = f"{next(_epochs):x}"
    for batch in batches:
        ack = say(plane, [entry(sequence, "window", window(sequence)) for sequence in batch], epoch=epoch)
    told = {sequence for batch in batches for sequence in batch}
    with plane.readers() as session:
        merged = session.scalars(select(Window.number).where(Window.epoch == epoch)).all()
        mark = session.get(OutboxMark, ("gull", epoch))
    assert sorted(merged) == sorted(told)
    if mark is not None:
        assert mark.merged == len(told)
        assert mark.repeated == sum(map(len, batches)) - len(told)
        assert ack.up_to == mark.up_to == next(n for n in range(14) if n + 1 not in told)


def test_an_acknowledgement_names_only_what_is_committed(plane: Plane) -> None:
    assert say(plane, [entry(1, "window", window(0)), entry(3, "window", window(2))]).up_to == 1
    assert say(plane, [entry(2, "window", window(1))]).up_to == 3


def test_another_body_under_the_same_number_is_a_conflict_and_both_are_kept(plane: Plane) -> None:
    say(plane, [entry(1, "window", window(0))])
    other = entry(1, "window", window(0, rows=20))
    ack = say(plane, [other])
    assert (ack.new_epoch, ack.up_to) == (True, 0)
    with plane.readers() as session:
        assert session.scalars(select(Window.rows)).all() == [10]
        assert session.get_one(OutboxMark, ("gull", "e1")).conflicts == 1
        kept = session.scalars(select(Event).where(Event.kind == "conflict")).one()
    assert kept.data["body"] == other.body


def test_a_damaged_entry_is_a_gap_and_holds_up_nobody(plane: Plane) -> None:
    bad = changed(entry(1, "window", window(0)), crc=7)
    unreadable = entry(2, "window", b"\x07nonsense")
    assert say(plane, [bad, unreadable, entry(3, "window", window(2))]).up_to == 3
    with plane.readers() as session:
        assert session.scalars(select(Window.number)).all() == [2]
        gaps = session.scalars(select(Gap).order_by(Gap.sequence)).all()
    assert [(gap.first, gap.count) for gap in gaps] == [(1, 1), (2, 1)]
    assert "CRC" in gaps[0].reason
    assert len(texts(plane, "gap")) == 2


def test_what_a_device_gave_up_is_recorded(plane: Plane) -> None:
    gap = messages.Gap(kind="window", first=1, last=4, count=4, reason="quota")
    assert say(plane, [entry(1, "gap", codec.encode(gap)), entry(5, "window", window(0))]).up_to == 5
    with plane.readers() as session:
        row = session.scalars(select(Gap)).one()
    assert (row.first, row.last, row.count, row.reason) == (1, 4, 4, "quota")


def test_a_gap_over_what_was_heard_is_neither_a_loss_nor_a_conflict(plane: Plane) -> None:
    say(plane, [entry(1, "window", window(0))])
    gap = messages.Gap(kind="window", first=1, last=1, count=1, reason="damaged")
    ack = say(plane, [entry(1, "gap", codec.encode(gap))])
    assert (ack.up_to, ack.new_epoch) == (1, False)
    with plane.readers() as session:
        assert session.scalars(select(Gap)).all() == []


def test_a_gap_that_does_not_begin_at_its_own_number_accounts_for_that_number_alone(plane: Plane) -> None:
    gap = messages.Gap(kind="window", first=1, last=1 << 61, count=4, reason="quota")
    assert say(plane, [entry(1, "window", window(0)), entry(2, "gap", codec.encode(gap))]).up_to == 2


def test_a_gap_that_counts_more_than_its_range_is_one_lost_entry(plane: Plane) -> None:
    gap = messages.Gap(kind="window", first=1, last=2, count=(1 << 63) - 1, reason="quota")
    assert say(plane, [entry(1, "gap", codec.encode(gap))]).up_to == 1
    with plane.readers() as session:
        # a sum over such counts would not fit a column, and no operator could read the account any more
        assert session.scalar(select(func.sum(Gap.count))) == 1


def test_a_window_with_more_correct_than_labelled_rows_is_a_gap(plane: Plane) -> None:
    report = WindowReport("ab" * 8, "cd" * 8, 0, 0, 10, 10, 5, 6, 1, 2, ((10,),))
    assert say(plane, [entry(1, "window", encode_report(report))]).up_to == 1
    with plane.readers() as session:
        assert session.scalars(select(Window)).all() == []
        assert "correct" in session.scalars(select(Gap.reason)).one()


def test_a_deployment_event_with_a_number_that_no_float_holds_is_a_gap(plane: Plane, deployment: str) -> None:
    body = json.dumps(json.loads(moved(deployment, "committed")) | {"measured": {"p50": 10**400}}).encode()
    assert say(plane, [entry(1, "deployment", body), entry(2, "window", window(0))]).up_to == 2


def test_an_entry_of_a_kind_from_the_future_is_acknowledged_and_told(plane: Plane) -> None:
    assert say(plane, [entry(1, "poem", b"{}")]).up_to == 1
    assert "'poem'" in texts(plane, "refused")[0]


def test_what_is_heard_out_of_turn_is_acknowledged_in_ranges_as_far_as_it_was_in_the_batch(plane: Plane) -> None:
    ack = say(plane, [entry(number, "window", window(number)) for number in (4, 5, 6, 9)])
    assert (ack.up_to, ack.ranges, ack.window) == (0, ((4, 6), (9, 9)), BATCHES_IN_FLIGHT)
    ack = say(plane, [entry(2, "window", window(2))])
    assert (ack.up_to, ack.ranges) == (0, ((2, 2),))
    ack = say(plane, [entry(number, "window", window(number)) for number in (1, 3, 9)])
    assert (ack.up_to, ack.ranges) == (6, ((9, 9),))


def test_a_packed_batch_is_taken_in_like_a_plain_one(plane: Plane) -> None:
    outbox = messages.Outbox(epoch="e1", entries=(entry(1, "window", window(0)), entry(2, "window", window(1))))
    (reply,) = handle(plane, topics.up(GULL, "outbox"), encode_batch(outbox, packed=True))
    assert codec.decode(messages.Ack, reply.payload).up_to == 2
    assert say(plane, list(outbox.entries)).up_to == 2
    with plane.readers() as session:
        assert session.scalars(select(Window.number)).all() == [0, 1]


def test_each_answer_of_an_epoch_with_a_conflict_says_so_and_hides_it_behind_no_later_number(plane: Plane) -> None:
    say(plane, [entry(number, "window", window(number)) for number in (1, 2, 3)])
    ack = say(plane, [entry(1, "window", window(1)), entry(2, "window", window(2, rows=20))])
    assert (ack.up_to, ack.new_epoch, ack.conflicts, ack.ranges) == (1, True, (2,), ())
    # that answer is lost; another batch is answered
    ack = say(plane, [entry(3, "window", window(3)), entry(4, "window", window(4))])
    assert (ack.up_to, ack.new_epoch, ack.conflicts, ack.ranges) == (1, True, (), ((3, 4),))


def test_another_deployment_event_under_the_same_number_is_a_conflict_too(plane: Plane, deployment: str) -> None:
    say(plane, [entry(1, "deployment", moved(deployment, "fetching"))])
    assert say(plane, [entry(1, "deployment", moved(deployment, "fetching"))]).new_epoch is False
    assert say(plane, [entry(1, "deployment", moved(deployment, "trial"))]).conflicts == (1,)


def test_a_gap_that_reaches_over_what_was_heard_counts_the_rest(plane: Plane) -> None:
    say(plane, [entry(number, "window", window(number)) for number in (2, 4)])
    gap = messages.Gap(kind="window", first=1, last=5, count=5, reason="damaged")
    assert say(plane, [entry(1, "gap", codec.encode(gap))]).up_to == 5
    longer = changed(gap, last=7, count=7)
    assert say(plane, [entry(1, "gap", codec.encode(longer))]).up_to == 7
    with plane.readers() as session:
        (row,) = session.scalars(select(Gap)).all()
    assert (row.first, row.last, row.count) == (1, 7, 5)


def sample(window: int = 3, **inputs: bytes) -> bytes:
    """Return the body of a sample."""
    return encode_sample(Said("ab" * 8, window, inputs=inputs or {"x": b"1234"}))


@pytest.fixture
def allowing(plane: Plane) -> Plane:
    """Return the plane with a build whose manifest begins with `abab...` and allows two rows of `x`."""
    policy = SamplePolicy(rows_per_window=2, inputs=("x",), max_bytes=8)
    manifest = Manifest("m", 1, "p", "r", "m", "g", "g", (), (), (), {}, {}, {}, (), 1.0, "", samples=policy)
    samples._policies.clear()
    samples._policies["ab" * 8] = codec.decode(Manifest, codec.encode(manifest)).samples
    return plane


def test_a_sample_that_its_manifest_allows_is_stored(allowing: Plane) -> None:
    assert say(allowing, [entry(1, "sample", sample())]).up_to == 1
    with allowing.readers() as session:
        (row,) = session.scalars(select(Sample)).all()
        assert samples.counts(session) == {("gull", "e1"): (1, 0)}
    assert (row.window, row.size_bytes, row.reason) == (3, 4, "")
    assert allowing.blobs.get(row.blob) == sample()


@pytest.mark.parametrize(
    ("body", "reason"),
    [(sample(y=b"1"), "allows x, got y"), (sample(x=b"123456789"), "allows 8 bytes, got 9")],
)
def test_a_sample_that_its_manifest_does_not_allow_is_quarantined_counted_and_not_kept(
    allowing: Plane, body: bytes, reason: str
) -> None:
    before = sum(1 for each in allowing.home.path.rglob("*") if each.is_file())
    assert say(allowing, [entry(1, "sample", body)]).up_to == 1
    with allowing.readers() as session:
        (row,) = session.scalars(select(Sample)).all()
        assert samples.counts(session) == {("gull", "e1"): (0, 1)}
    assert reason in row.reason
    assert row.blob == ""
    assert reason in texts(allowing, "quarantine")[0]
    assert sum(1 for each in allowing.home.path.rglob("*") if each.is_file()) <= before + 2  # the database's own


def test_more_samples_of_a_window_than_allowed_and_those_of_strangers_are_quarantined(allowing: Plane) -> None:
    say(allowing, [entry(number, "sample", sample(x=b"%d" % number)) for number in (1, 2, 3)])
    say(allowing, [entry(4, "sample", sample(4))])
    say(allowing, [entry(5, "sample", encode_sample(Said("cd" * 8, 1, inputs={"x": b"1"})))])
    with allowing.readers() as session:
        rows = session.scalars(select(Sample).order_by(Sample.sequence)).all()
    assert [bool(row.blob) for row in rows] == [True, True, False, True, False]
    assert "none of this project's" in rows[-1].reason


@pytest.fixture
def deployment(plane: Plane) -> str:
    """Return the id of a deployment of gull that is assigned."""
    now = plane.clock()
    with plane.sessions.begin() as session:
        session.add(Release(name="watch-1", model="watch", version=1, state="live", created_at=now, live_at=now))
        session.flush()
        session.add(Rollout(id=1, release="watch-1", state="running", created_at=now))
        session.flush()
        session.add(
            Deployment(id="r1-1", rollout=1, wave=1, device="gull", release="watch-1", manifest="m", state="assigned")
        )
    return "r1-1"


def moved(deployment: str, state: str, **more: object) -> bytes:
    """Return the body of a deployment event."""
    tree = {"deployment": deployment, "release": "watch-1", "manifest": "m", "state": state, **more}
    return json.dumps(tree).encode()


def test_deployment_events_move_the_deployment_and_late_ones_do_not_move_it_back(plane: Plane, deployment: str) -> None:
    say(plane, [entry(1, "deployment", moved(deployment, "fetching"))])
    committed = moved(deployment, "committed", bytes_received=700, measured={"p50": 3.0})
    say(plane, [entry(3, "deployment", committed, event_time=99.0)])
    say(plane, [entry(2, "deployment", moved(deployment, "trial"))])
    with plane.readers() as session:
        row = session.get_one(Deployment, deployment)
    assert (row.state, row.bytes_received, row.committed_event_time) == ("committed", 700, 99.0)
    assert row.measured == {"p50": 3.0}
    assert row.ended_at is not None
    say(plane, [entry(4, "deployment", moved(deployment, "rolling_back", reason="marker"))])
    with plane.readers() as session:
        assert session.get_one(Deployment, deployment).state == "rolling_back"


def test_a_device_cannot_speak_for_the_deployment_of_another(plane: Plane, deployment: str) -> None:
    with plane.sessions.begin() as session:
        session.get_one(Deployment, deployment).device = "auk"
    say(plane, [entry(1, "deployment", moved(deployment, "committed"))])
    with plane.readers() as session:
        assert session.get_one(Deployment, deployment).state == "assigned"


def test_the_reported_half_of_the_twin_is_kept_and_a_last_will_only_ends_the_connection(plane: Plane) -> None:
    reported = messages.Reported(
        version=3,
        online=True,
        state="committed",
        agent="1",
        profile="x86-64-gateway",
        runtime="onnxruntime",
        architecture="x86_64",
        manifest="ff",
    )
    handle(plane, topics.up(GULL, "reported"), codec.encode(reported))
    will = changed(reported, online=False, state="idle", manifest="", version=1)
    handle(plane, topics.up(GULL, "reported"), codec.encode(will))
    with plane.readers() as session:
        device = session.get_one(Device, "gull")
    assert not device.online
    assert (device.reported["manifest"], device.reported["state"]) == ("ff", "committed")
    assert texts(plane, "device") == ["gull is online", "gull is offline"]


def test_an_answer_to_what_nobody_asked_is_refused(plane: Plane) -> None:
    answer = messages.Answer(id="q1", ok=True, result={"free": 3})
    assert handle(plane, topics.up(GULL, "answer"), codec.encode(answer)) == []
    assert texts(plane, "answer") == []
    assert texts(plane, "refused") == ["gull: answer: expected one to a request to gull, got 'q1'"]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b'{"epoch": "e1"}',
        b'{"epoch": "../x", "entries": []}',
        b'{"epoch": "e1", "entries": [{"sequence": 0, "kind": "window", "event_time": 1, "crc": 1, "body": ""}]}',
        b'{"epoch": "e1", "entries": [{"sequence": 1, "kind": "window", "event_time": NaN, "crc": 1, "body": ""}]}',
        b'{"epoch": "e1", "entries": [{"sequence": 1, "kind": "\\ud800", "event_time": 1, "crc": 1, "body": ""}]}',
        b'{"epoch": "e1", "entries": [{"sequence": 9999999999999999999, "kind": "", "event_time": 1, "crc": 1}]}',
    ],
)
def test_a_payload_that_cannot_be_used_is_refused_once_a_minute_in_the_timeline(
    plane: Plane, payload: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "_refused", ingest._Refusals())
    for _ in range(3):
        assert handle(plane, topics.up(GULL, "outbox"), payload) == []
    with plane.readers() as session:
        assert session.scalar(select(func.count()).select_from(OutboxMark)) == 0
    assert len(texts(plane, "refused")) == 1


def test_who_is_not_enrolled_or_of_another_project_is_left_alone(plane: Plane) -> None:
    payload = codec.encode(messages.Outbox(epoch="e1", entries=(entry(1, "window", window(0)),)))
    for identity in ("watch.auk", "watch.nobody", "other.gull"):
        assert handle(plane, topics.up(identity, "outbox"), payload) == []
    with plane.readers() as session:
        assert session.scalar(select(func.count()).select_from(Window)) == 0
