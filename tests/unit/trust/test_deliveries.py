"""What of a release lies on the broker, when, and for how long; and what a device may fetch over HTTPS."""

import asyncio
import hashlib
import io
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from control_plane import delta_job, deltas, director, publication, publisher, releases, rollouts
from control_plane.api.app import create_app
from control_plane.ingest import handle
from control_plane.keys import sign_payload
from control_plane.link import IN_FLIGHT, Outgoing
from control_plane.plane import Plane
from control_plane.rollout_planner import WaveRequest
from control_plane.schema.delivery import MadeDelta, Publication
from control_plane.schema.devices import Device, DeviceToken
from control_plane.schema.models import Build, ModelVersion
from control_plane.schema.work import Job
from control_plane.settings import Settings
from skerry.delivery.delta import apply_delta
from skerry.delivery.sealed import open_chunk, open_key
from skerry.errors import Rejected
from skerry.wire import codec, topics
from skerry.wire.manifest import CHUNK_BYTES, SEALED_CHUNK_BYTES
from skerry.wire.messages import Content, Reported, Terms
from tests.device_keys import PRIVATE, PUBLIC

# as good as random, so that packing it by itself saves nothing
FIRST = random.Random(5).randbytes(5 * CHUNK_BYTES)
SECOND = FIRST[: 3 * CHUNK_BYTES] + b"trained on" + FIRST[3 * CHUNK_BYTES + 10 :]
PROFILE = "x86-64-gateway"


