"""What of a release lies on the broker, when, and for how long."""

import hashlib
import io
import random
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from control_plane import deltas, publication, publisher, rollouts
from control_plane.link import IN_FLIGHT
from control_plane.rollout_planner import WaveRequest
from control_plane.schema.delivery import MadeDelta, Publication
from skerry.delivery.delta import apply_delta
from skerry.delivery.sealed import open_chunk, open_key
from skerry.errors import Rejected
from skerry.wire import topics
from skerry.wire.manifest import CHUNK_BYTES
from tests.device_keys import PRIVATE
from tests.unit.trust.delivering import FIRST, SECOND, World


def test_a_delta_from_what_the_device_runs_is_published_offered_and_gives_the_file(
    world: World, tmp_path: Path
) -> None:
    world.release(1, FIRST)
    world.runs(1)
    world.release(2, SECOND)
    world.make_deltas()
    publication.converge(world.plane)

    content = world.assign(2)
    (delta,) = content.deltas
    assert (delta.file, delta.source) == ("model.onnx", hashlib.sha256(FIRST).hexdigest())
    assert delta.length < 1000
    key = open_key(content.key, PRIVATE, who="watch.gull")
    opened = open_chunk(key, world.broker.blob(delta.sealed), sha256=delta.sha256, number=0)
    assert [hashlib.sha256(opened).hexdigest()] == list(delta.chunks) == [delta.sha256]
    (tmp_path / "old").write_bytes(FIRST)
    out = io.BytesIO()
    apply_delta(opened, tmp_path / "old", out)
    assert out.getvalue() == SECOND


def test_a_device_that_runs_something_else_is_offered_no_delta_from_it(world: World) -> None:
    world.release(1, FIRST)
    world.runs(1)
    world.release(2, SECOND)
    world.make_deltas()
    publication.converge(world.plane)
    world.report(9, manifest="")

    assert world.assign(2).deltas == ()


def test_a_delta_that_saves_too_little_is_not_offered_and_the_timeline_says_so(world: World) -> None:
    world.release(1, FIRST)
    world.runs(1)
    world.release(2, random.Random(6).randbytes(5 * CHUNK_BYTES))
    world.make_deltas()

    with world.plane.readers() as session:
        rows = list(session.scalars(select(MadeDelta).where(MadeDelta.source != "")))
    assert [(row.sha256, "whole file" in row.reason) for row in rows] == [("", True)]
    assert world.assign(2).deltas == ()


def test_a_file_that_packs_well_is_offered_packed_and_a_large_one_is_published_so_alone(world: World) -> None:
    model = random.Random(7).randbytes(CHUNK_BYTES) * 20
    world.release(1, model)
    assert not [count for count in world.broker.chunks().values() if count > 10]
    world.make_deltas()
    publication.converge(world.plane)

    content = world.assign(1)
    (packed,) = content.deltas
    assert packed.source == ""
    assert packed.length < len(model) / 10
    assert set(world.broker.chunks()) == {packed.sealed, content.files["manifest.json"]}


def test_whoever_misses_a_file_asks_and_it_is_published_once_for_all(world: World) -> None:
    world.release(1, random.Random(7).randbytes(CHUNK_BYTES) * 20)
    world.make_deltas()
    content = world.assign(1)
    wanted = content.files["model.onnx"]

    for version in (1, 2, 3):
        world.report(version, stalled=wanted)
        publication.converge(world.plane)
    assert world.broker.chunks()[wanted] == 20
    assert world.broker.chunks(world.broker.sent)[wanted] == 20

    world.report(4, stalled="0" * 64)
    publication.converge(world.plane)
    assert "0" * 64 not in world.broker.chunks()


def test_a_broker_that_kept_everything_is_sent_nothing_again(world: World) -> None:
    world.release(1, FIRST)
    before = list(world.broker.sent)

    publisher.republish_current(world.plane)

    assert world.broker.chunks(world.broker.sent) == world.broker.chunks(before)


@pytest.mark.parametrize("lost", ["all", "the last"])
def test_a_broker_that_lost_chunks_is_sent_them_again(world: World, lost: str) -> None:
    world.release(1, FIRST)
    whole = dict(world.broker.kept)
    chunks = sorted(topic for topic in whole if "/blob/" in topic)
    for topic in chunks if lost == "all" else [topic for topic in chunks if topic.endswith("/4")]:
        del world.broker.kept[topic]

    publisher.republish_current(world.plane)

    assert {topic: world.broker.kept.get(topic) for topic in chunks} == {topic: whole[topic] for topic in chunks}


