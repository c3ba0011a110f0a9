"""`skerry device request` and `skerry device requests`: ask one device for something, and see what it answered."""

import argparse
import time
from collections.abc import Mapping
from typing import Any

from control_plane.cli.session import Session, cell, read_pairs, table
from skerry.client import Client
from skerry.errors import Rejected, Unavailable
from skerry.wire.requests import COLLECT_LOGS, SELF_TEST, VERBS, unpack_text

POLL_S = 0.3
COLUMNS = ("id", "verb", "state", "asked_at", "asked_by", "reason")


def add_verbs(verbs: Any) -> None:
    """Add them to the verbs of `skerry device`."""
    ask = verbs.add_parser("request", help="ask a device for its logs, a self-test, a restart, or a window")
    ask.add_argument("device")
    ask.add_argument("what", metavar="VERB", choices=VERBS, help=", ".join(VERBS))
    ask.add_argument(
        "--arg",
        dest="pairs",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="collect-logs: lines=N; restart-model: component=NAME; "
        "resend-window: sequence=N or number=N, and manifest=HEX",
    )
    ask.add_argument("--expires", type=int, default=3600, metavar="SECONDS", help="after which it is not done any more")
    ask.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="for the answer")
    ask.set_defaults(run=_ask)

    listing = verbs.add_parser("requests", help="what a device was asked, and what came of it")
    listing.add_argument("device")
    listing.add_argument("id", nargs="?", default="", help="one of them, with its result")
    listing.set_defaults(run=_list)


def _ask(options: argparse.Namespace, session: Session) -> None:
    args = read_pairs(options.pairs)
    with session.client() as client:
        asked = client.ask_device(options.device, options.what, args=args, expires_s=options.expires)
        if not options.wait:
            session.show(asked, f"{asked['id']}: {options.device} is asked, until {asked['expires'][:19]} UTC")
            return
        answered = _wait(client, asked, timeout_s=options.wait)
    if answered["state"] != "done":
        raise Rejected(
            f"{options.device}: expected {options.what} to be done, got: {answered['reason'] or 'no answer'}"
        )
    session.show(answered, show(answered))


def _wait(client: Client, asked: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    while True:
        request = client.device_request(asked["device"], asked["id"])
        if request["state"] != "waiting":
            return request
        if time.monotonic() >= deadline:
            raise Unavailable(
                f"{asked['device']}: expected an answer within {timeout_s:g} s, got none yet; look with: "
                f"skerry device requests {asked['device']} {asked['id']}"
            )
        time.sleep(POLL_S)


def _list(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        if options.id:
            request = client.device_request(options.device, options.id)
            session.show(request, show(request))
            return
        requests = client.device_requests(options.device)
    shown = [{**each, "asked_at": each["asked_at"][:19]} for each in requests]
    session.show(requests, table(shown, COLUMNS, empty=f"nothing was asked of {options.device} yet"))


def show(request: Mapping[str, Any]) -> str:
    """Return a request and its result as text."""
    late = ", after its time" if request["late"] else ""
    reason = f": {request['reason']}" if request["reason"] else ""
    line = f"{request['id']} {request['verb']} of {request['asked_by']}: {request['state']}{late}{reason}"
    return f"{line}\n{_result(request['verb'], request['result'])}".rstrip()


def _result(verb: str, result: Mapping[str, Any]) -> str:
    if verb == COLLECT_LOGS and ("text" in result or "zlib" in result):
        return unpack_text(result)
    checks = result.get("checks")
    if verb == SELF_TEST and isinstance(checks, list):
        rows = [each for each in checks if isinstance(each, dict)]
        return table(rows, ("check", "ok", "detail"), empty="no checks")
    return "\n".join(f"{key:20} {cell(value)}" for key, value in sorted(result.items()) if key != "reason")
