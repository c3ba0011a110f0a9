"""What is handed to the broker, in which order, and what it costs."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from control_plane import director, publisher, releases
from control_plane.keys import sign_payload
from control_plane.link import Message, Outgoing
from control_plane.plane import Plane
from control_plane.schema import Build, Device, ModelVersion, Publication
from skerry.wire.manifest import CHUNK_BYTES
from skerry.wire.messages import Terms

MODEL = bytes(range(256)) * 1024


@pytest.fixture
def live(founded: Plane, keys: Path) -> Plane:
    """Return a plane with a live release of one build, assigned to a device, and an open way out."""
    now = founded.clock()
    manifest, model = founded.blobs.put(b"{}"), founded.blobs.put(MODEL)
    with founded.sessions.begin() as session:
        session.add(ModelVersion(model="gestures", version=1, dataset="d", bundle=model, trained_at=now))
        session.add(
            Build(
                model="gestures",
                version=1,
                profile="x86-64-gateway",
                gate="passed",
                manifest=manifest,
                files={"model.onnx": model, "manifest.json": manifest},
                built_at=now,
            )
        )
        session.add(
            Device(
                name="wearer-8",
                profile="x86-64-gateway",
                certificate_serial="1",
                certificate_expires=now,
                enrolled_at=now,
            )
        )
        session.flush()
        payload = releases.stage(founded, session, model="gestures", version=1).payload
        for each in sign_payload(keys, payload):
            release = releases.add_signature(founded, session, "gestures-1", **each)
        terms = Terms(device="", counter=0, issued="", deployment="d1", release="gestures-1")
        target = releases.target_path(release, "x86-64-gateway")
        director.assign(founded, session, device="wearer-8", terms=terms, target=target)
    founded.outgoing.open(lambda: None)
    return founded


def sent(plane: Plane, publish: Callable[[Plane], object]) -> list[Message]:
    """Return the messages that a call hands over."""
    publish(plane)
    messages = []
    while (message := plane.outgoing.take()) is not None:
        messages.append(message)
    return messages


def bytes_sent(plane: Plane) -> int:
    """Return what the publications count."""
    with plane.readers() as session:
        return sum(session.scalars(select(Publication.bytes_sent)))


def test_chunks_come_before_metadata_before_the_index_before_assignments(live: Plane) -> None:
    names = [message.topic.removeprefix("skerry/1/") for message in sent(live, publisher.republish_current)]

    kinds = [name.partition("/")[0] for name in names]
    assert kinds == ["blob"] * 5 + ["tuf"] * (len(kinds) - 6) + ["d"]
    assert names.index("tuf/watch/timestamp") < names.index("tuf/watch/index")
    assert names[-1] == "d/watch.wearer-8/down/assign"


def test_everything_is_retained_and_chunks_are_of_64_kib(live: Plane) -> None:
    messages = sent(live, publisher.republish_current)

    assert all(message.retain and message.qos == 1 for message in messages)
    chunks = [message.payload for message in messages if "/blob/" in message.topic and len(message.payload) > 2]
    assert b"".join(chunks) == MODEL
    assert {len(chunk) for chunk in chunks} == {CHUNK_BYTES}


def test_every_byte_that_is_sent_is_counted(live: Plane) -> None:
    sent(live, lambda plane: publisher.publish_release(plane, "gestures-1"))
    assert bytes_sent(live) == len(MODEL) + len(b"{}")

    sent(live, lambda plane: publisher.publish_release(plane, "gestures-1"))
    assert bytes_sent(live) == 2 * (len(MODEL) + len(b"{}"))


def test_what_finds_no_broker_is_not_counted(live: Plane) -> None:
    live.outgoing.close()

    assert sent(live, publisher.republish_current) == []
    assert bytes_sent(live) == 0


def test_a_lost_blob_keeps_nothing_else_back(live: Plane) -> None:
    (live.home.blobs / live.blobs.put(b"{}")).unlink()

    names = [message.topic for message in sent(live, publisher.republish_current)]

    assert "skerry/1/tuf/watch/index" in names
    assert names[-1].endswith("/down/assign")


def test_nothing_is_published_before_the_ceremony(plane: Plane) -> None:
    plane.outgoing.open(lambda: None)

    assert sent(plane, publisher.republish_current) == []


def test_renewal_publishes_what_it_signed(live: Plane, clock: Callable[[], object]) -> None:
    from datetime import timedelta

    assert sent(live, publisher.renew) == []

    clock.turn(timedelta(days=4))  # type: ignore[attr-defined]
    names = [message.topic.rpartition("/")[2] for message in sent(live, publisher.renew)]
    assert "timestamp" in names
    assert names[-1] == "assign"


def test_a_full_queue_makes_the_publisher_wait_until_the_link_takes(live: Plane) -> None:
    import threading

    outgoing = Outgoing(limit=1)
    outgoing.open(lambda: None)
    assert outgoing.publish("a", b"1", retain=False)
    waiting = threading.Thread(target=outgoing.publish, args=("a", b"2"), kwargs={"retain": False})
    waiting.start()

    first = outgoing.take()
    waiting.join(5)

    second = outgoing.take()
    assert first is not None
    assert second is not None
    assert (first.payload, second.payload, outgoing.dropped) == (b"1", b"2", 0)
