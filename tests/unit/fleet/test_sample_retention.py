"""How long samples are kept, who may delete and read them, and that all of it is counted and written down."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from control_plane import events, revocation, sample_retention, samples
from control_plane.plane import Plane
from control_plane.refusals import Unknown
from control_plane.sample_retention import MB, Deleted, erase, keep
from control_plane.schema.devices import Device
from control_plane.schema.telemetry import OutboxMark, Sample, Window
from control_plane.schema.work import Event
from control_plane.settings import Settings
from skerry.errors import Rejected
from skerry.wire.sample import Sample as Said
from skerry.wire.sample import encode_sample
from tests.unit.fleet.test_ingest import entry, say, window

Put = Callable[..., str]


@pytest.fixture
def put(plane: Plane) -> Put:
    """Return a function that stores a sample, or the note on one in quarantine, and returns its blob's name."""
    numbers = iter(range(1, 1000))
    with plane.sessions.begin() as session:
        ends = plane.clock() + timedelta(days=9)
        for name in ("gull", "tern"):
            if session.get(Device, name) is None:
                session.add(
                    Device(name=name, profile="p", certificate_serial="1", certificate_expires=ends, enrolled_at=ends)
                )
            session.add(OutboxMark(device=name, epoch="e1", beyond={}, recent={}, first_seen=plane.clock()))

    def put(device: str = "gull", *, age_d: float = 0.0, size: int = 4, why: str = "", what: str = "") -> str:
        number = next(numbers)
        said = Said("ab" * 8, 3, inputs={"x": (what or f"row {number}").encode()})
        blob = "" if why else plane.blobs.put(encode_sample(said))
        with plane.sessions.begin() as session:
            session.add(
                Sample(
                    device=device,
                    epoch="e1",
                    sequence=number,
                    manifest="ab" * 8,
                    window=3,
                    size_bytes=size,
                    crc=0,
                    blob=blob,
                    reason=why,
                    taken_at=plane.clock() - timedelta(days=age_d),
                )
            )
        return blob

    return put


def stored(plane: Plane) -> list[tuple[str, int]]:
    """Return device and sequence of what there is."""
    with plane.readers() as session:
        rows = session.scalars(select(Sample).order_by(Sample.id))
        return [(row.device, row.sequence) for row in rows]


def audited(plane: Plane) -> list[Event]:
    """Return what the timeline says of samples."""
    with plane.readers() as session:
        return list(session.scalars(select(Event).where(Event.kind == "samples").order_by(Event.id)))


def limited(plane: Plane, **limits: Any) -> Plane:
    """Return the plane with other limits."""
    return replace(plane, settings=replace(plane.settings, **limits))


def test_samples_and_notes_go_with_their_time_and_are_counted_and_audited(plane: Plane, put: Put) -> None:
    old, _, young = put(age_d=91, size=40), put(age_d=91, why="too large"), put(age_d=89)
    assert keep(plane) == Deleted(stored=1, size_bytes=40, quarantined=1)
    assert stored(plane) == [("gull", 3)]
    assert [plane.blobs.exists(each) for each in (old, young)] == [False, True]
    (event,) = audited(plane)
    assert event.text == (
        "gull: 1 stored samples of 40 bytes were deleted by the server's clock: older than 90 days; "
        "so were the notes on 1 that were quarantined"
    )
    assert event.data["numbers"] == [1, 2]
    with plane.readers() as session:
        assert samples.account(session, "gull") == {"stored": 1, "size_bytes": 4, "quarantined": 0, "deleted": 2}
    assert keep(plane) == Deleted()
    assert len(audited(plane)) == 1


def test_the_oldest_of_a_device_that_has_too_many_go_and_no_other_devices(plane: Plane, put: Put) -> None:
    for _ in range(4):
        put(size=900_000)
    put("tern", size=MB)
    put(size=900_000, why="no content, so little room")
    assert keep(limited(plane, sample_device_mb=2)) == Deleted(stored=2, size_bytes=1_800_000)
    assert stored(plane) == [("gull", 3), ("gull", 4), ("tern", 5), ("gull", 6)]


def test_the_oldest_of_all_devices_go_when_they_have_too_many_together(plane: Plane, put: Put) -> None:
    for device in ("gull", "tern", "gull", "tern"):
        put(device, size=MB)
    assert keep(limited(plane, sample_fleet_mb=2)).stored == 2
    assert stored(plane) == [("gull", 3), ("tern", 4)]
    assert {event.subject for event in audited(plane)} == {"gull", "tern"}


def test_tiny_samples_and_notes_count_for_what_their_files_and_rows_take_up(plane: Plane, put: Put) -> None:
    room = MB // sample_retention.LEAST_BYTES
    with plane.sessions.begin() as session:
        session.add_all(
            Sample(
                device="gull",
                epoch="e1",
                sequence=1000 + number,
                size_bytes=1,
                crc=0,
                reason="its manifest allows no samples",
                taken_at=plane.clock(),
            )
            for number in range(room)
        )
    put(size=1)
    assert keep(limited(plane, sample_device_mb=1)) == Deleted(quarantined=1)
    assert keep(limited(plane, sample_fleet_mb=1)) == Deleted()


def test_many_go_in_several_transactions(plane: Plane, put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_retention, "BATCH", 2)
    for _ in range(5):
        put(age_d=100)
    assert keep(plane).stored == 5
    assert [event.data["stored"] for event in audited(plane)] == [2, 2, 1]


def test_bytes_that_another_sample_has_too_stay_for_it(plane: Plane, put: Put) -> None:
    blob = put(age_d=100, what="the same")
    assert put("tern", what="the same") == blob
    keep(plane)
    assert plane.blobs.exists(blob)
    assert erase(plane, "tern", by="me").stored == 1
    assert not plane.blobs.exists(blob)


