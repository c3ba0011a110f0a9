"""Makes cuts: after each operation of a recording, the disks that a power cut may leave; each distinct tree is one cut.

Per operation: nothing pending has happened, or all of it; each of the newest changes alone, or all but it; each of the
files and folders that are pending kept alone, or lost alone; the last write torn at several sectors, or zeroed; and
seeded random subsets with random tears.

A tree that several moments may leave is cut at the last of them: by then the device has promised most, so a change
that is pending for too long is found out although an early cut to the same tree would have been harmless.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.power.disk import Bytes, Change, Chosen, Disk, Names, Tree
from tests.power.operations import Operation

NEWEST = 8
RANDOM_SUBSETS = 4


@dataclass(frozen=True, slots=True)
class Cut:
    """The power went after `operations[at]`; `digest` tells its tree from all others."""

    at: int
    chosen: Chosen
    digest: str


def find_cuts(initial: Tree, operations: Sequence[Operation], *, seed: int = 6) -> list[Cut]:
    """Return all distinct cuts, in order."""
    disk = Disk.holding(initial)
    found: dict[str, Cut] = {}
    for at, operation in enumerate(operations):
        disk.apply(operation)
        for chosen in _choices(disk.pending, random.Random(f"{seed} {at}")):
            digest = disk.digest(chosen)
            found[digest] = Cut(at, chosen, digest)
    return sorted(found.values(), key=lambda cut: (cut.at, cut.digest))


def choose(cuts: Sequence[Cut], most: int) -> list[Cut]:
    """Return at most so many cuts: one of each operation as far as they go, then those that their digests draw."""
    firsts: dict[int, str] = {}
    for cut in cuts:
        firsts.setdefault(cut.at, cut.digest)
    drawn = sorted(cuts, key=lambda cut: (firsts[cut.at] != cut.digest, cut.digest))
    return sorted(drawn[:most], key=lambda cut: (cut.at, cut.digest))


def near(cuts: Sequence[Cut], operations: Sequence[Operation], path: str, *, within: int = 8) -> list[Cut]:
    """Return the cuts around what was done to paths that begin like this."""
    moments = {at for at, each in enumerate(operations) if each.path.startswith(path)}
    around = {at + step for at in moments for step in range(within)}
    return [cut for cut in cuts if cut.at in around]


def walk(initial: Tree, operations: Sequence[Operation], cuts: Sequence[Cut]) -> Iterator[tuple[Cut, Tree]]:
    """Yield cuts, which are in order, with their trees."""
    disk = Disk.holding(initial)
    done = 0
    for cut in cuts:
        for operation in operations[done : cut.at + 1]:
            disk.apply(operation)
        done = cut.at + 1
        yield cut, disk.tree(cut.chosen)


def _choices(pending: Sequence[Change], rng: random.Random) -> Iterator[Chosen]:
    every = frozenset(change.number for change in pending)
    yield Chosen(frozenset())
    yield Chosen(every)
    if not pending:
        return
    yield from _tears(pending[-1], every)
    for change in pending[-NEWEST:]:
        alone = frozenset({change.number})
        yield Chosen(alone)
        yield Chosen(every - alone)
    for nodes in list(dict.fromkeys(change.nodes for change in reversed(pending)))[:NEWEST]:
        of_these = frozenset(change.number for change in pending if change.nodes == nodes)
        yield Chosen(of_these)
        yield Chosen(every - of_these)
    names = frozenset(change.number for change in pending if isinstance(change.what, Names))
    yield Chosen(names)
    yield Chosen(every - names)
    for _ in range(RANDOM_SUBSETS):
        share = rng.choice((0.25, 0.5, 0.75))
        kept = [change for change in pending if rng.random() < share]
        torn = ((each.number, tear) for each in kept if rng.random() < 0.2 and (tear := _torn_at_random(each, rng)))
        yield Chosen(frozenset(each.number for each in kept), tuple(torn))


def _tears(last: Change, every: frozenset[int]) -> Iterator[Chosen]:
    what = last.what
    if not isinstance(what, Bytes) or not what.data:
        return
    sectors = what.torn
    half = len(sectors) // 2
    parts = {frozenset(sectors[:1]), frozenset(sectors[:half]), frozenset(sectors[half:]), frozenset(sectors[:-1])}
    forms = [
        Bytes(what.offset, what.data, sectors=part)
        for part in sorted(parts, key=sorted)
        if 0 < len(part) < len(sectors)
    ]
    forms.append(Bytes(what.offset, what.data, zeroed=True))
    for form in forms:
        yield Chosen(every, ((last.number, form),))
        yield Chosen(frozenset({last.number}), ((last.number, form),))


def _torn_at_random(change: Change, rng: random.Random) -> Bytes | None:
    what = change.what
    if not isinstance(what, Bytes) or not what.data:
        return None
    kept = frozenset(sector for sector in what.torn if rng.random() < 0.5)
    return Bytes(what.offset, what.data, sectors=kept)
