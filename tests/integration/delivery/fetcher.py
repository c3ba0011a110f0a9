"""The agent's own fetcher on the agent's own link, without the rest of the agent; and who publishes for it."""

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion

from agent.fetching.fetch import HTTPS, MQTT, Chunks, Fetched, fetch_files
from agent.link.address import parse_broker
from agent.link.session import Link
from agent.link.tls import Credentials
from skerry.delivery.partial import PartialFile
from skerry.delivery.sealed import make_key, open_chunk, seal_file
from skerry.errors import Rejected, Unavailable
from skerry.wire import codec, topics
from skerry.wire.manifest import CHUNK_BYTES, FileEntry, describe_file
from skerry.wire.messages import Reported

_NONE = Credentials(ca=Path("none"), certificate=Path("none"), key=Path("none"))
_WILL = codec.encode(
    Reported(version=0, online=False, state="idle", agent="0", profile="gateway", runtime="r", architecture="x86_64")
)


class Artifact:
    """One file of random bytes, sealed."""

    def __init__(self, chunks: float, *, seed: int = 1) -> None:
        self.data = random.Random(seed).randbytes(int(chunks * CHUNK_BYTES))
        self.entry: FileEntry = describe_file(f"model-{seed}.onnx", self.data)
        self.key = make_key()
        self.sealed = list(seal_file(self.key, self.data, sha256=self.entry.sha256))
        self.published = hashlib.sha256(b"".join(self.sealed)).hexdigest()

    @property
    def sealed_bytes(self) -> int:
        """What its chunks weigh on the wire."""
        return sum(len(chunk) for chunk in self.sealed)

    def topic(self, number: int) -> str:
        """Where a chunk is published."""
        return topics.blob(self.published, number)

    def open(self, sealed: bytes, *, sha256: str, number: int) -> bytes | None:
        """Open a chunk in this process: what the child costs is measured elsewhere."""
        try:
            return open_chunk(self.key, sealed, sha256=sha256, number=number)
        except Rejected:
            return None


class Publisher:
    """Writes retained messages, as the control plane does or as somebody who should not."""

    def __init__(self, port: int) -> None:
        self._client = Client(
            CallbackAPIVersion.VERSION2, client_id=f"publisher-{os.urandom(4).hex()}", protocol=MQTTv5
        )
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def say(self, topic: str, payload: bytes) -> None:
        """Publish one retained message, and wait until the broker has it."""
        self._client.publish(topic, payload, qos=1, retain=True).wait_for_publish(10)

    def publish(self, artifact: Artifact, *, only: Callable[[int], bool] = lambda _: True) -> None:
        """Publish the chunks of an artifact."""
        for number, chunk in enumerate(artifact.sealed):
            if only(number):
                self.say(artifact.topic(number), chunk)

    @contextmanager
    def repeating(self, artifact: Artifact, *, number: int) -> Iterator[None]:
        """Publish one chunk over and over."""
        enough = threading.Event()

        def work() -> None:
            while not enough.is_set():
                self.say(artifact.topic(number), artifact.sealed[number])

        thread = threading.Thread(target=work)
        thread.start()
        yield
        enough.set()
        thread.join()


class Fetcher:
    """A device as far as fetching goes; `close` and another one on the same folder is a device that was restarted."""

    def __init__(self, port: int, folder: Path, *, name: str = "watch-1", keep_alive_s: int = 60) -> None:
        self.folder = folder
        self.link = Link(
            parse_broker(f"mqtt://127.0.0.1:{port}"),
            who=f"watch.{name}",
            will=lambda: _WILL,
            credentials=_NONE,
            keep_alive_s=keep_alive_s,
            reconnect_s=0.3,
        )
        self.link.start()
        self.stopped = threading.Event()

    def close(self) -> None:
        """Let go of the broker."""
        self.stopped.set()
        self.link.stop()

    def connect(self, timeout_s: float = 15.0) -> None:
        """Wait for a connection."""
        deadline = time.monotonic() + timeout_s
        while not self.link.connected:
            assert time.monotonic() < deadline, f"expected a connection within {timeout_s} s"
            time.sleep(0.02)

    def fetch(self, artifact: Artifact, *, timeout_s: float = 1.0, https: Chunks | None = None) -> Fetched:
        """Fetch once, over `https` first where it is given; raises what the fetcher raises."""
        return fetch_files(
            self.link,
            self.folder,
            [artifact.entry],
            sealed={artifact.entry.name: artifact.published},
            opener=artifact,
            timeout_s=timeout_s,
            interrupted=self.stopped.is_set,
            https=https,
            roads=(MQTT,) if https is None else (HTTPS, MQTT),
        )

    def fetch_on(self, artifact: Artifact, *, timeout_s: float = 1.0, within_s: float = 60.0) -> Fetched:
        """Fetch again whenever the network let it down, as the agent's runner does."""
        deadline = time.monotonic() + within_s
        while True:
            self.connect()
            try:
                return self.fetch(artifact, timeout_s=timeout_s)
            except Unavailable:
                assert time.monotonic() < deadline, f"expected the file within {within_s} s, got {self.held(artifact)}"
                time.sleep(0.1)

    def stop_after(self, seconds: float) -> threading.Timer:
        """Call the fetch off in a while."""
        timer = threading.Timer(seconds, self.stopped.set)
        timer.start()
        return timer

    def held(self, artifact: Artifact) -> int:
        """Return how many chunks are held on disk."""
        return PartialFile(self.folder, artifact.entry).progress.have.bit_count()

    def missing(self, artifact: Artifact) -> tuple[int, ...]:
        """Return the numbers of the chunks that are not."""
        return tuple(PartialFile(self.folder, artifact.entry).progress.missing())

    def data(self, artifact: Artifact) -> bytes:
        """Return the whole file, its own digest checked."""
        return PartialFile(self.folder, artifact.entry).finish()
