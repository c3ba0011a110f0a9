"""Shorter ways to a file: a delta from what runs, a packed form, a copy; and whatever goes wrong, the file itself."""

import hashlib
import random
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from agent.config import Config
from agent.deployment.lifecycle import Grant
from agent.fetching.delivery import Delivery, Key, manifest_entry
from agent.fetching.fetch import fetch_files
from agent.fetching.rest import begin_to_encrypt, open_vault
from skerry.delivery.delta import make_delta
from skerry.delivery.partial import PartialFile
from skerry.delivery.sealed import make_key, seal_file, seal_key
from skerry.delivery.slots import MANIFEST, Slots
from skerry.errors import Rejected, Unavailable
from skerry.wire import codec, topics
from skerry.wire.manifest import CHUNK_BYTES, SEALED_CHUNK_BYTES, FileEntry, Manifest, describe_file
from skerry.wire.messages import Content
from tests.device_keys import PRIVATE, PUBLIC
from tests.manifests import make_manifest, offer_delta

WHO = "watch.gull-1"
KEY = make_key()
OLD = random.Random(1).randbytes(4 * CHUNK_BYTES + 100)
NEW = OLD[:100_000] + random.Random(2).randbytes(900) + OLD[100_000:]
GOLDEN = random.Random(3).randbytes(CHUNK_BYTES + 9)


def make_files(version: int, model: bytes) -> Manifest:
    """Return a manifest of a model and its golden vectors."""
    return make_manifest({"model.onnx": model, "golden.npz": GOLDEN}, version=version)


def make(old: bytes, new: bytes) -> bytes:
    """Return a delta between files without tensors."""
    delta = make_delta(old, new, source_tensors=(), target_tensors=())
    assert delta is not None
    return delta


@dataclass
class Shelf:
    """A broker's retained messages; what is sealed and put on it has a name."""

    held: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    open: bool = True

    def put(self, data: bytes) -> str:
        """Seal a file, put it on the shelf and return the SHA-256 of its sealed form."""
        chunks = list(seal_file(KEY, data, sha256=hashlib.sha256(data).hexdigest()))
        name = hashlib.sha256(b"".join(chunks)).hexdigest()
        self.held |= {topics.blob(name, number): chunk for number, chunk in enumerate(chunks)}
        return name

    def drop(self, name: str) -> None:
        """Take a sealed file from the shelf."""
        self.held = {topic: data for topic, data in self.held.items() if name not in topic}

    def fetch_retained(self, wanted: Sequence[str], *, timeout_s: float) -> dict[str, bytes]:
        """Return what is retained."""
        assert timeout_s > 0
        if not self.open:
            raise Unavailable("no connection")
        self.asked += wanted
        return {topic: self.held[topic] for topic in wanted if topic in self.held}


@dataclass
class Device:
    """A device that runs `OLD` and is granted `NEW`."""

    path: Path
    encrypted: bool = False

    def __post_init__(self) -> None:
        (self.path / "device.key").write_bytes(PRIVATE)
        config = Config()
        if self.encrypted:
            begin_to_encrypt(self.path, self.path / "rest.key")
            config = replace(config, rest_key_file=str(self.path / "rest.key"))
        self.slots = Slots(self.path / "slots", open_vault(config.rest_key_file))
        self.shelf = Shelf()
        first = make_files(1, OLD)
        files = {"model.onnx": OLD, "golden.npz": GOLDEN, MANIFEST: codec.encode(first)}
        self.slots.stage(files, release="strokes-1", deployment="d1")
        self.slots.activate()
        self.slots.commit()
        self.manifest = make_files(2, NEW)
        self.config = config
        self.delivery = self.restarted()
        data = codec.encode(self.manifest)
        self.content = Content(
            key=seal_key(KEY, PUBLIC, who=WHO),
            files={
                "model.onnx": self.shelf.put(NEW),
                "golden.npz": self.shelf.put(GOLDEN),
                MANIFEST: self.shelf.put(data),
            },
        )
        self.grant = Grant(
            deployment="d2",
            release="strokes-2",
            length=len(data),
            manifest=hashlib.sha256(data).hexdigest(),
            content=self.content,
        )

    def restarted(self) -> Delivery:
        """Return the delivery of an agent that has just started."""
        key = Key(who=WHO, file=self.path / "device.key")
        return Delivery(self.path / "fetch", key=key, config=self.config, link=self.shelf, slots=self.slots)

    def offer(self, *deltas: bytes, source: bytes | None = OLD) -> list[str]:
        """Offer these bytes as deltas of the model and return their sealed names; without a source, as packed forms."""
        from_ = "" if source is None else hashlib.sha256(source).hexdigest()
        offered = [offer_delta(data, source=from_, sealed=self.shelf.put(data)) for data in deltas]
        self.content = replace(self.content, deltas=(*self.content.deltas, *offered))
        self.grant = replace(self.grant, content=self.content)
        return [each.sealed for each in offered]

    def fetch(self) -> int | None:
        """Fetch all files of what was granted."""
        try:
            return self.delivery.fetch([manifest_entry(self.grant), *self.manifest.files], self.grant)
        finally:
            if self.slots.vault:
                self.slots.vault.close()

    def install(self) -> bytes:
        """Fetch and stage, and return the model in the new slot."""
        assert self.fetch() is not None
        self.delivery.stage(self.grant)
        model = self.manifest.files[0]
        loaded = self.slots.load("b", "model.onnx", sha256=model.sha256)
        if self.slots.vault:
            self.slots.vault.close()
        return loaded

    def was_asked_for(self, sealed: str) -> bool:
        """Say whether any chunk of that sealed file was asked for."""
        return any(sealed in topic for topic in self.shelf.asked)


