"""What is handed to the broker, in which order, and what it costs."""

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from control_plane import director, publication, publisher, releases
from control_plane.keys import sign_payload
from control_plane.link import Message, Outgoing
from control_plane.plane import Plane
from control_plane.schema.delivery import Publication
from control_plane.schema.devices import Device
from control_plane.schema.models import Build, ModelVersion
from control_plane.schema.releases import Release
from control_plane.sealing import seal
from skerry.delivery.sealed import open_chunk
from skerry.wire.manifest import CHUNK_BYTES, SEALED_CHUNK_BYTES, SEALING_BYTES
from skerry.wire.messages import Terms
from tests.device_rows import enrolled

MODEL = random.Random(4).randbytes(4 * CHUNK_BYTES)
SEALED_BYTES = len(MODEL) + 4 * SEALING_BYTES + len(b"{}") + SEALING_BYTES


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
                files={"model.onnx": model},
                built_at=now,
            )
        )
        session.add(enrolled("wearer-8", now))
        session.flush()
        releases.stage(founded, session, model="gestures", version=1)
        payload = releases.payload(session, "gestures-1")
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


def chunks_of(messages: list[Message]) -> dict[str, bytes]:
    """Return the published chunks by their place, HASH/N."""
    mark = "skerry/1/blob/"
    return {each.topic.removeprefix(mark): each.payload for each in messages if each.topic.startswith(mark)}


def test_everything_is_retained_and_chunks_are_of_64_kib_sealed(live: Plane) -> None:
    messages = sent(live, publisher.republish_current)

    assert all(message.retain and message.qos == 1 for message in messages)
    lengths = sorted(len(chunk) for chunk in chunks_of(messages).values())
    assert lengths == [2 + SEALING_BYTES, *[SEALED_CHUNK_BYTES] * 4]


def test_what_is_published_is_named_by_its_ciphertext_and_opens_by_the_content_key(live: Plane) -> None:
    chunks = chunks_of(sent(live, publisher.republish_current))
    with live.sessions.begin() as session:
        sealed = seal(live, session, live.blobs.put(b"{}"))

    name, plain = sealed.files["model.onnx"], hashlib.sha256(MODEL).hexdigest()
    found = [chunks[f"{name}/{number}"] for number in range(4)]
    opened = [open_chunk(sealed.key, chunk, sha256=plain, number=number) for number, chunk in enumerate(found)]
    assert b"".join(opened) == MODEL
    assert hashlib.sha256(b"".join(found)).hexdigest() == name
    assert {place.partition("/")[0] for place in chunks} == set(sealed.files.values())


def test_nothing_of_a_file_is_published_in_the_clear(live: Plane) -> None:
    said = b"\n".join(
        payload for each in sent(live, publisher.republish_current) for payload in (each.topic.encode(), each.payload)
    )

    assert not any(MODEL[start : start + 32] in said for start in range(0, len(MODEL) - 32, 1024))


def test_an_artifact_is_sealed_once_so_that_what_is_published_again_are_the_same_bytes(live: Plane) -> None:
    first = chunks_of(sent(live, publisher.republish_current))

    assert chunks_of(sent(live, publisher.republish_current)) == first


def test_what_an_older_server_published_in_the_clear_is_cleared(live: Plane) -> None:
    sha256 = live.blobs.put(MODEL)
    with live.sessions.begin() as session:
        session.add(Publication(sha256=sha256, release="gestures-1", length=len(MODEL)))

    cleared = [each for each in sent(live, publisher.republish_current) if f"/blob/{sha256}/" in each.topic]

    assert [(each.topic[-2:], each.payload, each.retain) for each in cleared] == [
        (f"/{number}", b"", True) for number in range(4)
    ]
    with live.readers() as session:
        assert session.get(Publication, sha256) is None
    assert not [each for each in sent(live, publisher.republish_current) if f"/blob/{sha256}/" in each.topic]


def test_the_chunks_of_a_release_that_is_live_no_more_are_cleared(live: Plane) -> None:
    published = chunks_of(sent(live, publisher.republish_current))
    with live.sessions.begin() as session:
        session.get_one(Release, "gestures-1").state = "revoked"

    assert chunks_of(sent(live, publisher.republish_current)) == dict.fromkeys(published, b"")


def test_every_byte_that_is_sent_is_counted(live: Plane) -> None:
    sent(live, lambda plane: publication.publish_release(plane, "gestures-1"))
    assert bytes_sent(live) == SEALED_BYTES

    # a broker that kept nothing is given all of it anew
    sent(live, publisher.republish_current)
    assert bytes_sent(live) == 2 * SEALED_BYTES


def test_what_is_published_is_not_published_again(live: Plane) -> None:
    sent(live, lambda plane: publication.publish_release(plane, "gestures-1"))

    assert sent(live, lambda plane: publication.publish_release(plane, "gestures-1")) == []
    assert chunks_of(sent(live, publication.converge)) == {}
    assert bytes_sent(live) == SEALED_BYTES


def test_what_finds_no_broker_is_not_counted(live: Plane) -> None:
    live.outgoing.close()

    assert sent(live, publisher.republish_current) == []
    assert bytes_sent(live) == 0


def test_a_lost_blob_keeps_nothing_else_back(live: Plane) -> None:
    with live.sessions.begin() as session:
        sealed = seal(live, session, live.blobs.put(b"{}"))
    (live.home.blobs / sealed.files["manifest.json"]).unlink()

    names = [message.topic for message in sent(live, publisher.republish_current)]

    assert "skerry/1/tuf/watch/index" in names
    assert names[-1].endswith("/down/assign")


def test_nothing_is_published_before_the_ceremony(plane: Plane) -> None:
    plane.outgoing.open(lambda: None)

    assert sent(plane, publisher.republish_current) == []


def test_a_device_without_a_key_keeps_no_other_from_its_renewal(live: Plane, clock: Callable[[], object]) -> None:
    from datetime import timedelta

    with live.sessions.begin() as session:
        live_device = session.get_one(Device, "wearer-8")
        live_device.public_key = ""

    clock.turn(timedelta(days=4))  # type: ignore[attr-defined]
    names = [message.topic.rpartition("/")[2] for message in sent(live, publisher.renew)]
    assert "timestamp" in names
    assert "assign" not in names


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
