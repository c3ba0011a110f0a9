"""The outbox's rows and whose turn it is: to be said, to be given up when there is no room, to be numbered anew.

Each kind has a priority, and each priority a share of the budget (`SHARES`), so a flood of one kind leaves the others
theirs: over budget, rows go from the lowest priority that is above its share, the oldest first, in runs, and only what
was never said. A `gap` record takes the place of a run: it stands at the run's first number and accounts for all of
them, so the control plane sees every number once.

Everything here happens within a transaction of `agent.telling.outbox`.
"""

import math
import secrets
import sqlite3
import zlib
from base64 import b64encode
from collections.abc import Collection, Iterable
from dataclasses import replace

from agent.telling.outbox_file import Loss
from agent.telling.outbox_salvage import PRIORITIES, seal_of
from skerry.errors import Rejected
from skerry.wire import codec
from skerry.wire.messages import Ack, Entry, Gap

BATCH_ENTRIES = 32
BATCH_BYTES = 48 * 1024
ROW_OVERHEAD_BYTES = 64
# samples, windows, gap records, what deployments and evidence say
SHARES = {0: 0.20, 1: 0.50, 2: 0.10, 3: 0.20}
# of the budget may have been said and not be heard yet: that is what cannot be given up
SAID_SHARE = 0.25
EVICT_ROWS = 16
KEPT_ACCUMULATORS = 8
KEPT_DAMAGED = 16
_KEPT_BODY_BYTES = 4096
_KINDS = frozenset(PRIORITIES)
_SIZE = f"length(body) + {ROW_OVERHEAD_BYTES}"


