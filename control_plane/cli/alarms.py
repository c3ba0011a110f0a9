"""`skerry alarm`: what about devices a person must see to."""

import argparse
from typing import Any

from control_plane.cli.session import Session, table


def add_verbs(nouns: Any) -> None:
    """Add the verbs of alarms."""
    verbs = nouns.add_parser("alarm", help="alarms of devices").add_subparsers(
        dest="verb", required=True, metavar="VERB"
    )
    listing = verbs.add_parser("list", help="those that stand, newest first")
    listing.add_argument("--device", default="", help="of this device alone")
    listing.add_argument("--all", dest="every", action="store_true", help="those too that were cleared")
    listing.set_defaults(run=_list)

    acknowledge = verbs.add_parser("acknowledge", help="clear one that was seen to; what goes on raises it again")
    acknowledge.add_argument("number", type=int, metavar="ID")
    acknowledge.set_defaults(run=_acknowledge)


def _list(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        alarms = client.alarms(device=options.device, cleared=options.every)
    shown = [{**each, "raised_at": each["raised_at"][:19], "cleared": each["cleared"] or "stands"} for each in alarms]
    columns = ("id", "raised_at", "device", "kind", *(("cleared",) if options.every else ()), "text")
    session.show(alarms, table(shown, columns, empty="no alarms of devices"))


def _acknowledge(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        alarm = client.acknowledge_alarm(options.number)
    session.show(alarm, f"alarm {alarm['id']} of {alarm['device']} is cleared: {alarm['cleared']}")
