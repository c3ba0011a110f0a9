"""The outbox: a bounded SQLite file with everything the device has to say and has not yet been heard.

- Nothing is said before it is durable: closing a window is one transaction (row, accumulator, clock, number).
- A row is `(epoch, sequence)`: the epoch is random per database, so a wiped device never collides with its past.
- A row leaves when the control plane acknowledged it, or when there is no room; then a `gap` record accounts for it
  (`agent.telling.outbox_rows`). Bit rot, found by the CRC of each body, leaves a gap record too, and the body in
  quarantine.
- A ballast file is freed when the disk is full, since even DELETE needs room.
- A file that is damaged is moved aside, and a new epoch says so (`agent.telling.outbox_file`).
- On a disk that refuses it is `frozen`: it can be read, and every write is `Broken`, until `thaw`.

A power cut can lose rows of the open window alone, at most those since `save_open` last ran.
"""

import math
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from agent.remote.again import find_window
from agent.telling.outbox_file import (
    decode_open,
    encode_open,
    free_ballast,
    hold_ballast,
    look,
    move_aside,
    open_frozen,
    open_sound,
)
from agent.telling.outbox_rows import Rows
from skerry.errors import Broken
from skerry.wire.messages import Ack, Outbox

__all__ = ["BUDGET_SHARE", "OpenWindow", "OutboxFile", "decode_open", "encode_open", "look"]

# the rest of the quota is for the WAL's peak
BUDGET_SHARE = 0.65
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class OpenWindow:
    """The persisted accumulator of a manifest; `body` is empty between two windows."""

    number: int = 0
    event_clock: float = 0.0
    body: bytes = b""


