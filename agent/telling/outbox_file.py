"""The outbox on the disk: opened, checked, brought up to date; damaged, moved aside for a new one; its ballast.

A damaged file never keeps an agent from starting. It is kept beside its successor, the last one alone. What is sound
of it is taken over (`agent.telling.outbox_salvage`); where nothing is, `open_sound` returns a `Loss`, which becomes the
new epoch's first gap record. The numbers of the open windows and the event clock are taken over where they can be read.
"""

import json
import logging
import os
import re
import secrets
import sqlite3
import zlib
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from agent.telling.outbox_salvage import salvage, seal_rows, take_over_windows
from skerry.delivery.durable import sync_folder
from skerry.errors import Broken

BALLAST_BYTES = 128 * 1024
DAMAGED = ".damaged"
SALVAGED = ".salvaged"
_PAGE_BYTES = 4096
_EPOCH = re.compile(r"[0-9a-f]{1,32}")
_SIDES = ("-wal", "-shm")
# what another try, more room or an owner can mend; whatever else SQLite says of a file is damage
_NO_DAMAGE = frozenset(
    {
        *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY),
        *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PERM),
        *(sqlite3.SQLITE_AUTH, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_PROTOCOL),
    }
)
_SCHEMA = (Path(__file__).parent / "outbox.sql").read_text()
_log = logging.getLogger("skerry.agent.outbox")


@dataclass(frozen=True, slots=True)
class Loss:
    """What went with a damaged file: how many rows as far as they could be counted, and why it was given up.

    `salvaged` are those that were taken over; then what is lost is in gap records of the new file already.
    """

    count: int
    reason: str
    salvaged: int = 0


@dataclass(frozen=True, slots=True)
class Glance:
    """What an outbox holds, from outside: its rows by kind, and the event clock as last persisted."""

    rows: dict[str, int] = field(default_factory=dict)
    event_clock: float = 0.0


class Damaged(Exception):
    """The file is not, or no longer, a sound outbox; it never leaves this module."""


def open_sound(path: Path, quota_bytes: int) -> tuple[sqlite3.Connection, Loss | None]:
    """Open the outbox in `path`; a damaged one is moved aside, and what was lost with it is returned too.

    Raises:
        Broken: the disk refused, even after the ballast was freed; nothing has changed.
    """
    try:
        _put_in_place(path)
        return _with_ballast(path, quota_bytes), None
    except Damaged as damage:
        loss = move_aside(path, str(damage))
    except sqlite3.Error as error:
        raise Broken(f"{path}: expected to open the outbox, got: {error}; check the disk") from error
    try:
        db = _with_ballast(path, quota_bytes)
        _take_over(db, path.with_name(path.name + DAMAGED))
    except (Damaged, sqlite3.Error) as error:
        raise Broken(f"{path}: expected to make a new outbox, got: {error}; check the disk") from error
    return db, loss


def move_aside(path: Path, reason: str) -> Loss:
    """Rename a damaged outbox, over an earlier one; raises `Broken` where the disk refuses even that."""
    reason = " ".join(reason.split())
    count, salvaged = _count_rows(path), _salvage(path)
    try:
        _rename_aside(path)
        _put_in_place(path)
    except OSError as error:
        raise Broken(f"{path}: expected to move a damaged outbox aside, got: {error.strerror}") from error
    aside = path.with_name(path.name + DAMAGED)
    _log.error(
        "%s: %s; it is kept as %s, %d rows are taken over, and a new epoch begins", path, reason, aside.name, salvaged
    )
    return Loss(count=count, reason=reason, salvaged=salvaged)


def _rename_aside(path: Path) -> None:
    aside = path.with_name(path.name + DAMAGED)
    for side in ("", *_SIDES):
        old, new = path.with_name(path.name + side), aside.with_name(aside.name + side)
        new.unlink(missing_ok=True)
        if old.exists():
            old.rename(new)