@pytest.fixture
def device(tmp_path: Path) -> Device:
    """A device whose slots are as they are."""
    return Device(tmp_path)


@pytest.fixture
def delta() -> bytes:
    """The delta from what runs."""
    return make(OLD, NEW)


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_a_delta_brings_the_file_and_little_else_comes(tmp_path: Path, delta: bytes, encrypted: bool) -> None:
    device = Device(tmp_path, encrypted=encrypted)
    device.offer(delta)

    assert device.install() == NEW
    assert not device.was_asked_for(device.content.files["model.onnx"])
    assert device.delivery.measured() == {"delta_bytes": len(delta) + 28.0, "fallbacks": 0.0}
    assert device.delivery.received < len(delta) + device.grant.length + 100
    assert device.delivery.progress == 1.0
    if encrypted:
        kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert NEW[:40] not in kept
        assert NEW[100_000:100_040] not in kept


def test_a_file_that_runs_already_is_copied(device: Device) -> None:
    device.install()

    assert not device.was_asked_for(device.content.files["golden.npz"])


def test_a_file_that_runs_and_is_damaged_is_fetched(device: Device) -> None:
    golden = device.slots.folder("a") / "golden.npz"
    golden.write_bytes(GOLDEN[:-1] + b"?")

    assert device.install() == NEW
    assert device.was_asked_for(device.content.files["golden.npz"])


def test_a_packed_form_needs_no_source(device: Device) -> None:
    text = b"the same line again\n" * 9000
    device.manifest = make_files(2, text)
    data = codec.encode(device.manifest)
    files = {**device.content.files, "model.onnx": device.shelf.put(text), MANIFEST: device.shelf.put(data)}
    device.content = replace(device.content, files=files)
    device.grant = replace(device.grant, length=len(data), manifest=hashlib.sha256(data).hexdigest())
    device.offer(make(b"", text), source=None)

    assert device.install() == text
    assert not device.was_asked_for(files["model.onnx"])


def _flipped(delta: bytes) -> bytes:
    return delta[:-40] + bytes([delta[-40] ^ 1]) + delta[-39:]


def _of_other_bytes(_delta: bytes) -> bytes:
    return make(OLD, NEW[:-1] + b"?")


def _longer(_delta: bytes) -> bytes:
    return make(OLD, NEW + OLD)


@pytest.mark.parametrize("spoil", [_flipped, _of_other_bytes, _longer, lambda delta: b"?" * len(delta)])
def test_a_delta_that_does_not_make_the_file_is_tried_once_and_the_file_fetched(
    device: Device, delta: bytes, spoil: object
) -> None:
    assert callable(spoil)
    (sealed,) = device.offer(spoil(delta))

    assert device.install() == NEW
    assert device.was_asked_for(device.content.files["model.onnx"])
    assert device.delivery.measured()["fallbacks"] == 1.0

    device.shelf.asked.clear()
    PartialFile(device.path / "fetch", device.manifest.files[0]).drop()
    device.delivery = device.restarted()
    assert device.fetch() is not None
    assert not device.was_asked_for(sealed)


