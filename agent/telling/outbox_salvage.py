"""Takes what is sound of a damaged outbox into a new file, by ordinary reads of SQLite: what it refuses is lost.

A row is believed that was put under this number, in this epoch: a CRC over that and the body (`seal_of`) says so. It
may have been heard already, so it keeps its number and its epoch, by which the control plane counts it once; all
other numbers up to the last that is known are in gap records, of which the control plane counts what it has not heard.
The new file is one that is about to begin a new epoch (`closing`): what was salvaged is said first, and all that is put
from here on is numbered anew when that was heard.

It is built under another name, and put in place when the damaged one is out of the way: a power cut in between leaves
the one or the other, and the next start goes on.
"""

import math
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from skerry.delivery.durable import sync_folder
from skerry.errors import Rejected
from skerry.wire import codec
from skerry.wire.messages import Gap

# shares of the budget by priority; see `agent.telling.outbox_rows`
PRIORITIES = {"sample": 0, "window": 1, "gap": 2, "deployment": 3, "evidence": 3}
# numbers that are looked at, the newest: more rows than a quota holds
MOST_NUMBERS = 1 << 16
# in one transaction: the journal of a disk that is nearly full has to have room for it
_SEALED_BYTES = 16 * 1024
_REFUSED = (sqlite3.Error, ValueError, OverflowError)
_ROWS = "select sequence, kind, event_time, crc, body, seal from outbox"


def seal_of(epoch: str, sequence: int, kind: str, event_time: float, body: bytes) -> int:
    """Return what tells that a row is what was put, under its own number."""
    return zlib.crc32(body, zlib.crc32(f"{epoch} {sequence} {kind} {event_time!r} ".encode()))


def seal_rows(db: sqlite3.Connection) -> None:
    """Seal what an older agent has put, a few rows at a time; what a full disk refuses is sealed at the next start."""
    (epoch,) = db.execute("select value from meta where key = 'epoch'").fetchone()
    numbers = [number for (number,) in db.execute("select sequence from outbox where seal is null")]
    at = 0
    while at < len(numbers):
        db.execute("begin immediate")
        try:
            size = 0
            while at < len(numbers) and size < _SEALED_BYTES:
                size += _seal_row(db, epoch, numbers[at])
                at += 1
            db.execute("commit")
        except BaseException as error:  # whatever ends it must not leave the transaction open
            if db.in_transaction:
                db.execute("rollback")
            if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL:
                return
            raise


def _seal_row(db: sqlite3.Connection, epoch: str, number: int) -> int:
    """Seal one row, and return how much of the journal that takes at least."""
    kind, event_time, body = db.execute(
        "select kind, event_time, body from outbox where sequence = ?", (number,)
    ).fetchone()
    if not (isinstance(event_time, float) and isinstance(body, bytes)):
        return 0
    seal = seal_of(epoch, number, kind, event_time, body)
    db.execute("update outbox set seal = ? where sequence = ?", (seal, number))
    return len(body) + 64


def salvage(damaged: Path, path: Path, schema: str) -> int:
    """Make the outbox `path` of what is sound in `damaged`; return how many rows that was, and 0 without a new file.

    Raises:
        sqlite3.Error: there is no room for it.
        OSError: as above.
    """
    building = path.with_name(f"{path.name}.part")
    for each in (path, building, building.with_name(f"{building.name}-journal")):
        each.unlink(missing_ok=True)
    with closing(sqlite3.connect(damaged, timeout=1)) as old:
        old.text_factory = lambda raw: raw.decode(errors="replace")
        epoch = _epoch(old)
        if not epoch:
            return 0
        with closing(sqlite3.connect(building, isolation_level=None)) as db:
            count = _fill(db, old, schema, epoch)
    if count:
        building.rename(path)
        sync_folder(path.parent)
    else:
        building.unlink()
    return count


def _epoch(old: sqlite3.Connection) -> str:
    with suppress(*_REFUSED):
        found = old.execute("select value from meta where key = 'epoch'").fetchone()
        return str(found[0]) if found else ""
    return ""