class Rows:
    """The rows of one open database."""

    def __init__(self, db: sqlite3.Connection, *, budget: int) -> None:
        self._db = db
        self._budget = budget

    # --- numbers and marks

    def meta(self, key: str) -> str:
        """Return a mark."""
        return str(self._db.execute("select value from meta where key = ?", (key,)).fetchone()[0])

    def set_meta(self, key: str, value: object) -> None:
        """Set a mark."""
        self._db.execute("insert or replace into meta values (?, ?)", (key, str(value)))

    @property
    def next_sequence(self) -> int:
        """The number of the next row."""
        return int(self.meta("next_sequence"))

    @property
    def depth(self) -> int:
        """How many rows there are."""
        return int(self._db.execute("select count(*) from outbox").fetchone()[0])

    def size(self) -> int:
        """Return what all rows take, in bytes."""
        return int(self._db.execute(f"select coalesce(sum({_SIZE}), 0) from outbox").fetchone()[0])  # noqa: S608 -- a constant

    # --- rows come

    def insert(self, kind: str, body: bytes, event_time: float) -> int:
        """Append a row and return its number."""
        sequence = self.next_sequence
        self._put(sequence, kind, body, event_time)
        self.set_meta("next_sequence", sequence + 1)
        return sequence

    def save(self, manifest: str, *, number: int, event_clock: float, body: bytes) -> None:
        """Keep the open window of a manifest, and those of the few before it."""
        self._db.execute(
            "insert or replace into accumulator values (?, ?, ?, ?)", (manifest, number, event_clock, body)
        )
        self._db.execute(
            "delete from accumulator where manifest <> ?1 and manifest not in"
            " (select manifest from accumulator where manifest <> ?1 order by event_clock desc limit ?2)",
            (manifest, KEPT_ACCUMULATORS - 1),
        )

    def record_loss(self, loss: Loss) -> None:
        """Say what went with a file that was damaged: the first of its successor."""
        if loss.salvaged:
            # the file that was made of the rest has it in gap records, by number
            return
        first, count = self.next_sequence, max(loss.count, 1)
        known = f"{loss.count} rows at least" if loss.count else "an unknown number of rows"
        reason = f"a damaged outbox was moved aside, with {known}: {loss.reason}"[:300]
        self._put_gap(Gap(kind="any", first=first, last=first + count - 1, count=count, reason=reason))
        self.set_meta("next_sequence", first + count)

    def record_unkept(self, kind: str, count: int, reason: str) -> None:
        """Say that so many rows of a kind were made and could not be put here."""
        first = self.next_sequence
        self._put_gap(Gap(kind=kind, first=first, last=first + count - 1, count=count, reason=reason))
        self.set_meta("next_sequence", first + count)

    # --- rows are said

    def choose(self, *, besides: Collection[int], newest: int) -> list[Entry]:
        """Choose the rows of one message, the oldest or the `newest` few, and mark them as said.

        Rows whose CRC no longer holds become gap records first.
        """
        while True:
            chosen = self._next(besides, newest)
            if not chosen:
                return []
            rows = self._db.execute(
                "select sequence, kind, event_time, crc, body from outbox where sequence between ? and ?"
                " order by sequence",
                (chosen[0], chosen[-1]),
            ).fetchall()
            rows = [row for row in rows if row[0] in set(chosen)]
            damaged = [row for row in rows if not _sound(row)]
            if not damaged:
                break
            for row in damaged:
                self._give_up_damaged(*row)
        self._db.executemany("update outbox set said = 1 where sequence = ? and said <> 1", [(row[0],) for row in rows])
        return [
            Entry(sequence=sequence, kind=kind, event_time=event_time, crc=crc, body=b64encode(body).decode())
            for sequence, kind, event_time, crc, body in rows
        ]

    def _next(self, besides: Collection[int], newest: int) -> list[int]:
        room = self._room_to_say()
        closing = self.meta("closing") == "1"
        chosen: list[int] = []
        size = 0
        query = f"select sequence, {_SIZE}, said from outbox order by sequence {'desc' if newest else ''}"  # noqa: S608 -- constants
        for sequence, row_bytes, said in self._db.execute(query):
            if len(chosen) >= (min(newest, BATCH_ENTRIES) if newest else BATCH_ENTRIES):
                break
            if sequence in besides:
                if newest:
                    break
                continue
            if said != 1 and (closing or row_bytes > room):
                # what was said once may always be said again, wherever it stands
                room = 0
                continue
            size += row_bytes * 4 // 3
            if chosen and size > BATCH_BYTES:
                break
            room = min(room, self._budget * SAID_SHARE) - row_bytes if said != 1 else room
            chosen.append(sequence)
        return sorted(chosen)

    def _room_to_say(self) -> float:
        (said,) = self._db.execute(f"select coalesce(sum({_SIZE}), 0) from outbox where said = 1").fetchone()  # noqa: S608 -- a constant
        # a row that is larger than all of it goes alone
        return self._budget * SAID_SHARE - float(said) if said else float(self._budget)

    # --- rows were heard

    def settle(self, ack: Ack) -> bool:
        """Delete what was heard and act on what the control plane has to say of it; True when a new epoch began.

        Two files can be restored from a copy, and both show here. Ours: numbers are acknowledged that this file has
        yet to say; those rows stay, and are said in a new epoch. The control plane's: it acknowledges less than it
        once did; a gap record accounts for what it forgot, for it would wait for ever.
        """
        if ack.window != int(self.meta("window")):
            self.set_meta("window", max(ack.window, 0))
        heard = [(1, ack.up_to), *ack.ranges]
        half_heard = self._half_heard(heard)
        self._db.executemany("delete from outbox where said = 1 and sequence between ? and ?", heard)
        for gap in half_heard:
            self._put_gap(gap)
            self._db.execute("update outbox set said = 1 where sequence = ?", (gap.first,))
        # what is in conflict was not heard, and is said again under its next number
        self._db.executemany("update outbox set said = 0 where sequence = ?", [(each,) for each in ack.conflicts])
        if ack.new_epoch and not ack.window:
            # an older control plane, to which one batch at a time was said: it heard no other row
            self._db.execute("update outbox set said = 0")
        if ack.new_epoch or self._is_a_copy(heard):
            self.set_meta("closing", 1)
        if self.meta("closing") == "1":
            # what was said and not answered yet must be settled under the numbers by which it may be known
            if self._db.execute("select 1 from outbox where said = 1 limit 1").fetchone() is not None:
                return False
            self._renumber()
            return True
        self._account_for_the_forgotten(ack.up_to)
        return False

    def _half_heard(self, heard: Iterable[tuple[int, ...]]) -> list[Gap]:
        """Return the rest of gap records of whose numbers the first were heard, maybe before they were lost."""
        query = (
            "select sequence, kind, event_time, crc, body from outbox"
            " where kind = 'gap' and said = 1 and sequence between ? and ?"
        )
        return [
            replace(gap, first=last + 1, count=min(gap.count, gap.last - last))
            for first, last in heard
            for gap in map(_read_gap, self._db.execute(query, (first, last)).fetchall())
            if gap is not None and gap.last > last
        ]

    def _is_a_copy(self, heard: Iterable[tuple[int, ...]]) -> bool:
        if max(last for _, last in heard) >= self.next_sequence:
            return True
        unsaid = "select 1 from outbox where said <> 1 and kind <> 'gap' and sequence between ? and ? limit 1"
        return any(self._db.execute(unsaid, each).fetchone() is not None for each in heard)

    def _account_for_the_forgotten(self, up_to: int) -> None:
        (oldest,) = self._db.execute("select min(sequence) from outbox").fetchone()
        first, last = up_to + 1, (oldest or self.next_sequence) - 1
        if first <= last:
            reason = "forgotten by the control plane"
            self._put_gap(Gap(kind="any", first=first, last=last, count=last - first + 1, reason=reason))

    def _renumber(self) -> None:
        """Start a new epoch with the rows that are left, numbered from 1 in their order."""
        rows = self._db.execute("select sequence, kind, event_time, crc, body from outbox order by sequence").fetchall()
        end = self.next_sequence
        self._db.execute("delete from outbox")
        for key, value in (("epoch", secrets.token_hex(8)), ("next_sequence", 1), ("closing", 0)):
            self.set_meta(key, value)
        ends = [*(row[0] for row in rows), end][1:]
        for row, until in zip(rows, ends, strict=True):
            sequence, kind, event_time, _, body = row
            if _sound(row) and kind != "gap":
                self.insert(kind, body, event_time)
                continue
            gap = _read_gap(row) or _damaged(row, until - 1)
            if not _sound(row):
                self._quarantine(sequence, kind, body)
            first, count = self.next_sequence, max(gap.count, 1)
            self._put_gap(replace(gap, first=first, last=first + count - 1, count=count))
            self.set_meta("next_sequence", first + count)

    # --- rows go

    def make_room(self, budget: float) -> None:
        """Give up rows until the rest fits, or nothing is left that may go; what was said stays."""
        joined = False
        while self.size() > budget:
            sizes = self._sizes()
            above = [priority for priority, size in sizes.items() if size > SHARES.get(priority, 0.0) * budget]
            crowded = PRIORITIES["gap"] in above
            if crowded and not joined:
                self._join_gaps()
                joined = True
                continue
            # gap records that no join makes fewer stand between rows: then rows of any kind go, the lowest first
            victim = self._victim([*above, *(sizes if crowded else ())])
            if victim is None:
                return
            self._give_up_run(*victim)

    def _sizes(self) -> dict[int, int]:
        query = f"select priority, sum({_SIZE}) from outbox group by priority order by priority"  # noqa: S608 -- a constant
        return dict(self._db.execute(query))

    def _victim(self, priorities: Iterable[int]) -> tuple[int, str] | None:
        """Return the oldest row that may go, of the first of these priorities that has one."""
        for priority in priorities:
            row = self._db.execute(
                "select sequence, kind from outbox where said = 0 and kind <> 'gap' and priority = ?"
                " order by sequence limit 1",
                (priority,),
            ).fetchone()
            if row is not None:
                return int(row[0]), str(row[1])
        return None

    def _give_up_run(self, first: int, kind: str) -> None:
        following = self._db.execute(
            "select sequence, kind, said from outbox where sequence >= ? order by sequence limit ?", (first, EVICT_ROWS)
        ).fetchall()
        last = first
        for at, row in enumerate(following):
            if row != (first + at, kind, 0):
                break
            last = row[0]
        self._give_up(first, last, kind, reason="no room")

    def _give_up(self, first: int, last: int, kind: str, *, reason: str) -> None:
        """Replace a run of rows by a gap record at its first number, or lengthen the one just before it."""
        self._db.execute("delete from outbox where sequence between ? and ?", (first, last))
        count = last - first + 1
        row = self._db.execute(
            "select sequence, kind, event_time, crc, body from outbox where sequence < ? and said = 0"
            " order by sequence desc limit 1",
            (first,),
        ).fetchone()
        before = _read_gap(row) if row is not None else None
        if before is not None and (before.kind, before.reason, before.last) == (kind, reason, first - 1):
            first, count = before.first, before.count + count
        self._put_gap(Gap(kind=kind, first=first, last=last, count=count, reason=reason))

    def _join_gaps(self) -> None:
        """Make one gap record of neighbours of several kinds: what was lost is still counted, no longer by kind."""
        rows = self._db.execute(
            "select sequence, kind, event_time, crc, body from outbox where kind = 'gap' and said = 0 order by sequence"
        ).fetchall()
        held: Gap | None = None
        for row in rows:
            gap = _read_gap(row)
            if held is not None and gap is not None and held.last + 1 == gap.first:
                self._db.execute("delete from outbox where sequence = ?", (gap.first,))
                same = (held.kind, held.reason) == (gap.kind, gap.reason)
                kind, reason = (held.kind, held.reason) if same else ("any", "no room")
                held = Gap(kind=kind, first=held.first, last=gap.last, count=held.count + gap.count, reason=reason)
                self._put_gap(held)
            else:
                held = gap

    def _give_up_damaged(self, sequence: int, kind: str, event_time: float, crc: int, body: bytes) -> None:
        (following,) = self._db.execute("select min(sequence) from outbox where sequence > ?", (sequence,)).fetchone()
        # the body of a gap record can no longer tell for whom it stands: it takes everything up to the next row, and
        # the control plane counts of that what it has not heard
        gap = _damaged((sequence, kind, event_time, crc, body), (following or self.next_sequence) - 1)
        self._quarantine(sequence, kind, body)
        self._give_up(gap.first, gap.last, gap.kind, reason=gap.reason)

    def _quarantine(self, sequence: int, kind: object, body: object) -> None:
        kept = body[:_KEPT_BODY_BYTES] if isinstance(body, bytes) else repr(body).encode()[:_KEPT_BODY_BYTES]
        self._db.execute(
            "insert into quarantine (epoch, sequence, kind, body) values (?, ?, ?, ?)",
            (self.meta("epoch"), sequence, str(kind)[:16], kept),
        )
        self._db.execute(
            "delete from quarantine where number <= (select max(number) from quarantine) - ?", (KEPT_DAMAGED,)
        )
        self.set_meta("damaged", int(self.meta("damaged")) + 1)

    # --- the table

    def _put_gap(self, gap: Gap) -> None:
        self._put(gap.first, "gap", codec.encode(gap), 0.0)

    def _put(self, sequence: int, kind: str, body: bytes, event_time: float) -> None:
        seal = seal_of(self.meta("epoch"), sequence, kind, event_time, body)
        self._db.execute(
            "insert or replace into outbox (sequence, kind, priority, event_time, crc, body, seal)"
            " values (?, ?, ?, ?, ?, ?, ?)",
            (sequence, kind, PRIORITIES[kind], event_time, zlib.crc32(body), body, seal),
        )


def _sound(row: tuple[object, ...]) -> bool:
    """Say whether a row is what was put: of the right types too, for a flipped bit may change those."""
    _, kind, event_time, crc, body = row
    if kind not in _KINDS or not isinstance(event_time, float) or not math.isfinite(event_time):
        return False
    return isinstance(body, bytes) and zlib.crc32(body) == crc


def _read_gap(row: tuple[object, ...]) -> Gap | None:
    body = row[4]
    if not _sound(row) or row[1] != "gap" or not isinstance(body, bytes):
        return None
    try:
        return codec.decode(Gap, body)
    except Rejected:
        return None


def _damaged(row: tuple[object, ...], last: int) -> Gap:
    sequence, kind = row[0], row[1]
    assert isinstance(sequence, int)  # noqa: S101 -- it is the table's key
    if isinstance(kind, str) and kind in _KINDS and kind != "gap":
        return Gap(kind=kind, first=sequence, last=sequence, count=1, reason="damaged")
    return Gap(kind="any", first=sequence, last=last, count=last - sequence + 1, reason="damaged")