class OutboxFile:
    """The outbox in `path`, of at most `quota_bytes` on disk; safe for several threads of one process."""

    def __init__(self, path: Path, *, quota_bytes: int = 4 << 20, frozen: bool = False) -> None:
        self._path = path
        self._quota_bytes = quota_bytes
        self._budget = int(quota_bytes * BUDGET_SHARE)
        self._lock = threading.RLock()
        self.problem = ""
        if frozen:
            self._freeze()
        else:
            self._open()

    @property
    def epoch(self) -> str:
        """The random name of this database."""
        with self._using():
            return self._rows.meta("epoch")

    @property
    def depth(self) -> int:
        """How many rows have not been acknowledged."""
        with self._using():
            return self._rows.depth

    @property
    def damaged(self) -> int:
        """How many rows were found damaged since this file was made."""
        with self._using():
            return int(self._rows.meta("damaged"))

    @property
    def window(self) -> int:
        """How many batches the control plane takes at once, as it last said; 0 before, or for an older one."""
        with self._using():
            return int(self._rows.meta("window"))

    @property
    def size_bytes(self) -> int:
        """How many bytes of its budget are taken."""
        with self._using():
            return self._rows.size()

    @property
    def budget_bytes(self) -> int:
        """How many bytes its rows may take."""
        return self._budget

    def again(self, *, sequence: int | None, number: int | None, manifest: str) -> Outbox | None:
        """Return one closed window that was not acknowledged as a message of its own (`agent.remote.again`), or
        None."""

        def choose() -> Outbox | None:
            entry = find_window(self._db, sequence=sequence, number=number, manifest=manifest)
            return Outbox(epoch=self._rows.meta("epoch"), entries=(entry,)) if entry is not None else None

        return self._write(choose)

    def put(self, kind: str, body: bytes, *, event_time: float) -> int:
        """Append a row durably and return its sequence number."""
        return self._write(lambda: self._rows.insert(kind, body, event_time))

    @property
    def is_blind(self) -> bool:
        """True while it is frozen and nothing of the file could be read: what windows are open there is not known."""
        return self._is_blind

    def close_window(self, manifest: str, report: bytes, *, number: int, event_clock: float, body: bytes = b"") -> int:
        """Append a window's report, and in the same transaction reset its accumulator to window `number + 1`.

        With `body`, the rows that were saved are none of the report's: that next window goes on with them.
        """

        def close() -> int:
            sequence = self._rows.insert("window", report, event_clock)
            self._rows.save(manifest, number=number + 1, event_clock=event_clock, body=body)
            return sequence

        return self._write(close)

    def save_open(self, manifest: str, body: bytes, *, number: int, event_clock: float) -> None:
        """Persist the accumulator of the open window, to continue it after a restart."""
        self._write(lambda: self._rows.save(manifest, number=number, event_clock=event_clock, body=body))

    def open_window(self, manifest: str) -> OpenWindow:
        """Return the accumulator of `manifest`, or an empty one that starts at number 0."""
        with self._using():
            row = self._db.execute(
                "select window_number, event_clock, body from accumulator where manifest = ?", (manifest,)
            ).fetchone()
        # a flipped bit may change a type, and a number is no length of a body
        if row is None or [type(each) for each in row] != [int, float, bytes]:
            return OpenWindow()
        return OpenWindow(number=row[0], event_clock=row[1], body=row[2])

    def event_clock(self) -> float:
        """Return the event clock as last persisted, 0 before the first time."""
        with self._using():
            query = "select max(event_clock) from accumulator where typeof(event_clock) = 'real'"
            clock = float(self._db.execute(query).fetchone()[0] or 0.0)
        return clock if math.isfinite(clock) else 0.0

    def batch(self, *, besides: Collection[int] = (), newest: int = 0) -> Outbox | None:
        """Return rows for one message, none of those in `besides`; None when there is nothing to say now.

        They are the oldest, or the `newest` few. From here on they may be known by their numbers, so they stay until
        they were heard; a quarter of the budget at most is in that state, and further rows wait.
        """

        def choose() -> Outbox | None:
            entries = self._rows.choose(besides=besides, newest=newest)
            return Outbox(epoch=self._rows.meta("epoch"), entries=tuple(entries)) if entries else None

        return self._write(choose)

    def holds(self, sequences: Collection[int]) -> set[int]:
        """Return which of these rows have not been acknowledged."""
        with self._using():
            marks = ",".join("?" * len(sequences))
            query = f"select sequence from outbox where sequence in ({marks})"  # noqa: S608 -- question marks
            return {row[0] for row in self._db.execute(query, tuple(sequences))}

    def acknowledge(self, ack: Ack) -> bool:
        """Delete what the control plane has committed; False for an acknowledgement of another epoch."""
        with self._using():
            if ack.epoch != self.epoch:
                return False
            self._write(lambda: self._rows.settle(ack))
            with suppress(sqlite3.OperationalError):  # a full disk; the space is given back another time
                self._db.execute("pragma incremental_vacuum(64)")
        return True

    def lose(self, kind: str, count: int, *, reason: str) -> None:
        """Account for rows of a kind that never came to be here, by a gap record."""
        self._write(lambda: self._rows.record_unkept(kind, count, reason))

    def thaw(self) -> None:
        """Open a frozen outbox to be written, now that the disk takes that; raises `Broken` where it does not."""
        with self._lock:
            # first: the connections of one process share a journal, and one that cannot write it keeps all from that
            self._db.close()
            try:
                self._open()
            except Broken:
                self._freeze()
                raise

    def close(self) -> None:
        """Checkpoint and close."""
        with self._lock:
            self._db.close()

    def _open(self) -> None:
        self._db, loss = open_sound(self._path, self._quota_bytes)
        self._is_blind = False
        self._rows = Rows(self._db, budget=self._budget)
        self._ballast = hold_ballast(self._path)
        if loss is not None:
            self.problem = f"the outbox was damaged and is kept as a copy ({loss.reason}); a new epoch began"[:300]
            self._write(lambda: self._rows.record_loss(loss))

    def _freeze(self) -> None:
        self._db, is_read = open_frozen(self._path, self._quota_bytes)
        self._is_blind = not is_read
        self._rows = Rows(self._db, budget=self._budget)
        # as if it were there: nobody tries to put it
        self._ballast = True

    def _write(self, work: Callable[[], T]) -> T:
        """Run one FULL transaction; on a full disk free the ballast, then give up rows, and try again."""
        with self._using():
            try:
                result = self._transaction(work)
            except sqlite3.OperationalError as error:
                if getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_FULL:
                    raise
                result = self._on_a_full_disk(work)
            if not self._ballast:
                self._ballast = hold_ballast(self._path)
            return result

    def _on_a_full_disk(self, work: Callable[[], T]) -> T:
        free_ballast(self._path)
        self._ballast = False
        with suppress(sqlite3.OperationalError):
            return self._transaction(work)
        self._transaction(lambda: self._rows.make_room(self._rows.size() * 3 // 4))
        return self._transaction(work)

    def _transaction(self, work: Callable[[], T]) -> T:
        self._db.execute("begin immediate")
        try:
            result = work()
            if self._rows.size() > self._budget:
                self._rows.make_room(self._budget)
            self._db.execute("commit")
        except BaseException:  # whatever ends the work, also an interrupt, must not leave the transaction open
            if self._db.in_transaction:
                self._db.execute("rollback")
            raise
        return result

    @contextmanager
    def _using(self) -> Iterator[None]:
        """Hold the database; what SQLite or the disk refuses is `Broken`, and a damaged file is left for a new one."""
        with self._lock:
            try:
                yield
            except sqlite3.DatabaseError as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                    self._start_over(str(error))
                raise Broken(f"{self._path}: expected a sound outbox, got: {error}; check the disk") from error
            except (sqlite3.Error, OSError, ValueError) as error:
                raise Broken(f"{self._path}: expected a sound outbox, got: {error}; check the disk") from error

    def _start_over(self, reason: str) -> None:
        """Leave a file that turned out damaged while it was open; whoever asked asks again."""
        with suppress(sqlite3.Error):
            self._db.close()
        loss = move_aside(self._path, reason)
        self._open()
        self.problem = f"the outbox was damaged and is kept as a copy ({reason}); a new epoch began"[:300]
        self._write(lambda: self._rows.record_loss(loss))
