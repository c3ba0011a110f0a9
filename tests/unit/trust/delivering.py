"""A control plane with a release to deliver, and a broker that keeps what is retained."""

import hashlib
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import select

from control_plane import delta_job, deltas, director, publisher, releases
from control_plane.ingest import handle
from control_plane.keys import sign_payload
from control_plane.link import Outgoing
from control_plane.plane import Plane
from control_plane.schema.models import Build, ModelVersion
from control_plane.schema.work import Job
from control_plane.settings import Settings
from skerry.wire import codec, topics
from skerry.wire.manifest import CHUNK_BYTES
from skerry.wire.messages import Content, Reported, Terms
from tests.device_rows import enrolled

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


def found_world(founded: Plane, keys: Path) -> World:
    """Return a plane after the ceremony, with one device, on a broker of another machine."""
    settings = Settings(project="watch", broker="mqtts://broker:8883")
    broker = Broker()
    with founded.sessions.begin() as session:
        session.add(enrolled("gull", founded.clock(), profile=PROFILE))
    return World(replace(founded, settings=settings, outgoing=broker), broker, keys)
