"""Measures delivery on Mosquitto: the control plane's bytes, the broker's work, time beside bare subscribers, memory.

    python -m bench.delivery [--quick]

An artifact is one file of random bytes. The control plane's own link publishes its sealed chunks, retained, through a
relay that counts; devices are the agent's own fetcher, many to a process (`bench.fleet`), each with a folder in memory
for a disk. The floor is the same number of bare subscribers that receive the same bytes and drop them, in the same run,
taken in turn; beside it, subscribers that also hash and write what they receive. The fetcher is timed with sealed
chunks, opened in its own process (a child for each of 500 devices would measure process starts), and with chunks that
are padded and not sealed. Over HTTPS the control plane's own endpoint answers, but for the check of who asks.

Then one whole agent, its child that opens chunks included: seconds and memory of a fetch, five hard aborts in the
middle of one, and a slow far link with resets. The last line is one JSON object.
"""

import argparse
import asyncio
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from bench.delivery_agent import whole_agent
from bench.fleet import Fleet, Took, Work
from control_plane.link import Link
from control_plane.plane import Plane
from control_plane.server import make_home, open_plane
from control_plane.settings import Settings
from skerry.delivery.sealed import make_key, seal_file
from skerry.wire import topics
from skerry.wire.manifest import CHUNK_BYTES, SEALING_BYTES, describe_file
from tests.conftest import Mosquitto, pick_port, wait_for_port
from tests.relay import Relay

SEED = 20260
KB, MB = 1000, 1000 * 1000
SIZES = {"100KB": 100 * KB, "5MB": 5 * MB, "50MB": 50 * MB}
CASES = [(size, devices) for size in SIZES for devices in (1, 50, 500)]
QUICK = [("100KB", 1), ("100KB", 50), ("100KB", 500), ("5MB", 1), ("5MB", 50)]
HTTPS = [("100KB", 50), ("5MB", 1), ("5MB", 50), ("5MB", 500)]
QUICK_HTTPS = [("100KB", 50), ("5MB", 1)]
TICKS = 100
# of small fleets, the median of several runs in turn
ROUNDS, SMALL_BYTES = 3, 300 * MB
# files of a fleet that together are more than this are deleted as soon as they are whole
MOST_BYTES = 4000 * MB


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file, its sealed chunks, and chunks of the same lengths that are padded instead."""

    data: bytes
    key: bytes
    sealed: list[bytes]
    padded: list[bytes]


def make_artifact(size: int) -> Artifact:
    """Make the artifact of a size, the same bytes in every run."""
    data = random.Random(SEED).randbytes(size)  # noqa: S311 -- what cannot be packed, and nothing else
    key = make_key()
    sealed = list(seal_file(key, data, sha256=hashlib.sha256(data).hexdigest()))
    padded = [bytes(SEALING_BYTES) + data[start : start + CHUNK_BYTES] for start in range(0, size, CHUNK_BYTES)]
    return Artifact(data, key, sealed, padded)


class ControlPlane:
    """The control plane's own link, at work in a thread until `stop`; its bytes are counted by a relay."""

    def __init__(self, folder: Path, broker: Mosquitto) -> None:
        self.relay = Relay(broker.port)
        home = make_home(folder, Settings(project="watch", broker=f"mqtt://127.0.0.1:{self.relay.port}"))
        self.plane: Plane = open_plane(home.path)
        self._connected, self._heard = threading.Event(), threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._connected.wait(30), "expected the control plane to connect"

    def publish(self, chunks: list[bytes]) -> str:
        """Publish chunks; return under which SHA-256, once the broker has them all."""
        published = hashlib.sha256(b"".join(chunks)).hexdigest()
        self._heard.clear()
        for number, chunk in enumerate(chunks):
            assert self.plane.outgoing.publish(topics.blob(published, number), chunk, retain=True)
        # what we say after them comes back after them
        self.plane.outgoing.publish(topics.up("watch.probe", "answer"), b"", retain=False)
        assert self._heard.wait(60), "expected the broker to take the chunks"
        return published

    def clear(self, published: str, chunks: int) -> None:
        """Withdraw them."""
        for number in range(chunks):
            self.plane.outgoing.publish(topics.blob(published, number), b"", retain=True)

    def stop(self) -> None:
        """Hang up."""
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()
        self.relay.close()
        self.plane.sessions.kw["bind"].dispose()

    def _run(self) -> None:
        def hear(_plane: Plane, _topic: str, _payload: bytes) -> list[Any]:
            self._heard.set()
            return []

        async def serve() -> None:
            link = Link(self.plane, handle=hear, on_connect=lambda _: self._connected.set())
            self._task = asyncio.create_task(link.run())
            await asyncio.wait([self._task])

        self._loop.run_until_complete(serve())


