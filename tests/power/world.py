"""What a recording leaves for those who restart devices on its cuts: the shore as it was, without a network.

A recording is the state folder before, what was done to it, and a judge of what a cut may leave of it. Most judges know
a world: what was retained, what was assigned when, and which artifact each assignment means. `Shelf` is the broker that
serves it (`agent.fetching.fetch.Retained`).
"""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from skerry.errors import Unavailable
from tests.power.cuts import Cut
from tests.power.disk import Tree
from tests.power.operations import Operation


class Verb(Enum):
    """What an assignment does to a component: gives it a release, ends it; or it ends the whole device."""

    GIVE = "give"
    TAKE = "take"
    WIPE = "wipe"


@dataclass(frozen=True, slots=True)
class Assigned:
    """An assignment: when it was retained, its bytes, and what it means."""

    time: float
    payload: bytes
    deployment: str = ""
    release: str = ""
    manifest: str = ""
    bad: bool = False
    component: str = ""
    verb: Verb = Verb.GIVE


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

    def wanted(self, time: float) -> dict[str, Assigned]:
        """Return what each component was given last; one that was taken away is not there."""
        found: dict[str, Assigned] = {}
        for each in self.assigned:
            if each.time <= time and each.verb is Verb.GIVE:
                found[each.component] = each
            elif each.time <= time and each.verb is Verb.TAKE:
                found.pop(each.component, None)
        return found

    def good(self, wanted: Assigned) -> Assigned | None:
        """Return what a component runs that has done what it was told to."""
        known = [each for each in self.assigned if (each.component, each.verb) == (wanted.component, Verb.GIVE)]
        return next((each for each in reversed(known) if each.time <= wanted.time and not each.bad), None)


class Judge(Protocol):
    """Restarts a device on what a cut left, and says what is wrong with it."""

    def find_faults(self, folder: Path, *, at: int, now: float) -> list[str]:
        """Return what is wrong with the device in `folder` after a cut at operation `at`, at the time `now`."""


@dataclass(frozen=True, slots=True)
class Recording:
    """All of a recorded story."""

    name: str
    initial: Tree
    operations: tuple[Operation, ...]
    judge: Judge


@dataclass(frozen=True, slots=True)
class Task:
    """A share of the cuts of some recordings."""

    cuts: tuple[tuple[Recording, tuple[Cut, ...]], ...]

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
