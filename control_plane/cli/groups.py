"""`skerry group`: the rules of device groups."""

import argparse
from typing import Any

from control_plane.cli.fleet import CONFIGURED
from control_plane.cli.session import Session, read_pairs, table
from skerry.errors import Rejected

COLUMNS = ("name", "devices", "approve", "refuse_automatic")


def add_verbs(nouns: Any) -> None:
    """Add the verbs of groups."""
    verbs = nouns.add_parser("group", help="rules of groups").add_subparsers(dest="verb", required=True, metavar="VERB")

    rules = verbs.add_parser("set", help="set rules of a group")
    rules.add_argument("group")
    rules.add_argument("--approve", choices=("automatic", "pending"), help="whether a claim waits for an operator")
    online = rules.add_mutually_exclusive_group()
    online.add_argument(
        "--refuse-automatic",
        dest="refuse_automatic",
        action="store_true",
        default=None,
        help="its devices run no release that is signed online alone, from their next renewal on, for good",
    )
    online.add_argument(
        "--accept-automatic", dest="refuse_automatic", action="store_false", help="devices that enrol later accept them"
    )
    rules.set_defaults(run=_set)

    configure = verbs.add_parser("configure", help="what the devices of a group keep to when they fetch")
    configure.add_argument("group")
    configure.add_argument("pairs", nargs="+", metavar="KEY=VALUE", help=CONFIGURED)
    configure.set_defaults(run=_configure)

    verbs.add_parser("list", help="all groups").set_defaults(run=_list)


def _set(options: argparse.Namespace, session: Session) -> None:
    if options.approve is None and options.refuse_automatic is None:
        raise Rejected("group set: expected --approve, --refuse-automatic or --accept-automatic, got none of them")
    with session.client() as client:
        group = client.set_group(options.group, approve=options.approve, refuse_automatic=options.refuse_automatic)
    session.show(group, "\n".join(f"{key:17} {value}" for key, value in group.items()))


def _configure(options: argparse.Namespace, session: Session) -> None:
    pairs = read_pairs(options.pairs)
    with session.client() as client:
        answer = client.configure_group(options.group, pairs)
    config = " ".join(f"{key}={value}" for key, value in sorted(answer["config"].items())) or "nothing set"
    session.show(answer, f"group {answer['name']}: {config}; {answer['told']} devices are told")


def _list(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        groups = client.groups()
    session.show(groups, table(groups, COLUMNS, empty="no devices and no rules yet"))