def _salvage(path: Path) -> int:
    """Make a new outbox of what is sound in a damaged one; nothing where the disk has no room for both."""
    free_ballast(path)
    with suppress(sqlite3.Error, OSError, ValueError):
        return salvage(path, path.with_name(path.name + SALVAGED), _SCHEMA)
    path.with_name(path.name + SALVAGED).unlink(missing_ok=True)
    return 0


def _put_in_place(path: Path) -> None:
    """Give what was salvaged the outbox's name, once the damaged file has lost it; also after a power cut."""
    salvaged = path.with_name(path.name + SALVAGED)
    if salvaged.exists() and not path.exists():
        # its WAL would be taken for ours
        for side in _SIDES:
            path.with_name(path.name + side).unlink(missing_ok=True)
        sync_folder(path.parent)
        salvaged.rename(path)
        sync_folder(path.parent)


def is_damage(error: sqlite3.Error) -> bool:
    """Say whether SQLite speaks of the file's content, and not of the disk or of who else uses it."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    return code == sqlite3.SQLITE_IOERR_SHORT_READ or (code & 0xFF) not in _NO_DAMAGE


def hold_ballast(path: Path) -> bool:
    """Put the ballast beside the outbox, unless it is there or the disk is nearly full; say whether it is there."""
    ballast = _ballast(path)
    try:
        if ballast.exists() and ballast.stat().st_size == BALLAST_BYTES:
            return True
        disk = os.statvfs(path.parent)
        if disk.f_bavail * disk.f_frsize < 4 * BALLAST_BYTES:
            return False
        # written, not sparse: a hole would free nothing
        ballast.write_bytes(bytes(BALLAST_BYTES))
    except OSError:
        # the disk is full now; the ballast returns when there is room
        with suppress(OSError):
            ballast.unlink(missing_ok=True)
        return False
    return True


def free_ballast(path: Path) -> None:
    """Give the ballast's room to whoever needs it now."""
    with suppress(OSError):
        _ballast(path).unlink(missing_ok=True)


def look(path: Path) -> Glance:
    """Return what an outbox holds, read-only, for `status`; an empty glance when there is none yet."""
    if not path.exists():
        return Glance()
    try:
        with closing(open_to_read(path)) as db:
            rows = dict(db.execute("select kind, count(*) from outbox group by kind"))
            (clock,) = db.execute("select max(event_clock) from accumulator").fetchone()
    except sqlite3.DatabaseError as error:
        raise Broken(f"{path}: expected an outbox, got: {error}") from error
    return Glance(rows=rows, event_clock=float(clock or 0.0))


def open_to_read(path: Path) -> sqlite3.Connection:
    """Open an outbox that nothing is to be changed of, also on a disk that takes no writes."""
    # without a journal beside it nobody has it open, and SQLite would make files only to read it
    mode = "mode=ro" if path.with_name(path.name + "-wal").exists() else "immutable=1"
    uri = f"{path.resolve().as_uri()}?{mode}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=3)


def open_frozen(path: Path, quota_bytes: int) -> tuple[sqlite3.Connection, bool]:
    """Open the outbox of a disk that refuses: to be read, as far as it can be, and to refuse whatever is written.

    False says that nothing of it could be read, if there is one: what is told then is that of an empty one.
    """
    is_read = True
    try:
        db = open_to_read(path)
        db.text_factory = lambda raw: raw.decode(errors="replace")
        _check(db)
    except (sqlite3.Error, KeyError, ValueError, TypeError, OverflowError, Damaged):
        # none yet, or nothing that could be read without a write
        is_read = False
        db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        _prepare(db, quota_bytes)
    db.execute("pragma query_only = on")
    return db, is_read


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


def _ballast(path: Path) -> Path:
    return path.with_name(f"{path.name}.ballast")