def over_mqtt(fleet: Fleet, plane: ControlPlane, broker: Mosquitto, size: str, devices: int) -> dict[str, float]:
    """Publish an artifact once and have a fleet fetch it; beside the same number of bare subscribers."""
    artifact = make_artifact(SIZES[size])
    entry = describe_file("model.onnx", artifact.data)
    before = plane.relay.up_bytes
    published = plane.publish(artifact.sealed)
    sent = plane.relay.up_bytes - before
    padded = plane.publish(artifact.padded)
    bare = Work("bare", broker.port, entry, published, deleting=SIZES[size] * devices > MOST_BYTES)
    works = {
        "bare": bare,
        "keeping": replace(bare, how="keeping"),
        "unopened": replace(bare, how="plain", published=padded),
        "opened": replace(bare, how="plain", key=artifact.key),
    }
    runs: dict[str, list[Took]] = {name: [] for name in works}
    broker_s = 0.0
    rounds = ROUNDS if SIZES[size] * devices <= SMALL_BYTES else 1
    turns = list(works.items())
    for number in range(rounds):
        for name, work in [*turns[number:], *turns[:number]]:
            quiet, started = plane.relay.up_bytes, cpu_s(broker)
            runs[name].append(fleet.run(work, devices))
            if name == "opened":
                broker_s += (cpu_s(broker) - started) / rounds
                # what the control plane said while a fleet fetched is a part of what the fleet cost it
                sent += plane.relay.up_bytes - quiet
    for name in (published, padded):
        plane.clear(name, len(artifact.sealed))
    expected = sum(len(chunk) for chunk in artifact.sealed) * devices
    assert all(took.received == expected for each in runs.values() for took in each), "expected every byte, once"

    def ratio(name: str, floor: str) -> float:
        pairs = zip(runs[name], runs[floor], strict=True)
        return round(median(ours.seconds / theirs.seconds for ours, theirs in pairs), 2)

    return {
        "egress_mb": round(sent / MB, 3),
        "egress_ratio": round(sent / SIZES[size], 4),
        "broker_cpu_s": round(broker_s, 2),
        "bare_s": round(median(took.seconds for took in runs["bare"]), 3),
        "seconds": round(median(took.seconds for took in runs["opened"]), 3),
        "time_ratio": ratio("opened", "bare"),
        "time_ratio_unopened": ratio("unopened", "bare"),
        "time_ratio_to_keeping": ratio("opened", "keeping"),
        # what hashing and writing alone make of the floor: no fetcher that verifies can come below
        "keeping_ratio": ratio("keeping", "bare"),
    }


def over_https(fleet: Fleet, plane: ControlPlane, size: str, devices: int) -> dict[str, float]:
    """Have a fleet fetch an artifact in ranges from the control plane's endpoint."""
    artifact = make_artifact(SIZES[size])
    entry = describe_file("model.onnx", artifact.data)
    published = plane.plane.blobs.put(b"".join(artifact.sealed))
    port = pick_port()
    command = [sys.executable, "-m", "tests.blob_server", str(plane.plane.home.path), str(port), published]
    server = subprocess.Popen(command)
    try:
        wait_for_port(port)
        ca = (plane.plane.home.ca / "server-ca.pem").read_text()
        took = fleet.run(Work("https", port, entry, published, key=artifact.key, ca=ca), devices)
    finally:
        server.terminate()
        server.wait()
    return {
        "egress_mb": round(took.received / MB, 3),
        "egress_ratio": round(took.received / SIZES[size], 2),
        "seconds": round(took.seconds, 3),
    }


def cpu_s(broker: Mosquitto) -> float:
    """Return the processor time that the broker has used, in seconds."""
    assert broker.process is not None
    fields = Path(f"/proc/{broker.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@contextmanager
def mosquitto(folder: Path) -> Iterator[Mosquitto]:
    """Run a Mosquitto as Debian has it."""
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    assert program, "expected mosquitto, got none: apt-get install mosquitto"
    folder.mkdir()
    broker = Mosquitto(program, folder)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


def main() -> None:
    """Measure, print for people, and end with one line for programs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller cases; ends within 50 s on two cores")
    quick: bool = parser.parse_args().quick
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with mosquitto(folder / "broker") as broker, Fleet() as fleet:
            plane = ControlPlane(folder / "home", broker)
            mqtt = _table(
                "retained chunks", QUICK if quick else CASES, lambda *case: over_mqtt(fleet, plane, broker, *case)
            )
            https = _table(
                "HTTPS ranges", QUICK_HTTPS if quick else HTTPS, lambda *case: over_https(fleet, plane, *case)
            )
            plane.stop()
            agent = whole_agent(broker, folder, quick=quick)
    print("\none whole agent")
    for key, value in agent.items():
        print(f"  {key:30s} {value:10g}")
    figures = {
        **{key: {case: row[key] for case, row in mqtt.items()} for key in next(iter(mqtt.values()))},
        **{f"https_{key}": {case: row[key] for case, row in https.items()} for key in ("egress_ratio", "seconds")},
        **agent,
    }
    print(f"\n{time.monotonic() - began:.0f} s")
    print(json.dumps({"bench": "delivery", "quick": quick, "figures": figures}))


def _table(
    title: str, cases: list[tuple[str, int]], measure: Callable[[str, int], dict[str, float]]
) -> dict[str, dict[str, float]]:
    print(f"\n{title}")
    rows: dict[str, dict[str, float]] = {}
    for size, devices in cases:
        row = measure(size, devices)
        if not rows:
            print(f"{'':12s}" + "".join(f"{key:>22s}" for key in row))
        rows[f"{size}x{devices}"] = row
        print(f"{size + 'x' + str(devices):12s}" + "".join(f"{value:22g}" for value in row.values()), flush=True)
    return rows


if __name__ == "__main__":
    main()
