"""Records the story of a real agent on a real broker: a first deployment, an update, a bad one that is rolled back.

The agent is `python -m agent run` as `tests.integration.agent.shore` starts it, under strace. Meanwhile its outbox is
left to fill and emptied again, it hears a configuration, and it is stopped and started. What the recording says is
compared with what is on the disk at the end, byte by byte, so a call that was misread cannot go unnoticed.
"""

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from tuf.api.metadata import TargetFile

from agent.trust.decision import DECOMMISSION
from skerry.wire import codec, topics
from skerry.wire.manifest import CHUNK_BYTES
from skerry.wire.messages import Assign, Desired, Terms
from tests.integration.agent.several import SeveralShore
from tests.integration.agent.shore import MODEL, PROJECT, Device, wait_for
from tests.power.disk import Chosen, Disk, Tree, read_tree
from tests.power.operations import Operation, read_operations
from tests.power.promises import find_promises
from tests.power.restart import Updates
from tests.power.strace import command, read_calls
from tests.power.world import Assigned, Recording, Verb, World
from tests.tuf_repository import published

RATE = 60.0
FILLED = 6


class KeepingShore(SeveralShore):
    """A shore that keeps what it retained, and when it assigned what."""

    def __init__(self, port: int, folder: Path) -> None:
        self.retained: dict[str, bytes] = {}
        self.orders: list[Assigned] = []
        super().__init__(port, folder)

    def say(self, topic: str, payload: bytes) -> None:
        """Publish it, and keep it."""
        self.retained[topic] = payload
        super().say(topic, payload)

    def order(self, device: str, version: int, *, bad: bool = False) -> str:
        """Assign a version and keep when."""
        now = time.time()
        deployment = self.assign(device, version)
        manifest = digest(self.artifacts[version]["manifest.json"])
        self._keep(device, Assigned(now, b"", deployment, f"{MODEL}-{version}", manifest, bad))
        return deployment

    def order_of(self, device: str, component: str, model: str, version: int, *, bad: bool = False) -> str:
        """Assign a version to a component beside what the others have, and keep when."""
        now = time.time()
        deployment = self.give(device, component, model, version)
        manifest = self.digest(model, version)
        self._keep(device, Assigned(now, b"", deployment, f"{model}-{version}", manifest, bad, component))
        return deployment

    def order_none(self, device: str, component: str) -> None:
        """End a component, and keep when."""
        now = time.time()
        self.take(device, component)
        self._keep(device, Assigned(now, b"", component=component, verb=Verb.TAKE))

    def order_to_wipe(self, device: str) -> None:
        """Tell a device to wipe itself, and keep when."""
        now, director = time.time(), self.directors[device]
        terms = Terms(
            device=device,
            counter=director.targets_version + 1,
            issued="2026-01-01T00:00:00Z",
            deployment="",
            release="",
        )
        target = TargetFile.from_data(DECOMMISSION, b"", ["sha256"])
        target.unrecognized_fields["custom"] = asdict(terms)
        director.targets = {DECOMMISSION: target}
        self.say(topics.down(f"{PROJECT}.{device}", "assign"), codec.encode(Assign(metadata=published(director))))
        self._keep(device, Assigned(now, b"", verb=Verb.WIPE))

    def _keep(self, device: str, order: Assigned) -> None:
        payload = self.retained[topics.down(f"{PROJECT}.{device}", "assign")]
        self.orders.append(replace(order, payload=payload))

    def world(self, device: str) -> World:
        """Return what is to be known of it when devices restart."""
        opened: dict[bytes, bytes] = {}
        for files in (*self.artifacts.values(), *self.made.values()):
            for data in files.values():
                chunks = [data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)]
                opened.update(zip(self.sealed_files[digest(data)], chunks, strict=True))
        retained = {topic: payload for topic, payload in self.retained.items() if "/down/" not in topic}
        return World(retained, opened, tuple(self.orders), PROJECT, device)


def digest(data: bytes) -> str:
    """Return the SHA-256."""
    return hashlib.sha256(data).hexdigest()


