"""`skerry agent`: versions of the agent itself, which are released and rolled out as models are."""

import argparse
import io
import zipfile
from pathlib import Path
from typing import Any

from control_plane.cli.session import Session, read_bytes


def add_verbs(nouns: Any) -> None:
    """Add the verbs of the agent's versions."""
    verbs = nouns.add_parser("agent", help="versions of the agent itself").add_subparsers(
        dest="verb", required=True, metavar="VERB"
    )
    add = verbs.add_parser("add", help="keep wheels as the next version: skerry's own, and what it needs anew")
    add.add_argument("wheels", nargs="+", type=Path, metavar="WHEEL")
    add.add_argument("--profile", action="append", required=True, dest="profiles", metavar="PROFILE")
    add.add_argument("--version", type=int, default=0, metavar="N", help="add them for more profiles of that version")
    add.set_defaults(run=_add)


def _add(options: argparse.Namespace, session: Session) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for wheel in options.wheels:
            archive.writestr(wheel.name, read_bytes(wheel, limit=256 << 20))
    with session.client() as client:
        added = client.add_agent_version(packed.getvalue(), profiles=options.profiles, version=options.version)
    session.show(added, f"agent version {added['version']}; next: skerry release create agent {added['version']}")
