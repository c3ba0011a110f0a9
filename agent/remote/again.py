"""Finds one closed window among the outbox's rows, for an operator who asks for it once more."""

import sqlite3
import zlib
from base64 import b64encode

from skerry.errors import Rejected
from skerry.wire.messages import Entry
from skerry.wire.report import WindowReport, decode_report

_COLUMNS = "sequence, kind, event_time, crc, body"


def find_window(db: sqlite3.Connection, *, sequence: int | None, number: int | None, manifest: str) -> Entry | None:
    """Return the window with that sequence number, or the newest with that number of that manifest, and mark it said.

    `manifest` is the start of a manifest's SHA-256; empty for any. None when the window is no longer there, or damaged.
    To be called within a transaction of the outbox.
    """
    where, values = ("sequence = ?", (sequence,)) if sequence is not None else ("1", ())
    rows = db.execute(
        f"select {_COLUMNS} from outbox where kind = 'window' and {where} order by sequence desc",  # noqa: S608 -- constants
        values,
    )
    for row in rows:
        report = _read(row[4], crc=row[3])
        if report is None or (number is not None and report.window != number):
            continue
        # sixteen digits are all that a report has of it
        if not report.manifest.startswith(manifest[:16]):
            continue
        # from here on it may be known by its number: no gap record may take its place
        db.execute("update outbox set said = 1 where sequence = ?", (row[0],))
        return Entry(sequence=row[0], kind="window", event_time=row[2], crc=row[3], body=b64encode(row[4]).decode())
    return None


def _read(body: object, *, crc: int) -> WindowReport | None:
    if not isinstance(body, bytes) or zlib.crc32(body) != crc:
        return None
    try:
        return decode_report(body)
    except Rejected:
        return None