def test_what_broke_off_goes_on_where_it_was(world: World) -> None:
    model = random.Random(8).randbytes(200 * CHUNK_BYTES)
    world.broker.left = 180
    world.release(1, model)
    world.fail_deltas()
    publication.converge(world.plane)
    there = max(world.broker.chunks().values())
    assert 100 < there < 200

    world.broker.left = 1 << 30
    before = len(world.broker.sent)
    publisher.republish_current(world.plane)

    assert max(world.broker.chunks().values()) == 200
    again = world.broker.chunks(world.broker.sent[before:])
    assert max(again.values()) <= 200 - there + 2 * IN_FLIGHT


def test_chunks_expire_and_are_renewed_at_half_of_their_life(world: World, clock: Any) -> None:
    world.release(1, FIRST)
    once = world.broker.chunks(world.broker.sent)
    publication.converge(world.plane)
    assert world.broker.chunks(world.broker.sent) == once
    assert world.broker.expiries == {30 * 86400}

    clock.turn(timedelta(days=15, seconds=1))
    publication.converge(world.plane)

    assert world.broker.chunks(world.broker.sent) == {sha256: 2 * count for sha256, count in once.items()}


def test_a_release_that_was_succeeded_is_cleared_and_is_there_again_for_a_rollout_of_it(world: World) -> None:
    world.release(1, FIRST)
    first = world.broker.chunks()
    world.release(2, SECOND)
    world.make_deltas()
    publication.converge(world.plane)
    assert not set(first) & set(world.broker.chunks())

    with world.plane.sessions.begin() as session:
        rest = [WaveRequest(name="all", rest=True)]
        rollouts.create(session, release="gestures-1", waves=rest, now=world.plane.clock())
    rollouts.reconcile(world.plane, world.plane.clock())

    assert set(first) <= set(world.broker.chunks())
    blobs = [index for index, topic in enumerate(world.broker.sent) if "/blob/" in topic]
    assert world.broker.sent.index(topics.down("watch.gull", "assign")) > max(blobs)


def test_an_assignment_waits_for_deltas_that_are_being_made_but_not_for_ever(world: World, clock: Any) -> None:
    world.release(1, FIRST)
    with world.plane.sessions.begin() as session:
        rest = [WaveRequest(name="all", rest=True)]
        rollouts.create(session, release="gestures-1", waves=rest, now=clock())

    assert rollouts.reconcile(world.plane, clock()) == 0
    clock.turn(deltas.WAIT + timedelta(seconds=1))
    assert rollouts.reconcile(world.plane, clock()) > 0


def test_a_release_that_the_broker_has_no_room_for_is_refused_in_one_line(world: World) -> None:
    small = replace(world.plane.settings, broker_retained_mb=1)
    tight = World(replace(world.plane, settings=small), world.broker, world.keys)
    tight.release(1, FIRST)

    with pytest.raises(
        Rejected, match=r"gestures-2: expected at most 1 MB of retained messages, got 1\.3 MB"
    ) as caught:
        tight.stage(2, random.Random(9).randbytes(20 * CHUNK_BYTES))

    assert "\n" not in str(caught.value)
    assert "over_budget" in str(caught.value)


def test_with_https_for_what_is_over_the_budget_such_a_release_takes_that_road_alone(world: World) -> None:
    small = replace(world.plane.settings, broker_retained_mb=1, over_budget="https")
    tight = World(replace(world.plane, settings=small), world.broker, world.keys)
    tight.release(1, random.Random(9).randbytes(20 * CHUNK_BYTES))

    assert tight.assign(1).roads == ("https",)
    assert tight.broker.chunks() == {}


def test_what_publishing_cost_is_counted(world: World) -> None:
    world.release(1, FIRST)
    with world.plane.readers() as session:
        rows = list(session.scalars(select(Publication)))
    assert sum(row.bytes_sent for row in rows) == sum(
        len(each) for topic, each in world.broker.kept.items() if "/blob/" in topic
    )