class Recorder(Device):
    """A device whose agent runs under strace; with `without`, one call of it is disabled (`tests.power.without`)."""

    without: str = ""

    def begin(self) -> None:
        """Keep the state folder as it is."""
        self.traces: list[Path] = []
        self.initial = read_tree(self.folder)

    def start(self, *, rate: float = RATE) -> "Recorder":
        """Start the agent; each start has a trace of its own."""
        program = ("tests.power.without", self.without) if self.without else ("agent",)
        self.traces.append(self.folder.with_suffix(f".{len(self.traces)}.strace"))
        options = ("run", "--state", str(self.folder), "--replay", str(self.recording), "--rate", str(rate))
        broker = ("--event-step", "864", "--broker", f"mqtt://127.0.0.1:{self.port}")
        python = (sys.executable, "-m", *program, *options, *broker)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command(self.traces[-1], python), stderr=log)
        return self

    def stop(self) -> int:
        """Ask the agent itself to end: strace hears no signals."""
        process, self._process = self._process, None
        assert process is not None
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[:1]
        os.kill(int(child), signal.SIGTERM)
        return process.wait(timeout=60)

    def again(self, folder: Path) -> Device:
        """Return the same device on another state folder, not recorded."""
        device = Device.__new__(Device)
        device.__dict__ = {**vars(self), "folder": folder, "log": folder.with_suffix(".log"), "_process": None}
        return device

    def operations(self) -> list[Operation]:
        """Return what was done to the state folder; the disk must look the same."""
        found = list(read_operations(read_calls(*self.traces), str(self.folder)))
        compare_with_disk(self.initial, found, self.folder)
        return found


def compare_with_disk(initial: Tree, operations: list[Operation], folder: Path) -> None:
    """Fail unless the operations lead to what is in the folder."""
    disk = Disk.holding(initial)
    for operation in operations:
        disk.apply(operation)
    modelled, found = disk.tree(Chosen(disk.all_pending)), read_tree(folder)
    wrong = sorted(path for path in modelled.keys() | found.keys() if modelled.get(path) != found.get(path))
    assert not wrong, f"expected the recording to lead to what is on the disk, got other {', '.join(wrong)}"


def record(shore: KeepingShore, device: Recorder) -> Recording:
    """Tell the story and return its recording."""
    name = device.name
    shore.release(1)
    shore.release(2)
    shore.release(3, latency_budget_ms=0.001)
    device.begin()

    first = shore.order(name, 1)
    device.start()
    assert shore.ends(name, first, timeout_s=90).state == "committed"
    _fill_and_empty(shore, device)
    shore.say(topics.down(f"{PROJECT}.{name}", "desired"), codec.encode(Desired(version=1)))
    wait_for(lambda: shore.reported[name].desired_version == 1, why="a configuration", timeout_s=30)

    second = shore.order(name, 2)
    assert shore.ends(name, second, timeout_s=90).state == "committed"
    assert device.stop() == 0
    device.start()
    third = shore.order(name, 3, bad=True)
    end = shore.ends(name, third, timeout_s=90)
    assert (end.state, "median latency" in end.reason) == ("failed", True), end
    _fill_and_empty(shore, device)
    wait_for(lambda: shore.reported[name].release == "strokes-2", why="the last good one in the twin", timeout_s=30)
    assert device.stop() == 0
    assert shore.conflicts == 0

    operations = device.operations()
    judge = Updates(shore.world(name), find_promises(device.initial, operations))
    return Recording("a whole agent", device.initial, tuple(operations), judge)


def _fill_and_empty(shore: KeepingShore, device: Recorder) -> None:
    heard = len(shore.windows(device.name))
    shore.acknowledging = False
    wait_for(lambda: _depth(device) >= FILLED, why="windows to pile up", timeout_s=60)
    shore.acknowledging = True
    wait_for(lambda: len(shore.windows(device.name)) >= heard + FILLED, why="the windows", timeout_s=60)
    wait_for(lambda: _depth(device) <= 2, why="an empty outbox", timeout_s=60)


def _depth(device: Device) -> int:
    from agent.telling.outbox import look

    return sum(look(device.folder / "outbox.db").rows.values())
