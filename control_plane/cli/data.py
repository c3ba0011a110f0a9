"""`skerry data`: what models learn from, and what gates them."""

import argparse
from pathlib import Path
from typing import Any

from control_plane.cli.session import Session, read_bytes, table


def add_verbs(nouns: Any) -> None:
    """Add the verbs of data sets."""
    verbs = nouns.add_parser("data", help="data sets").add_subparsers(dest="verb", required=True, metavar="VERB")

    add = verbs.add_parser("add", help="add a part (.npz: X, y, group, labels) to a data set")
    add.add_argument("dataset")
    add.add_argument("file", type=Path)
    add.add_argument("--role", choices=("train", "gate"), default="train", help="gate: labelled windows, never learnt")
    add.set_defaults(run=_add)

    listing = verbs.add_parser("list", help="all data sets and their parts")
    listing.set_defaults(run=_list)


def _add(options: argparse.Namespace, session: Session) -> None:
    npz = read_bytes(options.file)
    with session.client() as client:
        part = client.add_data(options.dataset, npz, role=options.role)
    session.show(part, f"{options.dataset}: {part['rows']} rows to {options.role} (sha256 {part['sha256'][:16]})")


def _list(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        parts = client.datasets()
    columns = ("dataset", "role", "rows", "sha256", "added_at")
    session.show(parts, table(parts, columns, empty="no data yet: skerry data add NAME FILE.npz"))