def test_an_operator_deletes_those_named_or_all(plane: Plane, put: Put) -> None:
    blobs = [put() for _ in range(4)]
    put("tern")
    assert erase(plane, "gull", [2, 3], by="operator at 127.0.0.1").stored == 2
    assert audited(plane)[0].text.endswith("were deleted by operator at 127.0.0.1: an operator said so")
    for wrong in ([1, 2], [1, 5], [99]):
        with pytest.raises(Rejected, match=r"expected numbers of samples of gull, got .*; nothing was deleted"):
            erase(plane, "gull", wrong, by="me")
    assert stored(plane) == [("gull", 1), ("gull", 4), ("tern", 5)]
    erase(plane, "gull", by="me")
    assert stored(plane) == [("tern", 5)]
    assert not any(map(plane.blobs.exists, blobs))
    with pytest.raises(Unknown, match="nobody"):
        erase(plane, "nobody", by="me")


def test_what_is_deleted_is_not_taken_in_again(plane: Plane) -> None:
    body = encode_sample(Said("ab" * 8, 3, inputs={"x": b"1234"}))
    say(plane, [entry(1, "sample", body)])
    erase(plane, "gull", by="me")
    assert say(plane, [entry(1, "sample", body)]).up_to == 1
    assert stored(plane) == []


def test_bytes_that_are_gone_with_a_row_that_is_not_are_read_by_nobody_and_go_next(plane: Plane, put: Put) -> None:
    # lost, not deleted: a disk, or a backup without them
    plane.blobs.delete([put(age_d=100)])
    assert samples.page(plane, "gull", manifests=["ab" * 8], after=-1, limit=10, by="me") == []
    assert keep(plane).stored == 1


def test_a_page_goes_on_beyond_bytes_that_are_gone(plane: Plane, put: Put) -> None:
    plane.blobs.delete([put(), put(), put()])
    put(), put()
    for limit, seen in ((1, [4]), (10, [4, 5])):
        rows = samples.page(plane, "gull", manifests=["ab" * 8], after=-1, limit=limit, by="me")
        assert [row["id"] for row in rows] == seen


def test_a_deletion_that_a_crash_cuts_off_is_ended_by_the_next_turn(
    plane: Plane, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = put()
    put("tern")

    def crash(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(events, "record", crash)
        with pytest.raises(KeyboardInterrupt):
            erase(plane, "gull", by="me")
    assert not plane.blobs.exists(blob)
    with plane.readers() as session:
        assert [each["state"] for each in samples.listed(session, "gull", after=-1, limit=9)] == ["deleting"]
    assert keep(plane) == Deleted(stored=1, size_bytes=4)
    assert stored(plane) == [("tern", 2)]
    assert audited(plane)[0].text.endswith("by the server's clock: its deletion was cut off")


def test_all_of_a_device_go_in_several_answers(plane: Plane, put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_retention, "MOST_OF_AN_ANSWER", 2)
    for _ in range(3):
        put()
    assert [erase(plane, "gull", by="me").stored for _ in range(3)] == [2, 1, 0]
    assert erase(plane, "tern", by="me") == Deleted()


def test_reading_says_who_read_which_before_anything_is_handed_out(plane: Plane, put: Put) -> None:
    put(), put()
    assert samples.page(plane, "gull", manifests=["cd" * 8], after=-1, limit=10, by="me") == []
    assert audited(plane) == []
    rows = samples.page(plane, "gull", manifests=["ab" * 8], after=-1, limit=10, by="operator at 127.0.0.1")
    assert [row["id"] for row in rows] == [1, 2]
    (event,) = audited(plane)
    assert event.text == "operator at 127.0.0.1 read 2 samples of gull, numbers 1 to 2"
    assert event.data == {"action": "read", "by": "operator at 127.0.0.1", "numbers": [1, 2]}


@pytest.mark.parametrize(("end", "left"), [("revoked", 2), ("decommissioned", 0), ("enrolled", 2)])
def test_samples_go_with_a_decommissioned_device_and_stay_of_a_revoked_one_and_windows_always_stay(
    plane: Plane, put: Put, end: str, left: int
) -> None:
    say(plane, [entry(900, "window", window(1))], epoch="e1")
    blob = put()
    put(why="too large")
    put("tern")
    if end == "revoked":
        revocation.revoke(plane, "gull")
    elif end == "decommissioned":
        revocation.decommission(plane, "gull", now=True)
    keep(plane)
    assert len(stored(plane)) == left + 1
    assert plane.blobs.exists(blob) == bool(left)
    with plane.readers() as session:
        assert session.scalars(select(Window.device)).all() == ["gull"]


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"sample_days": 0}, "sample_days: expected 1 to 3650, got 0"),
        ({"sample_days": 4000}, "sample_days: expected 1 to 3650, got 4000"),
        ({"sample_device_mb": 0}, "sample_device_mb: expected 1 to "),
        ({"sample_fleet_mb": -1}, "sample_fleet_mb: expected 1 to "),
    ],
)
def test_limits_that_would_keep_nothing_or_for_ever_are_refused(wrong: dict[str, Any], line: str) -> None:
    with pytest.raises(Rejected, match=line):
        Settings(project="watch", **wrong)


def test_names_that_no_blob_has_are_no_matter_to_a_deletion(plane: Plane) -> None:
    kept = plane.blobs.put(b"kept")
    plane.blobs.delete(["0" * 64, "", "../skerry.db"])
    assert plane.blobs.exists(kept)
    assert plane.home.database.exists()
