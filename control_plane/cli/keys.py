"""`skerry keys`: the offline ceremony, on the operator's machine."""

import argparse
from pathlib import Path
from typing import Any

from control_plane.cli.session import Session, table
from skerry.errors import Rejected


def add_verbs(nouns: Any) -> None:
    """Add the verbs of keys."""
    verbs = nouns.add_parser("keys", help="signing keys").add_subparsers(dest="verb", required=True, metavar="VERB")

    init = verbs.add_parser("init", help="make the offline keys and found both repositories")
    init.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="keep it off the server, and backed up")
    init.add_argument("--keys", type=int, default=3, help="keys of each offline role")
    init.add_argument("--threshold", type=int, default=2, help="signatures that an offline role needs")
    init.set_defaults(run=_init)

    verbs.add_parser("status", help="versions and expiry of the metadata").set_defaults(run=_status)


def _init(options: argparse.Namespace, session: Session) -> None:
    from control_plane.keys import hold_ceremony

    with session.client() as client:
        # before keys are made that would sign nothing
        if client.health()["ceremony"]:
            raise Rejected("ceremony: expected none before, got one already; sign with the keys that it made")
        metadata = hold_ceremony(
            options.out,
            client.online_keys(),
            keys=options.keys,
            threshold=options.threshold,
            passphrase=session.key_passphrase or None,
        )
        anchor = client.init_trust(**metadata)
    session.show(anchor, f"offline keys in {options.out}; anchor sha256 {anchor['anchor_sha256']}")


def _status(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        trust = client.trust()
    session.show(trust, table(trust["roles"], ("repository", "role", "version", "expires"), empty="no ceremony yet"))
