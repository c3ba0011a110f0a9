"""`python -m tests.power.rot WORLD FOLDER`: devices whose disk has spoilt a file are put right, and that is recorded.

One device with three components, copied as often as there are `DAMAGES`; the power goes while `agent.upkeep.recovery`
puts right what is damaged in one of them, and while the device goes on from there. All are in one trace.
"""

import logging
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from skerry.wire import codec
from skerry.wire.messages import AGENT, Desired
from tests.power.disk import Tree, read_tree
from tests.power.machine import Device, Machine
from tests.power.operations import Operation, Sent, read_operations
from tests.power.pieces import NAME, Life, make, release_components, topic_of
from tests.power.promises import Promises, find_promises
from tests.power.restart import OFFLINE_TURNS, Updates
from tests.power.story import compare_with_disk
from tests.power.strace import command, read_calls
from tests.power.world import Recording, World

OWN, LAMPS = f"components/{AGENT}", "components/lamps"
LIFECYCLE, POINTER = "lifecycle.json", "slots/pointer.json"


def zero(file: Path) -> None:
    """Leave the length of a file."""
    file.write_bytes(bytes(file.stat().st_size))


def lose(file: Path) -> None:
    """Leave nothing of a file."""
    file.unlink()


def flip(file: Path) -> None:
    """Change one bit of a file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


Damage = tuple[Callable[[Path], None], tuple[str, ...], tuple[str, ...]]
# how which files are spoilt, and of which components nothing is proven then until the assignment has been judged
DAMAGES: dict[str, Damage] = {
    "pointer": (zero, (POINTER,), ()),
    "lost pointer": (lose, (POINTER,), ()),
    "lifecycle": (zero, (LIFECYCLE,), ()),
    "lost lifecycle": (lose, (LIFECYCLE,), ()),
    "both": (zero, (LIFECYCLE, POINTER), ("",)),
    "pointers": (zero, (POINTER, f"{LAMPS}/{POINTER}", f"{OWN}/{POINTER}"), ()),
    "lifecycles": (zero, (LIFECYCLE, f"{LAMPS}/{LIFECYCLE}", f"{OWN}/{LIFECYCLE}"), ()),
    "both of lamps": (zero, (f"{LAMPS}/{LIFECYCLE}", f"{LAMPS}/{POINTER}"), ("lamps",)),
    "both of the agent": (zero, (f"{OWN}/{LIFECYCLE}", f"{OWN}/{POINTER}"), (AGENT,)),
    "identity": (flip, ("identity.json", "anchor.json", "VERSION"), ()),
    "lost identity": (lose, ("identity.json", "anchor.json", "VERSION"), ()),
    "copies": (flip, ("identity.json.copy", "anchor.json.copy", "VERSION.copy"), ()),
    "mail": (zero, ("assignment.json", "desired.json", "trust/floor.json"), ()),
}


def record_rot(folder: Path, *, without: str = "") -> list[Recording]:
    """Record how each damage is put right."""
    world, before, sound = _live_well(folder)
    world = replace(world, assigned=tuple(replace(each, time=0.0) for each in world.assigned))
    (folder / "world.pickle").write_bytes(pickle.dumps(world))
    place = folder / "devices"
    place.mkdir()
    for name, (spoil, files, _) in DAMAGES.items():
        device = shutil.copytree(sound, place / name.replace(" ", "-"), symlinks=True)
        for file in files:
            spoil(device / file)
    trees = {name: read_tree(place / name.replace(" ", "-")) for name in DAMAGES}
    trace = folder / "rot.strace"
    program = (sys.executable, "-m", __name__, str(folder / "world.pickle"), str(place), without)
    done = subprocess.run(command(trace, program), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    calls = list(read_calls(trace))
    recordings = []
    for name, (_, _, doubtful) in DAMAGES.items():
        device = place / name.replace(" ", "-")
        operations = list(read_operations(calls, str(device)))
        compare_with_disk(trees[name], operations, device)
        judge = Updates(world, _promises(trees[name], operations, before), rotten=True, doubtful=doubtful)
        recordings.append(Recording(name, trees[name], tuple(operations), judge))
    return recordings


def _live_well(folder: Path) -> tuple[World, Promises, Path]:
    """Return a device with two versions of each component, its world, and what it has said."""
    shore, device = make(folder)
    release_components(shore)
    for version in (1, 2):
        for component, model in (("", "strokes"), ("lamps", "lamps"), (AGENT, AGENT)):
            shore.order_of(NAME, component, model, version)
    world = shore.world(NAME)
    said: list[Operation] = []

    def say(name: str, message: object) -> None:
        payload = codec.encode(message)
        said.append(Sent(topic=topic_of(name), payload=payload, time=time.time(), began=0, ended=0))

    life = Life(world, hear=lambda: None, say=say)
    machine = Machine(device.folder, world)

    def live(each: Device) -> None:
        each.desired.offer(codec.encode(Desired(version=1)))
        life.live(each)

    assert machine.run(live) == 0, machine.said.getvalue()
    return world, find_promises({}, said), device.folder


def _promises(initial: Tree, operations: list[Operation], before: Promises) -> Promises:
    """Return what was promised, what was said before the damage included."""
    found = find_promises(initial, operations)
    published = [(-1, epoch, row) for _, epoch, row in before.published]
    return Promises(found.transactions, published, [(-1, before.twins[-1][1])])


def main(world_file: str, place: str, without: str) -> int:
    """Switch each device on, first without a network."""
    logging.disable(logging.CRITICAL)
    if without:
        from tests.power.without import EVERY_CALL

        EVERY_CALL[without]()
    world: World = pickle.loads(Path(world_file).read_bytes())  # noqa: S301 -- our own file, of a moment ago

    def live(device: Device) -> None:
        device.settle(OFFLINE_TURNS)
        if not device.wants_restart:
            assert device.go_online(world.assigned[-1])

    for folder in sorted(Path(place).iterdir()):
        machine = Machine(folder, world)
        status = machine.run(live)
        assert status == 0, f"{folder.name}: {machine.said.getvalue()}"
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