def _next(old: sqlite3.Connection) -> int:
    with suppress(*_REFUSED, TypeError):
        return int(old.execute("select value from meta where key = 'next_sequence'").fetchone()[0])
    return 0


def _is_sound(epoch: str, number: Any, kind: Any, event_time: Any, crc: Any, body: Any, seal: Any) -> bool:
    if not (kind in PRIORITIES and isinstance(event_time, float) and isinstance(body, bytes)):
        return False
    return bool(zlib.crc32(body) == crc and seal_of(epoch, number, kind, event_time, body) == seal)


def _fill(db: sqlite3.Connection, old: sqlite3.Connection, schema: str, epoch: str) -> int:
    """Put what is sound, and gap records for what is between; all of it is as if it had been said."""
    for pragma in ("auto_vacuum = incremental", "synchronous = full", "journal_mode = delete"):
        db.execute(f"pragma {pragma}")
    db.execute("begin immediate")
    for statement in schema.split(";"):
        db.execute(statement)

    # from both ends as far as it goes, then each by its number: damage inside of the tree hides others from each way
    for order in ("", "desc"):
        _take(db, old, epoch, f"{_ROWS} order by sequence {order}")
    (last,) = db.execute("select coalesce(max(sequence), 0) from outbox").fetchone()
    following = _next(old)
    if last < following <= last + MOST_NUMBERS or not last:
        last = following - 1
    for number in range(max(1, last - MOST_NUMBERS), last + 1):
        _take(db, old, epoch, f"{_ROWS} where sequence = ?", number)

    count, following = 0, 1
    for number, kind, body in db.execute("select sequence, kind, body from outbox order by sequence").fetchall():
        _put_gap(db, epoch, following, number - 1)
        following = max(following, number + 1, _last(body) + 1 if kind == "gap" else 0)
        count += kind != "gap"
    _put_gap(db, epoch, following, last)
    take_over_windows(db, old)
    marks = {"epoch": epoch, "next_sequence": max(following, last + 1), "closing": 1}
    db.executemany("insert into meta values (?, ?)", [(key, str(mark)) for key, mark in marks.items()])
    db.execute("commit")
    return count


def _take(db: sqlite3.Connection, old: sqlite3.Connection, epoch: str, query: str, *numbers: int) -> None:
    for row in _read(old, query, *numbers):
        if _is_sound(epoch, *row):
            _put(db, row)


def _read(old: sqlite3.Connection, query: str, *numbers: int) -> Iterator[tuple[Any, ...]]:
    with suppress(*_REFUSED):
        yield from old.execute(query, numbers)


def take_over_windows(db: sqlite3.Connection, old: sqlite3.Connection) -> None:
    """Go on with the numbers of the open windows and the event clock, as far as they can be read; not their counts."""
    for manifest, number, clock in _read(old, "select manifest, window_number, event_clock from accumulator limit 64"):
        if (
            isinstance(manifest, str)
            and isinstance(number, int)
            and isinstance(clock, float)
            and 0 <= number < 1 << 40
            and math.isfinite(clock)
        ):
            # the window that was open is lost with the rest: the next one has its own number
            db.execute("insert or ignore into accumulator values (?, ?, ?, x'')", (manifest, number + 1, clock))


def _last(body: bytes) -> int:
    with suppress(Rejected):
        return codec.decode(Gap, body).last
    return 0


def _put_gap(db: sqlite3.Connection, epoch: str, first: int, last: int) -> None:
    if first > last:
        return
    reason = "a damaged outbox was moved aside"
    body = codec.encode(Gap(kind="any", first=first, last=last, count=last - first + 1, reason=reason))
    _put(db, (first, "gap", 0.0, zlib.crc32(body), body, seal_of(epoch, first, "gap", 0.0, body)))


def _put(db: sqlite3.Connection, row: tuple[Any, ...]) -> None:
    db.execute(
        "insert or ignore into outbox (sequence, kind, event_time, crc, body, seal, priority, said)"
        " values (?, ?, ?, ?, ?, ?, ?, 1)",
        (*row, PRIORITIES[row[1]]),
    )