class Broker(Outgoing):
    """A broker that retains what it is given, breaks off after `left` messages, and can be looked into."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, bytes] = {}
        self.sent: list[str] = []
        self.expiries: set[int] = set()
        self.left = 1 << 30
        self.open(lambda: None, self._held)

    def publish(self, topic: str, payload: bytes, *, retain: bool, qos: int = 1, expiry_s: int = 0) -> bool:
        """Keep a message, or drop it when the connection is over."""
        assert retain
        assert qos == 1
        if not self.left:
            return False
        self.left -= 1
        self.sent.append(topic)
        self.kept[topic] = payload
        if not payload:
            del self.kept[topic]
        elif "/blob/" in topic:
            self.expiries.add(expiry_s)
        return True

    def _held(self, wanted: Sequence[str]) -> set[str]:
        assert len(wanted) <= 8
        return {topic for topic in wanted if topic in self.kept}

    def chunks(self, names: Collection[str] = ()) -> dict[str, int]:
        """Return how many chunks of each blob are retained."""
        found: dict[str, int] = {}
        for topic in names or self.kept:
            if "/blob/" in topic:
                sha256 = topic.split("/")[3]
                found[sha256] = found.get(sha256, 0) + 1
        return found

    def blob(self, sha256: str) -> bytes:
        """Return a sealed blob as its chunks give it."""
        count = self.chunks()[sha256]
        return b"".join(self.kept[topics.blob(sha256, number)] for number in range(count))


@dataclass
class World:
    """A plane with its broker, and what a test does to them."""

    plane: Plane
    broker: Broker
    keys: Path

    def release(self, version: int, model: bytes) -> str:
        """Release a version of the model with one build, and make its deltas."""
        name = self.stage(version, model)
        with self.plane.sessions.begin() as session:
            for each in sign_payload(self.keys, releases.payload(session, name)):
                releases.add_signature(self.plane, session, name, **each)
        publisher.announce_release(self.plane, name)
        return name

    def stage(self, version: int, model: bytes) -> str:
        """Build a version and stage its release."""
        plane, now = self.plane, self.plane.clock()
        file = plane.blobs.put(model)
        build = Build(model="gestures", version=version, profile=PROFILE, gate="passed", built_at=now)
        build.manifest, build.files = plane.blobs.put(b"manifest %d" % version), {"model.onnx": file}
        with plane.sessions.begin() as session:
            session.add(ModelVersion(model="gestures", version=version, dataset="d", bundle=file, trained_at=now))
            session.add(build)
            session.flush()
            return releases.stage(plane, session, model="gestures", version=version).name

    def make_deltas(self) -> None:
        """Do the queued jobs, as the pool does."""
        with self.plane.sessions.begin() as session:
            for job in session.scalars(select(Job).where(Job.kind == deltas.KIND, Job.state == "queued")):
                tasks = delta_job.tasks(job.parameters)
                results = [delta_job.work(str(self.plane.home.path), task, lambda _: None) for task in tasks]
                delta_job.finish(session, job.parameters, results, self.plane.clock())
                job.state = "done"

    def fail_deltas(self) -> None:
        """Let the queued jobs fail: then files are sent as they are."""
        with self.plane.sessions.begin() as session:
            for job in session.scalars(select(Job).where(Job.kind == deltas.KIND)):
                job.state = "failed"

    def assign(self, version: int) -> Content:
        """Assign a version to the device and return how it comes by it."""
        with self.plane.sessions.begin() as session:
            release = releases.get(session, f"gestures-{version}")
            terms = Terms(device="", counter=0, issued="", deployment="d1", release=release.name)
            target = releases.target_path(release, PROFILE)
            director.assign(self.plane, session, device="gull", terms=terms, target=target)
            content = director.terms_of(session, "gull")[0].content
            assert content is not None
            return content

    def runs(self, version: int) -> None:
        """Let the device report a version."""
        manifest = hashlib.sha256(b"manifest %d" % version).hexdigest()
        self.report(version, manifest=manifest)

    def report(self, version: int, **said: Any) -> None:
        """Let the device report something."""
        reported = Reported(
            version=version,
            online=True,
            state="idle",
            agent="1",
            profile=PROFILE,
            runtime="onnxruntime",
            architecture="x86_64",
        )
        handle(self.plane, topics.up("watch.gull", "reported"), codec.encode(replace(reported, **said)))


@pytest.fixture
def world(founded: Plane, keys: Path) -> World:
    """Return a plane after the ceremony, with one device, on a broker of another machine."""
    now = founded.clock()
    settings = Settings(project="watch", broker="mqtts://broker:8883")
    broker = Broker()
    with founded.sessions.begin() as session:
        session.add(
            Device(
                name="gull",
                profile=PROFILE,
                certificate_serial="1",
                certificate_expires=now,
                enrolled_at=now,
                public_key=PUBLIC,
                reported={},
            )
        )
    return World(replace(founded, settings=settings, outgoing=broker), broker, keys)


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


# -- ranges over HTTPS


@pytest.fixture
def fetch(world: World) -> Callable[..., httpx.Response]:
    """Return a function that asks for a blob as the device does."""
    with world.plane.sessions.begin() as session:
        digest = hashlib.sha256(b"let me in").hexdigest()
        session.add(DeviceToken(sha256=digest, device="gull", expires=world.plane.clock() + timedelta(hours=1)))
    transport = httpx.ASGITransport(create_app(world.plane))

    async def get(path: str, headers: dict[str, str]) -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="https://server") as client:
            return await client.get(path, headers=headers)

    def ask(sha256: str, span: str = "", *, shown: str = "let me in") -> httpx.Response:
        headers = {"Authorization": f"Bearer {shown}", **({"Range": span} if span else {})}
        return asyncio.run(get(f"/v1/blob/{sha256}", headers))

    return ask


def test_ranges_are_the_sealed_chunks_of_what_the_asker_is_assigned(
    world: World, fetch: Callable[..., httpx.Response]
) -> None:
    world.release(1, FIRST)
    name = world.assign(1).files["model.onnx"]
    start, end = SEALED_CHUNK_BYTES, 3 * SEALED_CHUNK_BYTES - 1

    answer = fetch(name, f"bytes={start}-{end}")

    assert answer.status_code == 206
    assert answer.content == world.broker.blob(name)[start : end + 1]
    assert answer.headers["content-range"] == f"bytes {start}-{end}/{5 * SEALED_CHUNK_BYTES}"


def test_an_answer_is_bounded_and_the_last_range_ends_with_the_blob(
    world: World, fetch: Callable[..., httpx.Response]
) -> None:
    world.release(1, random.Random(8).randbytes(20 * CHUNK_BYTES))
    name = world.assign(1).files["model.onnx"]

    whole, end = fetch(name), fetch(name, f"bytes={19 * SEALED_CHUNK_BYTES}-")

    assert len(whole.content) == 16 * SEALED_CHUNK_BYTES
    assert len(end.content) == SEALED_CHUNK_BYTES


@pytest.mark.parametrize("span", ["bytes=99999999-", "bytes=5-4", "bytes=0-1,5-6", "bytes=-5", "chunks=1-2"])
def test_a_range_that_is_none_is_refused_with_the_length(
    world: World, fetch: Callable[..., httpx.Response], span: str
) -> None:
    world.release(1, FIRST)
    answer = fetch(world.assign(1).files["model.onnx"], span)

    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{5 * SEALED_CHUNK_BYTES}"


def test_nothing_in_the_clear_and_nothing_unassigned_is_served(
    world: World, fetch: Callable[..., httpx.Response]
) -> None:
    world.release(1, FIRST)
    sealed = world.broker.chunks()
    assert {fetch(sha256).status_code for sha256 in sealed} == {404}

    world.assign(1)

    assert {fetch(sha256).status_code for sha256 in sealed} == {206}
    assert fetch(hashlib.sha256(FIRST).hexdigest()).status_code == 404
    assert fetch("../operator.token").status_code == 404
    assert fetch(next(iter(sealed)), shown="let me in too").status_code == 401


def test_what_publishing_cost_is_counted(world: World) -> None:
    world.release(1, FIRST)
    with world.plane.readers() as session:
        rows = list(session.scalars(select(Publication)))
    assert sum(row.bytes_sent for row in rows) == sum(
        len(each) for topic, each in world.broker.kept.items() if "/blob/" in topic
    )