def _with_ballast(path: Path, quota_bytes: int) -> sqlite3.Connection:
    try:
        return _open(path, quota_bytes)
    except sqlite3.OperationalError as error:
        if is_damage(error):
            raise Damaged(str(error)) from error
        # on a full disk even the file of SQLite's shared memory finds no room
        free_ballast(path)
    try:
        return _open(path, quota_bytes)
    except sqlite3.OperationalError as error:
        if is_damage(error):
            raise Damaged(str(error)) from error
        raise


def _open(path: Path, quota_bytes: int) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    # a flipped bit in a text is for whoever reads that row to find, not an error of the whole query
    db.text_factory = lambda raw: raw.decode(errors="replace")
    try:
        _prepare(db, quota_bytes)
        _check(db)
    except sqlite3.OperationalError:
        db.close()
        raise
    except (sqlite3.DatabaseError, KeyError, ValueError, TypeError, OverflowError) as error:
        db.close()
        raise Damaged(f"expected a sound outbox, got: {error}") from error
    except BaseException:  # whatever ended it, the file must not stay open: it may be moved
        db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection, quota_bytes: int) -> None:
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
    db.execute("begin immediate")
    try:
        for statement in _SCHEMA.split(";"):
            db.execute(statement)
        _bring_up_to_date(db)
        db.execute("insert or ignore into meta values ('epoch', ?)", (secrets.token_hex(8),))
        marks = {"next_sequence": 1, "closing": 0, "damaged": 0, "window": 0}
        db.executemany("insert or ignore into meta values (?, ?)", [(key, str(mark)) for key, mark in marks.items()])
        db.execute("commit")
    except BaseException:  # whatever ended it, also an interrupt, must not leave the transaction open
        if db.in_transaction:
            db.execute("rollback")
        raise
    seal_rows(db)


def _bring_up_to_date(db: sqlite3.Connection) -> None:
    """Take over a file of an agent before 0.2, which had one mark of what was said, and no samples; and no seals."""
    names = {name for _, name, *_ in db.execute("pragma table_info(outbox)")}
    if "seal" not in names:
        db.execute("alter table outbox add column seal integer")
    if "said" in names:
        return
    db.execute("alter table outbox add column said integer not null default 0")
    db.execute(
        "update outbox set said = sequence <= (select cast(value as integer) from meta where key = 'published'),"
        " priority = priority + 1"
    )
    db.execute("delete from meta where key = 'published'")


def _check(db: sqlite3.Connection) -> None:
    """Raise unless the file is whole and its marks fit its rows; a body's damage is found when its turn comes."""
    (verdict,) = db.execute("pragma integrity_check(1)").fetchone()
    if verdict != "ok":
        raise Damaged(f"expected a sound outbox, got: {verdict}")
    meta = dict(db.execute("select key, value from meta"))
    (newest,) = db.execute("select coalesce(max(sequence), 0) from outbox").fetchone()
    (oldest,) = db.execute("select coalesce(min(sequence), 1) from outbox").fetchone()
    if not _EPOCH.fullmatch(meta["epoch"]) or oldest < 1 or not newest < int(meta["next_sequence"]) < 1 << 62:
        raise Damaged(f"expected numbers up to {meta['next_sequence']!r:.30} of an epoch, got {oldest} to {newest}")
    if meta["closing"] not in ("0", "1") or min(int(meta["damaged"]), int(meta["window"])) < 0:
        raise Damaged("expected marks of an outbox, got others")


def _count_rows(path: Path) -> int:
    """Return how many rows a damaged file still shows; 0 when it shows none."""
    # a name in a damaged schema may be no text either, and that is a ValueError
    with suppress(sqlite3.Error, ValueError), closing(sqlite3.connect(path, timeout=1)) as db:
        return int(db.execute("select count(*) from outbox").fetchone()[0])
    return 0


def _take_over(db: sqlite3.Connection, damaged: Path) -> None:
    with closing(sqlite3.connect(damaged, timeout=1)) as old:
        take_over_windows(db, old)
