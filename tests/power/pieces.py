"""`python -m tests.power.pieces WORLD FOLDER`: the story of a device without a broker, recorded in a few seconds.

The agent's parts as `tests.power.restart` puts them together: each assignment of the world is heard and done, windows
are put into the outbox, published and acknowledged. What it hears and publishes it prints, with the time.
"""

import logging
import pickle
import subprocess
import sys
import time
from base64 import b64decode, b64encode
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock, patch

from skerry.wire import codec, topics
from skerry.wire.messages import Ack
from tests.integration.agent.shore import Device
from tests.power.disk import read_tree
from tests.power.operations import Sent, read_operations
from tests.power.promises import find_promises
from tests.power.restart import start
from tests.power.stand_ins import standing_in
from tests.power.story import KeepingShore, compare_with_disk
from tests.power.strace import command, read_calls
from tests.power.world import Recording, World

WINDOWS = 3
_TOPIC = topics.up("watch.watch-1", "outbox")


def record_pieces(folder: Path) -> Recording:
    """Record the story of a device whose shore is all made beforehand."""
    with patch("tests.integration.agent.shore.Client", MagicMock()):
        shore = KeepingShore(0, folder)
        for version in (1, 2, 3):
            shore.release(version)
        device = Device(shore, "watch-1", folder / "watch-1", folder / "none.npz")
        for version in (1, 2, 3):
            shore.order(device.name, version, bad=version == 3)
    world, initial = shore.world(device.name), read_tree(device.folder)
    (folder / "world.pickle").write_bytes(pickle.dumps(world))

    trace = folder / "pieces.strace"
    program = (sys.executable, "-m", __name__, str(folder / "world.pickle"), str(device.folder))
    done = subprocess.run(command(trace, program), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    heard = zip(world.assigned, [float(when) for when, *said in lines if not said], strict=True)
    world = replace(world, assigned=tuple(replace(assigned, time=time) for assigned, time in heard))
    operations = list(read_operations(read_calls(trace), str(device.folder)))
    compare_with_disk(initial, operations, device.folder)
    operations += [
        Sent(topic=_TOPIC, payload=b64decode(batch), time=float(when), began=0, ended=0)
        for when, *said in lines
        for batch in said
    ]
    # stable: what was sent comes before what the same moment has begun
    operations.sort(key=lambda each: (each.time, not isinstance(each, Sent)))
    return Recording(initial, tuple(operations), find_promises(initial, operations), world)


def main(world_file: str, folder: str) -> int:
    """Live through all assignments."""
    logging.disable(logging.CRITICAL)
    world: World = pickle.loads(Path(world_file).read_bytes())  # noqa: S301 -- our own file, of a moment ago
    with standing_in(world.opened):
        device = start(Path(folder), world)
        with closing(device.outbox) as outbox:
            for number, assigned in enumerate(world.assigned):
                print(time.time(), flush=True)
                device.go_online(assigned)
                for window in range(WINDOWS * number, WINDOWS * (number + 1)):
                    outbox.close_window(assigned.manifest, b"%d" % window, number=window, event_clock=float(window))
                batch = outbox.batch()
                assert batch is not None
                print(time.time(), b64encode(codec.encode(batch)).decode(), flush=True)
                outbox.acknowledge(Ack(epoch=batch.epoch, up_to=batch.entries[-2].sequence))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
