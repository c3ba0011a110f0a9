"""What a recording leaves for those who restart devices on its cuts: the shore as it was, without a network.

A recording is a folder: the state folder before, the calls, and the world: what was retained, what was assigned when,
and which artifact each assignment means. `Shelf` is the broker that serves it (`agent.fetching.fetch.Retained`).
"""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from skerry.errors import Unavailable
from tests.power.cuts import Cut
from tests.power.disk import Tree
from tests.power.operations import Operation
from tests.power.promises import Promises


@dataclass(frozen=True, slots=True)
class Assigned:
    """An assignment: when it was retained, its bytes, and what it means."""

    time: float
    payload: bytes
    deployment: str
    release: str
    manifest: str
    bad: bool


@dataclass(frozen=True, slots=True)
class World:
    """The shore: what is retained by topic, the plain chunk of each sealed one, and all assignments in their order."""

    retained: Mapping[str, bytes]
    opened: Mapping[bytes, bytes]
    assigned: tuple[Assigned, ...]
    project: str
    device: str

    def assignment(self, time: float) -> Assigned | None:
        """Return the newest assignment at a time."""
        return next((each for each in reversed(self.assigned) if each.time <= time), None)


@dataclass(frozen=True, slots=True)
class Recording:
    """All of a recorded story."""

    initial: Tree
    operations: tuple[Operation, ...]
    promises: Promises
    world: World


@dataclass(frozen=True, slots=True)
class Task:
    """A share of the cuts of a recording."""

    recording: Recording
    cuts: tuple[Cut, ...]

    def save(self, file: Path) -> None:
        """Keep it for the process that checks it."""
        file.write_bytes(pickle.dumps(self))


def load_task(file: Path) -> Task:
    """Read what `Task.save` wrote."""
    task = pickle.loads(file.read_bytes())  # noqa: S301 -- our own file, of a moment ago
    assert isinstance(task, Task)
    return task


@dataclass
class Shelf:
    """A broker that holds what was retained; while not `online`, it is not there."""

    world: World
    online: bool = False

    def fetch_retained(self, wanted: Sequence[str], *, timeout_s: float) -> dict[str, bytes]:  # noqa: ARG002
        """Return what is retained on the topics."""
        if not self.online:
            raise Unavailable("broker: expected a connection, got none")
        return {topic: self.world.retained[topic] for topic in wanted if topic in self.world.retained}
