"""`skerry bundle`: a release for a device without a network, as one file for a stick."""

import argparse
from pathlib import Path
from typing import Any

from control_plane.cli.session import Session, read_text
from skerry.delivery.durable import write_durably
from skerry.errors import Rejected


def add_verbs(nouns: Any) -> None:
    """Add the verbs of offline bundles."""
    verbs = nouns.add_parser("bundle", help="offline installs").add_subparsers(
        dest="verb", required=True, metavar="VERB"
    )
    create = verbs.add_parser("create", help="write what installs a release on one device to a file")
    create.add_argument("--device", required=True)
    create.add_argument("--release", required=True)
    create.add_argument("--out", required=True, type=Path, metavar="FILE")
    create.add_argument(
        "--request", type=Path, metavar="FILE", help="of a device's first install: what skerry-agent request wrote"
    )
    create.add_argument("--days", type=int, default=14, help="how long it can be installed (%(default)s)")
    create.set_defaults(run=_create)


def _create(options: argparse.Namespace, session: Session) -> None:
    out: Path = options.out
    if not out.absolute().parent.is_dir():
        # before anything is assigned
        raise Rejected(f"{out}: expected a file in a folder that exists, got no {out.absolute().parent}")
    request = read_text(options.request) if options.request else ""
    with session.client() as client:
        data = client.create_bundle(options.device, options.release, request=request, days=options.days)
    # what is in it is sealed or signed, and for one device: it needs no secrecy of its own
    write_durably(out, data)
    answer = {"device": options.device, "release": options.release, "file": str(out), "size_bytes": len(data)}
    session.show(answer, f"{out}: {options.release} for {options.device}; on the device: skerry-agent install FILE")
