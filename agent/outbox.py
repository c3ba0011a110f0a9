"""The outbox: a bounded SQLite file with everything the device has to say and has not yet been heard.

- Nothing is published before it is durable: closing a window is one transaction (row, accumulator, clock, number).
- A row is `(epoch, sequence)`: the epoch is random per database, so a wiped device never collides with its past.
- A row leaves when the control plane acknowledged it, or when there is no room: the lowest priority and the oldest
  first, in runs, and only what was never published. A `gap` record takes the place of a run: it stands at the run's
  first number and accounts for all of them, so the control plane sees every number once. Bit rot, found by the CRC of
  each body, leaves a gap record too.
- A ballast file is freed when the disk is full, since even DELETE needs room.

A power cut can lose rows of the open window alone, at most those since `save_open` last ran.
"""

import json
import secrets
import sqlite3
import threading
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from skerry.errors import Broken
from skerry.wire import codec
from skerry.wire.messages import Ack, Entry, Gap, Outbox

BATCH_ENTRIES = 32
BATCH_BYTES = 48 * 1024
BALLAST_BYTES = 128 * 1024
BUDGET_SHARE = 0.65
ROW_OVERHEAD_BYTES = 64
EVICT_ROWS = 16
PRIORITIES = {"window": 0, "gap": 1, "deployment": 2, "evidence": 2}
KEPT_ACCUMULATORS = 8
_PAGE_BYTES = 4096
_SCHEMA = (Path(__file__).parent / "outbox.sql").read_text()
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class OpenWindow:
    """The persisted accumulator of a manifest; `body` is empty between two windows."""

    number: int = 0
    event_clock: float = 0.0
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Glance:
    """What an outbox holds, from outside: its rows by kind, and the event clock as last persisted."""

    rows: dict[str, int] = field(default_factory=dict)
    event_clock: float = 0.0