def test_a_delta_that_is_nowhere_stalls_and_the_file_is_fetched(device: Device, delta: bytes) -> None:
    (sealed,) = device.offer(delta)
    device.shelf.drop(sealed)
    stalled: list[str] = []

    def look() -> bool:
        stalled.append(device.delivery.stalled)
        return False

    device.delivery.interrupted = look

    assert device.install() == NEW
    assert set(stalled) == {"", sealed}
    assert device.delivery.stalled == ""
    assert device.delivery.measured() == {"delta_bytes": 0.0, "fallbacks": 1.0}


def test_without_a_connection_no_way_is_given_up(device: Device, delta: bytes) -> None:
    device.offer(delta)
    device.shelf.open = False
    with pytest.raises(Unavailable, match="no connection"):
        device.fetch()

    device.shelf.open = True
    device.delivery = device.restarted()
    assert device.install() == NEW
    assert device.delivery.measured()["fallbacks"] == 0.0


def test_a_delta_from_what_does_not_run_here_is_left_alone(device: Device, delta: bytes) -> None:
    (sealed,) = device.offer(delta, source=NEW)

    assert device.install() == NEW
    assert not device.was_asked_for(sealed)


def test_a_file_that_is_nearly_here_is_not_begun_anew_with_a_delta(device: Device, delta: bytes) -> None:
    (sealed,) = device.offer(delta.ljust(len(NEW) % CHUNK_BYTES, b"?"))
    entry = device.manifest.files[0]
    part = PartialFile(device.path / "fetch", entry)
    with pytest.raises(Rejected):
        part.make(iter([NEW[: -(len(NEW) % CHUNK_BYTES)]]))

    assert device.install() == NEW
    assert not device.was_asked_for(sealed)


class Silo:
    """A file of pseudo-random chunks, made when they are asked for and never whole in memory."""

    def __init__(self, chunks: int) -> None:
        digest = hashlib.sha256()
        hashes = []
        for number in range(chunks):
            data = self.chunk(number)
            digest.update(data)
            hashes.append(hashlib.sha256(data).hexdigest())
        self.entry = FileEntry("model.onnx", chunks * CHUNK_BYTES, digest.hexdigest(), tuple(hashes))

    @staticmethod
    def chunk(number: int) -> bytes:
        """Return a chunk."""
        return hashlib.shake_128(number.to_bytes(4, "big")).digest(CHUNK_BYTES)

    def fetch_retained(self, wanted: Sequence[str], *, timeout_s: float) -> dict[str, bytes]:
        """Return the chunks as if sealed: padded to the length."""
        assert timeout_s > 0
        return {topic: self.chunk(int(topic.rsplit("/", 1)[1])).ljust(SEALED_CHUNK_BYTES, b"\0") for topic in wanted}

    @staticmethod
    def open(sealed: bytes, *, sha256: str, number: int) -> bytes:
        """Open one."""
        assert sha256
        assert number >= 0
        return sealed[:CHUNK_BYTES]


def _measured_peak(silo: Silo, folder: Path) -> int:
    tracemalloc.start()
    try:
        fetched = fetch_files(silo, folder, [silo.entry], sealed={"model.onnx": "f" * 64}, opener=silo, timeout_s=1.0)
        assert fetched.complete
        PartialFile(folder, silo.entry).check()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_is_the_same_for_a_file_of_a_megabyte_and_of_twenty(tmp_path: Path) -> None:
    small, large = (_measured_peak(Silo(chunks), tmp_path / str(chunks)) for chunks in (16, 320))

    assert large < small + 256 * 1024  # names of 300 chunks more, and no chunk more than noise


def test_staging_needs_memory_for_a_chunk_and_not_for_a_file(tmp_path: Path) -> None:
    silo = Silo(320)
    manifest = replace(make_files(2, NEW), files=(silo.entry, describe_file("golden.npz", GOLDEN)))
    data = codec.encode(manifest)
    fetch_files(silo, tmp_path, [silo.entry], sealed={"model.onnx": "f" * 64}, opener=silo, timeout_s=1.0)
    slots = Slots(tmp_path / "slots")
    tracemalloc.start()
    try:
        kept = {"model.onnx": PartialFile(tmp_path, silo.entry).check()}
        slots.stage({MANIFEST: data, "golden.npz": GOLDEN}, kept=kept, release="strokes-2", deployment="d2")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert slots.read("a") == manifest
    assert peak < 2 << 20
