"""`skerry buffer`: look into the outbox of a device, from a copy of its file, and export what it holds.

sqlite-utils reads it, and nothing is written. Copy the file with its `-wal`, or from an agent that has stopped.
"""

import argparse
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from control_plane.cli.session import Session, table
from skerry.errors import Rejected
from skerry.wire.report import decode_report


def add_verbs(nouns: Any) -> None:
    """Add the verbs of buffers."""
    verbs = nouns.add_parser("buffer", help="a device's outbox file").add_subparsers(
        dest="verb", required=True, metavar="VERB"
    )
    show = verbs.add_parser("show", help="what waits in it, by kind")
    show.add_argument("file", type=Path)
    show.set_defaults(run=_show)

    export = verbs.add_parser("export", help="print every entry as a line of JSON")
    export.add_argument("file", type=Path)
    export.set_defaults(run=_export)


def _show(options: argparse.Namespace, session: Session) -> None:
    rows = list(
        _query(
            options.file,
            "select kind, count(*) as entries, sum(length(body)) as bytes, min(sequence) as first,"
            " max(sequence) as last from outbox group by kind order by kind",
        )
    )
    session.show(rows, table(rows, ("kind", "entries", "bytes", "first", "last"), empty="nothing waits"))


def _export(options: argparse.Namespace, session: Session) -> None:
    for row in _query(options.file, "select sequence, kind, event_time, crc, body from outbox order by sequence"):
        print(json.dumps(_entry(row), sort_keys=True))


def _entry(row: dict[str, Any]) -> dict[str, Any]:
    body: bytes = row.pop("body")
    if zlib.crc32(body) != row["crc"]:
        return {**row, "damaged": True}
    try:
        content = asdict(decode_report(body)) if row["kind"] == "window" else json.loads(body)
    except (Rejected, ValueError):
        return {**row, "unreadable": body.hex()}
    return {**row, "content": content}


def _query(file: Path, sql: str) -> Iterator[dict[str, Any]]:
    import sqlite3

    from sqlite_utils import Database

    if not file.is_file():
        raise Rejected(f"{file}: expected a device's outbox file, got none; it is outbox.db in the state folder")
    try:
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
            yield from Database(connection).query(sql)
    except sqlite3.DatabaseError as error:
        raise Rejected(f"{file}: expected a device's outbox file, got: {error}") from error
