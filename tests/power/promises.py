"""What a device has promised at each moment of a recording, as others could know it; a cut may break none of it.

- The outbox: a transaction is promised as soon as the next one has begun, for then it has returned. What is found must
  be the outbox as one of its transactions left it, the last promised one or a later one: neither a mixture nor a past.
- What was published: a number that was heard stands for its body for ever.
- The twin: a release that was reported as good of a component is not forgotten, versions of reports only grow, a
  configuration that was reported as obeyed stays obeyed.
- The launcher: each start of a version of the agent is counted before it begins.
"""

import sqlite3
import tempfile
from base64 import b64decode
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skerry.wire import codec
from skerry.wire.messages import Outbox, Reported
from tests.power.disk import Chosen, Disk, Tree
from tests.power.operations import Operation, Sent, Write

OUTBOX = "outbox.db"
# what a recording says of a start, in place of a topic; the payload is the manifest
STARTED = "started"
_WAL = f"{OUTBOX}-wal"
_FRAME_BYTES = 24


@dataclass(frozen=True, slots=True)
class Row:
    """One row; `rest` is whatever else it has."""

    sequence: int
    kind: str
    body: bytes
    rest: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Content:
    """Everything in an outbox that is not an open window: its epoch and counters, and its rows."""

    meta: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]

    @property
    def epoch(self) -> str:
        """The name of the database."""
        return dict(self.meta)["epoch"]


@dataclass(frozen=True, slots=True)
class Transaction:
    """What a transaction left: it may be found from operation `begun` on, and must be from `promised` on."""

    content: Content | None
    begun: int
    promised: int


@dataclass(frozen=True, slots=True)
class Twin:
    """The most that reports have said so far."""

    version: int = 0
    releases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of each component, those that were reported as good; of one that has ended, nothing any more."""
    desired_version: int = 0


@dataclass
class Promises:
    """All promises of one recording; `at` is always the index of an operation."""

    transactions: list[Transaction]
    published: list[tuple[int, str, Row]] = field(default_factory=list)  # at, epoch, and what was said
    twins: list[tuple[int, Twin]] = field(default_factory=lambda: [(-1, Twin())])
    starts: list[tuple[int, str]] = field(default_factory=list)

    def outbox(self, at: int) -> list[Content | None]:
        """Return what an outbox may hold."""
        least = max((number for number, each in enumerate(self.transactions) if each.promised <= at), default=0)
        return [each.content for each in self.transactions[least:] if each.begun <= at]

    def heard(self, at: int) -> dict[tuple[str, int], Row]:
        """Return what was published, by epoch and sequence."""
        return {(epoch, row.sequence): row for when, epoch, row in self.published if when <= at}

    def twin(self, at: int) -> Twin:
        """Return what has been reported."""
        return next(twin for when, twin in reversed(self.twins) if when <= at)

    def started(self, at: int) -> Counter[str]:
        """Return how often which version of the agent was started."""
        return Counter(manifest for when, manifest in self.starts if when <= at)


def find_promises(initial: Tree, operations: Sequence[Operation]) -> Promises:
    """Return the promises in a recording; a device's twin is told by what it published retained on `up/reported`."""
    promises = Promises(_transactions(initial, operations))
    for at, operation in enumerate(operations):
        if not isinstance(operation, Sent):
            continue
        if operation.topic.endswith("/up/outbox"):
            batch = codec.decode(Outbox, operation.payload)
            for entry in batch.entries:
                row = Row(entry.sequence, entry.kind, b64decode(entry.body), ())
                promises.published.append((at, batch.epoch, row))
        elif operation.topic.endswith("/up/reported"):
            promises.twins.append((at, _after(promises.twins[-1][1], codec.decode(Reported, operation.payload))))
        elif operation.topic == STARTED:
            promises.starts.append((at, operation.payload.decode()))
    return promises


def _after(twin: Twin, said: Reported) -> Twin:
    good = {"": said.release, **{name: each.release for name, each in (said.components or {}).items()}}
    releases = {name: _with(twin.releases.get(name, ()), release) for name, release in good.items()}
    version = max(twin.version, said.version)
    return Twin(version=version, releases=releases, desired_version=max(twin.desired_version, said.desired_version))


def _with(releases: tuple[str, ...], release: str) -> tuple[str, ...]:
    return (*releases, release) if release and release not in releases else releases


def _transactions(initial: Tree, operations: Sequence[Operation]) -> list[Transaction]:
    disk = Disk.holding(initial)
    found: list[Transaction] = [Transaction(_content_of(initial), -1, -1)]
    begun: int | None = None
    closed: tuple[int, Content | None] | None = None
    for at, operation in enumerate(operations):
        disk.apply(operation)
        if not isinstance(operation, Write) or operation.path != _WAL:
            continue
        if closed is not None:
            # the next transaction writes: the one before has returned to its caller
            found.append(Transaction(closed[1], closed[0], at))
            closed = None
        if begun is not None:
            closed = begun, _content_of(disk.tree(Chosen(disk.all_pending)))
            begun = None
        elif len(operation.data) == _FRAME_BYTES and operation.data[4:8] != bytes(4):
            # a frame's head that names a size of the database commits; its page follows
            begun = at
    if closed is not None:
        found.append(Transaction(closed[1], closed[0], len(operations)))
    return found


def _content_of(tree: Tree) -> Content | None:
    with tempfile.TemporaryDirectory() as name:
        for each in (OUTBOX, _WAL):
            if each in tree:
                Path(name, each).write_bytes(tree[each][1])
        return read_content(Path(name, OUTBOX))


def read_content(path: Path) -> Content | None:
    """Return what an outbox holds, or None while there is none; SQLite recovers what it has to."""
    if not path.exists() or not path.stat().st_size:
        return None
    with closing(sqlite3.connect(path)) as db:
        try:
            meta = tuple(db.execute("select key, value from meta order by key"))
            found = db.execute("select * from outbox order by sequence")
            names = [each[0] for each in found.description]
            rows = tuple(_row(dict(zip(names, each, strict=True))) for each in found)
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return None
            raise
    return Content(meta, rows) if "epoch" in dict(meta) else None


def _row(columns: dict[str, Any]) -> Row:
    sequence, kind, body = (columns.pop(name) for name in ("sequence", "kind", "body"))
    return Row(sequence, kind, bytes(body), tuple(columns.values()))
