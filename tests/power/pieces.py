"""`python -m tests.power.pieces WORLD FOLDER`: the story of a device without a broker, recorded in a few seconds.

The machine of `tests.power.machine`: each assignment of the world is heard and done, windows are put into the outbox,
published and acknowledged. What it hears and publishes it prints, with the time.
"""

import logging
import pickle
import subprocess
import sys
import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock, patch

from skerry.wire import codec, topics
from skerry.wire.messages import AGENT, Ack, Reported
from tests.integration.agent.shore import PROFILE, PROJECT
from tests.integration.agent.shore import Device as Agent
from tests.power.disk import read_tree
from tests.power.machine import Device, Machine
from tests.power.operations import Sent, read_operations
from tests.power.promises import STARTED, find_promises
from tests.power.restart import Updates
from tests.power.story import KeepingShore, compare_with_disk
from tests.power.strace import command, read_calls
from tests.power.world import Recording, World
from tests.wheels import wheel

NAME = "watch-1"
WINDOWS = 3


def record_pieces(folder: Path, *, without: str = "") -> Recording:
    """Record a first deployment, an update, and a bad one that is rolled back."""
    shore, device = make(folder)
    for version in (1, 2, 3):
        shore.release(version)
    for version in (1, 2, 3):
        shore.order(NAME, version, bad=version == 3)
    return _record("one model", shore, device, folder, without=without)


def record_components(folder: Path, *, without: str = "") -> Recording:
    """Record the updates of a named model beside the unnamed one, of the agent itself, and the end of it all."""
    shore, device = make(folder)
    release_components(shore)
    shore.order_of(NAME, "", "strokes", 1)
    shore.order_of(NAME, "lamps", "lamps", 1)
    shore.order_of(NAME, AGENT, AGENT, 1)
    shore.order_of(NAME, "lamps", "lamps", 2)
    shore.order_of(NAME, AGENT, AGENT, 2, bad=True)
    shore.order_of(NAME, "lamps", "lamps", 3, bad=True)
    shore.order_of(NAME, AGENT, AGENT, 3)
    shore.order_none(NAME, "lamps")
    shore.order_to_wipe(NAME)
    return _record("components", shore, device, folder, without=without)


def release_components(shore: KeepingShore) -> None:
    """Publish three versions of two models and of the agent."""
    for version in (1, 2, 3):
        shore.release_model("strokes", version)
        shore.release_model("lamps", version, seed=version + 4)
        text = {"agent/__init__.py": f"VERSION = {version}\n", "agent/more/__init__.py": ""}
        shore.release_agent(version, {"skerry.whl": wheel("skerry", f"0.{version}", text)})


def make(folder: Path) -> tuple[KeepingShore, Agent]:
    """Return a shore without a broker, and a device on it."""
    with patch("tests.integration.agent.shore.Client", MagicMock()):
        shore = KeepingShore(0, folder)
        return shore, Agent(shore, NAME, folder / NAME, folder / "none.npz")


def _record(name: str, shore: KeepingShore, device: Agent, folder: Path, *, without: str) -> Recording:
    world, initial = shore.world(NAME), read_tree(device.folder)
    (folder / "world.pickle").write_bytes(pickle.dumps(world))
    trace = folder / "pieces.strace"
    program = (sys.executable, "-m", __name__, str(folder / "world.pickle"), str(device.folder), without)
    done = subprocess.run(command(trace, program), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    heard = zip(world.assigned, [float(when) for when, *said in lines if not said], strict=True)
    world = replace(world, assigned=tuple(replace(assigned, time=time) for assigned, time in heard))
    operations = list(read_operations(read_calls(trace), str(device.folder)))
    compare_with_disk(initial, operations, device.folder)
    operations += [
        Sent(topic=topic, payload=b64decode(payload), time=float(when), began=0, ended=0)
        for when, topic, payload in (line for line in lines if len(line) > 1)
    ]
    # stable: what was sent comes before what the same moment has begun
    operations.sort(key=lambda each: (each.time, not isinstance(each, Sent)))
    judge = Updates(world, find_promises(initial, operations))
    return Recording(name, initial, tuple(operations), judge)


Say = Callable[[str, object], None]


class Life:
    """The life of the device over all its processes: one assignment after the other, and what it tells in between."""

    def __init__(self, world: World, *, hear: Callable[[], None], say: Say) -> None:
        self._world = world
        self._hear = hear
        self._say = say
        self._next = 0
        self._heard = 0

    def live(self, device: Device) -> None:
        """Live until all is done, or another process is to go on."""
        for number in range(self._next, len(self._world.assigned)):
            if number == self._heard:
                self._heard += 1
                self._hear()
            assert device.go_online(self._world.assigned[number])
            if device.wants_restart or device.leaving:
                return
            self._tell(device, number)
            self._next = number + 1

    def _tell(self, device: Device, number: int) -> None:
        units = device.units
        if units.own is not None:
            # it has lived for a while
            units.own.effects.well()
        main, outbox = units.main, device.outbox
        for window in range(WINDOWS * number, WINDOWS * (number + 1)):
            manifest = main.runner.state.good.manifest
            outbox.close_window(manifest, b"%d" % window, number=window, event_clock=float(window))
        batch = outbox.batch()
        assert batch is not None
        self._say("outbox", batch)
        outbox.acknowledge(Ack(epoch=batch.epoch, up_to=batch.entries[-2].sequence))
        state = main.runner.state
        reported = Reported(
            version=device.version,
            online=True,
            state=state.phase,
            agent="0",
            profile=PROFILE,
            runtime="",
            architecture="",
            release=state.good.release,
            components={name: unit.reported() for name, unit in device.all_units().items() if name},
        )
        self._say("reported", reported)


def _print(name: str, message: object) -> None:
    _put_out(topic_of(name), codec.encode(message))


def _put_out(topic: str, payload: bytes) -> None:
    print(time.time(), topic, b64encode(payload).decode(), file=sys.__stdout__, flush=True)


def topic_of(name: str) -> str:
    """Return the topic of what the device says."""
    return topics.up(f"{PROJECT}.{NAME}", name)


def main(world_file: str, folder: str, without: str) -> int:
    """Live through all assignments."""
    logging.disable(logging.CRITICAL)
    if without:
        from tests.power.without import EVERY_CALL

        EVERY_CALL[without]()
    world: World = pickle.loads(Path(world_file).read_bytes())  # noqa: S301 -- our own file, of a moment ago
    machine = Machine(Path(folder), world, on_start=lambda manifest: _put_out(STARTED, manifest.encode()))
    life = Life(world, hear=lambda: print(time.time(), file=sys.__stdout__, flush=True), say=_print)
    status = machine.run(life.live)
    print(machine.said.getvalue(), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