class OutboxFile:
    """The outbox in `path`, of at most `quota_bytes` on disk; safe for several threads of one process."""

    def __init__(self, path: Path, *, quota_bytes: int = 4 << 20) -> None:
        self._path = path
        self._ballast = path.with_name(f"{path.name}.ballast")
        self._budget = int(quota_bytes * BUDGET_SHARE)
        self._lock = threading.RLock()
        try:
            self._db = _open(path, quota_bytes)
        except sqlite3.DatabaseError as error:
            raise Broken(
                f"{path}: expected an outbox, got: {error}; move the file away to start a new epoch"
            ) from error
        self._write_ballast()

    @property
    def epoch(self) -> str:
        """The random name of this database."""
        return self._meta("epoch")

    @property
    def depth(self) -> int:
        """How many rows have not been acknowledged."""
        with self._using():
            return int(self._db.execute("select count(*) from outbox").fetchone()[0])

    def put(self, kind: str, body: bytes, *, event_time: float) -> int:
        """Append a row durably and return its sequence number."""
        return self._write(lambda: self._insert(kind, body, event_time))

    def close_window(self, manifest: str, report: bytes, *, number: int, event_clock: float) -> int:
        """Append a window's report, and in the same transaction reset its accumulator to window `number + 1`."""

        def close() -> int:
            sequence = self._insert("window", report, event_clock)
            self._save(manifest, number=number + 1, event_clock=event_clock, body=b"")
            return sequence

        return self._write(close)

    def save_open(self, manifest: str, body: bytes, *, number: int, event_clock: float) -> None:
        """Persist the accumulator of the open window, to continue it after a restart."""
        self._write(lambda: self._save(manifest, number=number, event_clock=event_clock, body=body))

    def open_window(self, manifest: str) -> OpenWindow:
        """Return the accumulator of `manifest`, or an empty one that starts at number 0."""
        with self._using():
            row = self._db.execute(
                "select window_number, event_clock, body from accumulator where manifest = ?", (manifest,)
            ).fetchone()
        return OpenWindow() if row is None else OpenWindow(number=row[0], event_clock=row[1], body=bytes(row[2]))

    def event_clock(self) -> float:
        """Return the event clock as last persisted, 0 before the first time."""
        with self._using():
            row = self._db.execute("select max(event_clock) from accumulator").fetchone()
        return float(row[0] or 0.0)

    def batch(self) -> Outbox | None:
        """Return the oldest rows that fit into one message, or None when there is nothing to say.

        Rows whose CRC no longer holds are replaced by a gap record first.
        """
        with self._using():
            self._drop_damaged()
            entries = self._oldest()
            if not entries:
                return None
            if entries[-1].sequence > int(self._meta("published")):
                # before it is published: what may be known by its number must never be replaced by a gap
                entries = self._write(self._mark_published)
            return Outbox(epoch=self.epoch, entries=tuple(entries))

    def acknowledge(self, ack: Ack) -> bool:
        """Delete what the control plane has committed; False for an acknowledgement of another epoch.

        Two files can be restored from a copy, and both show here. Ours: numbers are acknowledged that this file has
        yet to publish; those rows stay, and the conflict that they lead to starts a new epoch. The control plane's: it
        acknowledges less than it once did; a gap record accounts for what it forgot, for it would wait for ever.
        """
        with self._using():
            if ack.epoch != self.epoch:
                return False
            self._write(lambda: self._settle(ack))
            with suppress(sqlite3.OperationalError):  # a full disk; the space is given back another time
                self._db.execute("pragma incremental_vacuum(64)")
        return True

    def _settle(self, ack: Ack) -> None:
        heard = min(ack.up_to, int(self._meta("published")))
        self._db.execute("delete from outbox where sequence <= ?", (heard,))
        if ack.new_epoch:
            self._renumber()
            return
        (oldest,) = self._db.execute("select min(sequence) from outbox").fetchone()
        first, last = ack.up_to + 1, (oldest or int(self._meta("next_sequence"))) - 1
        if first <= last:
            reason = "forgotten by the control plane"
            self._put_gap(Gap(kind="any", first=first, last=last, count=last - first + 1, reason=reason))

    def _oldest(self) -> list[Entry]:
        """Return the oldest rows that fit into one message."""
        entries: list[Entry] = []
        size = 0
        for sequence, kind, event_time, crc, body in self._db.execute(
            "select sequence, kind, event_time, crc, body from outbox order by sequence limit ?", (BATCH_ENTRIES,)
        ):
            size += len(body) * 4 // 3 + 120
            if entries and size > BATCH_BYTES:
                break
            text = b64encode(body).decode()
            entries.append(Entry(sequence=sequence, kind=kind, event_time=event_time, crc=crc, body=text))
        return entries

    def _mark_published(self) -> list[Entry]:
        """Mark the oldest rows and return them: read here, since room for the mark may have been made among them."""
        entries = self._oldest()
        self._set_meta("published", str(entries[-1].sequence))
        return entries

    def close(self) -> None:
        """Checkpoint and close."""
        with self._lock:
            self._db.close()

    def _insert(self, kind: str, body: bytes, event_time: float) -> int:
        sequence = int(self._meta("next_sequence"))
        self._db.execute(
            "insert into outbox values (?, ?, ?, ?, ?, ?)",
            (sequence, kind, PRIORITIES[kind], event_time, zlib.crc32(body), body),
        )
        self._set_meta("next_sequence", str(sequence + 1))
        return sequence

    def _save(self, manifest: str, *, number: int, event_clock: float, body: bytes) -> None:
        self._db.execute(
            "insert or replace into accumulator values (?, ?, ?, ?)", (manifest, number, event_clock, body)
        )
        self._db.execute(
            "delete from accumulator where manifest <> ?1 and manifest not in"
            " (select manifest from accumulator where manifest <> ?1 order by event_clock desc limit ?2)",
            (manifest, KEPT_ACCUMULATORS - 1),
        )

    def _write(self, work: Callable[[], T]) -> T:
        """Run one FULL transaction; on a full disk free the ballast, evict, and try once more."""
        with self._using():
            try:
                return self._transaction(work)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                    raise
            self._ballast.unlink(missing_ok=True)
            self._transaction(lambda: self._evict(self._size() * 3 // 4))
            result = self._transaction(work)
            self._write_ballast()
            return result

    @contextmanager
    def _using(self) -> Iterator[None]:
        """Hold the database; what SQLite or the disk refuses is `Broken`."""
        with self._lock:
            try:
                yield
            except (sqlite3.Error, OSError) as error:
                raise Broken(f"{self._path}: expected a sound outbox, got: {error}; check the disk") from error

    def _transaction(self, work: Callable[[], T]) -> T:
        self._db.execute("begin immediate")
        try:
            result = work()
            if self._size() > self._budget:
                self._evict(self._budget)
            self._db.execute("commit")
        except BaseException:  # whatever ends the work, also an interrupt, must not leave the transaction open
            if self._db.in_transaction:
                self._db.execute("rollback")
            raise
        return result

    def _size(self) -> int:
        query = "select coalesce(sum(length(body)) + count(*) * ?, 0) from outbox"
        return int(self._db.execute(query, (ROW_OVERHEAD_BYTES,)).fetchone()[0])

    def _evict(self, budget: int) -> None:
        """Give up runs of rows, lowest priority and oldest first, until the rest fits; what was published stays."""
        while self._size() > budget:
            row = self._db.execute(
                "select sequence, kind from outbox where sequence > ? and kind <> 'gap' order by priority, sequence",
                (int(self._meta("published")),),
            ).fetchone()
            if row is None:
                return
            first, kind = row
            following = self._db.execute(
                "select sequence, kind from outbox where sequence >= ? order by sequence limit ?", (first, EVICT_ROWS)
            ).fetchall()
            last = first
            for at, (sequence, each) in enumerate(following):
                if (sequence, each) != (first + at, kind):
                    break
                last = sequence
            self._give_up(first, last, kind, reason="no room")

    def _give_up(self, first: int, last: int, kind: str, *, reason: str) -> None:
        """Replace a run of rows by a gap record at its first number, or lengthen the one just before it."""
        self._db.execute("delete from outbox where sequence between ? and ?", (first, last))
        published = int(self._meta("published"))
        before = self._db.execute(
            "select crc, body from outbox where kind = 'gap' and sequence < ? and sequence > ?"
            " order by sequence desc limit 1",
            (first, published),
        ).fetchone()
        if before is not None and zlib.crc32(before[1]) == before[0]:
            gap = codec.decode(Gap, before[1])
            if (gap.kind, gap.reason, gap.last) == (kind, reason, first - 1):
                first = gap.first
        self._put_gap(Gap(kind=kind, first=first, last=last, count=last - first + 1, reason=reason))

    def _put_gap(self, gap: Gap) -> None:
        body = codec.encode(gap)
        self._db.execute(
            "insert or replace into outbox values (?, 'gap', ?, 0.0, ?, ?)",
            (gap.first, PRIORITIES["gap"], zlib.crc32(body), body),
        )

    def _drop_damaged(self) -> None:
        head = self._db.execute(
            "select sequence, kind, crc, body from outbox order by sequence limit ?", (BATCH_ENTRIES,)
        ).fetchall()
        for sequence, kind, crc, body in head:
            if zlib.crc32(body) != crc:
                self._write(partial(self._give_up_damaged, sequence, kind))

    def _give_up_damaged(self, sequence: int, kind: str) -> None:
        (following,) = self._db.execute("select min(sequence) from outbox where sequence > ?", (sequence,)).fetchone()
        # a gap record accounts for everything up to the next row, and its body can no longer tell of what
        last = (following or int(self._meta("next_sequence"))) - 1
        self._give_up(sequence, last, "any" if kind == "gap" else kind, reason="damaged")

    def _renumber(self) -> None:
        """Start a new epoch with the rows that are left, numbered from 1 in their order."""
        rows = self._db.execute("select kind, event_time, body from outbox order by sequence").fetchall()
        self._db.execute("delete from outbox")
        self._set_meta("epoch", secrets.token_hex(8))
        self._set_meta("published", "0")
        self._set_meta("next_sequence", "1")
        for kind, event_time, body in rows:
            if kind != "gap":
                self._insert(kind, body, event_time)
                continue
            first, gap = int(self._meta("next_sequence")), codec.decode(Gap, body)
            self._put_gap(replace(gap, first=first, last=first + gap.count - 1))
            self._set_meta("next_sequence", str(first + gap.count))

    def _meta(self, key: str) -> str:
        with self._using():
            return str(self._db.execute("select value from meta where key = ?", (key,)).fetchone()[0])

    def _set_meta(self, key: str, value: str) -> None:
        self._db.execute("insert or replace into meta values (?, ?)", (key, value))

    def _write_ballast(self) -> None:
        if not self._ballast.exists():
            try:
                self._ballast.write_bytes(bytes(BALLAST_BYTES))
            except OSError:
                # the disk is full now; the ballast returns when there is room
                self._ballast.unlink(missing_ok=True)


def look(path: Path) -> Glance:
    """Return what an outbox holds, read-only, for `status`; an empty glance when there is none yet."""
    if not path.exists():
        return Glance()
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
            rows = dict(db.execute("select kind, count(*) from outbox group by kind"))
            (clock,) = db.execute("select max(event_clock) from accumulator").fetchone()
    except sqlite3.DatabaseError as error:
        raise Broken(f"{path}: expected an outbox, got: {error}") from error
    return Glance(rows=rows, event_clock=float(clock or 0.0))


def _open(path: Path, quota_bytes: int) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    # auto_vacuum must come before the first table; the WAL settings bound what lies beside the file
    for pragma in (
        "auto_vacuum = incremental",
        "journal_mode = wal",
        "synchronous = full",
        "wal_autocheckpoint = 64",
        "journal_size_limit = 262144",
        "cache_size = -512",
        f"max_page_count = {max(quota_bytes // _PAGE_BYTES, 64)}",
    ):
        db.execute(f"pragma {pragma}")
    db.executescript(_SCHEMA)
    db.execute("insert or ignore into meta values ('epoch', ?)", (secrets.token_hex(8),))
    db.execute("insert or ignore into meta values ('next_sequence', '1'), ('published', '0')")
    return db


def encode_open(fields: dict[str, object]) -> bytes:
    """Encode an accumulator with a CRC in front, so that a damaged one is dropped instead of counted."""
    body = json.dumps(fields, separators=(",", ":")).encode()
    return zlib.crc32(body).to_bytes(4, "big") + body


def decode_open(body: bytes) -> dict[str, object] | None:
    """Decode an accumulator; None when it is empty or damaged."""
    if len(body) < 5 or zlib.crc32(body[4:]) != int.from_bytes(body[:4], "big"):
        return None
    tree = json.loads(body[4:])
    return tree if isinstance(tree, dict) else None
