"""`skerry release` and `skerry rollout`: what may run, and who gets it when."""

import argparse
import time
from pathlib import Path
from typing import Any

from control_plane.cli.session import Session, table
from skerry.errors import Rejected, Unavailable


def add_verbs(nouns: Any) -> None:
    """Add the verbs of releases and rollouts."""
    verbs = nouns.add_parser("release", help="releases").add_subparsers(dest="verb", required=True, metavar="VERB")

    create = verbs.add_parser("create", help="stage the passed builds of a model version")
    create.add_argument("model")
    create.add_argument("version", type=int)
    create.set_defaults(run=_create)

    sign = verbs.add_parser("sign", help="approve a staged release with the offline targets keys")
    sign.add_argument("release")
    sign.add_argument("--keys", required=True, type=Path, metavar="FOLDER")
    sign.set_defaults(run=_sign)

    show = verbs.add_parser("show", help="a release, and the builds that its first devices chose")
    show.add_argument("release")
    show.set_defaults(run=_show_release)

    verbs.add_parser("list", help="all releases").set_defaults(run=_list)

    verbs = nouns.add_parser("rollout", help="rollouts").add_subparsers(dest="verb", required=True, metavar="VERB")

    start = verbs.add_parser("create", help="move the fleet to a release, wave by wave")
    start.add_argument("release")
    start.add_argument(
        "--wave",
        action="append",
        required=True,
        dest="waves",
        metavar="NAME=WHO",
        help="WHO: device names with commas, a share such as 25%%, or rest; in order",
    )
    start.set_defaults(run=_start)

    show = verbs.add_parser("show", help="a rollout with its waves and deployments")
    show.add_argument("rollout", type=int)
    show.set_defaults(run=_show)

    wait = verbs.add_parser("wait", help="follow a rollout to its end")
    wait.add_argument("rollout", type=int)
    wait.add_argument("--timeout", type=float, default=3600.0, metavar="SECONDS")
    wait.set_defaults(run=_wait)

    cancel = verbs.add_parser("cancel", help="assign no further device")
    cancel.add_argument("rollout", type=int)
    cancel.set_defaults(run=_cancel)

    verbs.add_parser("list", help="all rollouts").set_defaults(run=_rollouts)


def _create(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        release = client.create_release(options.model, options.version)
    session.show(release, f"staged {release['name']}; approve it: skerry release sign {release['name']} --keys FOLDER")


def _sign(options: argparse.Namespace, session: Session) -> None:
    from control_plane.keys import sign_payload

    with session.client() as client:
        payload = client.release_payload(options.release)
        release = client.release(options.release)
        for signature in sign_payload(options.keys, payload, passphrase=session.key_passphrase or None):
            release = client.add_signature(options.release, keyid=signature["keyid"], sig=signature["sig"])
    session.show(release, f"{release['name']}: {release['state']}")


def _list(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        releases = client.releases()
    columns = ("name", "model", "version", "state", "created_at")
    session.show(releases, table(releases, columns, empty="no releases yet: skerry release create MODEL VERSION"))


def _show_release(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        release = client.release(options.release)
    signed = (
        f"{len(release['signatures'])} of {release['threshold']} signatures" if release["state"] == "staged" else ""
    )
    head = f"{release['name']}: {release['state']} {signed}".rstrip() + f"\nprofiles: {', '.join(release['profiles'])}"
    session.show(release, "\n".join([head, *_choices(release)]))


def _choices(shown: dict[str, Any]) -> list[str]:
    """Return a line for each profile whose first devices chose between two builds."""
    return [
        f"{profile}: {choice['reason']}" + (f" [{', '.join(choice['devices'])}]" if choice["devices"] else "")
        for profile, choice in sorted(shown["choices"].items())
    ]


def parse_wave(text: str) -> dict[str, Any]:
    """Parse `NAME=WHO` into the API's wave; raises `Rejected`."""
    name, equals, who = text.partition("=")
    if not (name and equals and who):
        raise Rejected(f"--wave: expected NAME=WHO such as canary=25%, got {text!r}")
    if who == "rest":
        return {"name": name, "rest": True}
    if who.endswith("%"):
        try:
            share = float(who[:-1]) / 100
        except ValueError:
            share = -1.0
        if not 0 < share <= 1:
            raise Rejected(f"--wave: expected a share above 0% and at most 100%, got {who!r}")
        return {"name": name, "share": share}
    return {"name": name, "devices": [device for device in who.split(",") if device]}


def _start(options: argparse.Namespace, session: Session) -> None:
    waves = [parse_wave(wave) for wave in options.waves]
    with session.client() as client:
        rollout = client.create_rollout(options.release, waves)
    session.show(rollout, f"rollout {rollout['id']} of {options.release} is {rollout['state']}")


def _show(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        rollout = client.rollout(options.rollout)
    session.show(rollout, _deployments(rollout))


def _wait(options: argparse.Namespace, session: Session) -> None:
    deadline = time.monotonic() + options.timeout
    with session.client() as client:
        rollout = client.rollout(options.rollout)
        while rollout["state"] == "running" and time.monotonic() < deadline:
            time.sleep(0.3)
            rollout = client.rollout(options.rollout)
    session.show(rollout, _deployments(rollout))
    if rollout["state"] == "running":
        raise Unavailable(f"rollout {options.rollout}: expected its end within {options.timeout:g} s, it is running")
    if rollout["state"] != "done":
        raise Rejected(f"rollout {options.rollout}: expected done, got {rollout['state']}: {rollout['reason']}")


def _cancel(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        rollout = client.cancel_rollout(options.rollout)
    session.show(rollout, f"rollout {options.rollout}: {rollout['state']}")


def _rollouts(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        rollouts = client.rollouts()
    columns = ("id", "release", "state", "reason", "created_at")
    session.show(rollouts, table(rollouts, columns, empty="no rollouts yet: skerry rollout create RELEASE --wave ..."))


def _deployments(rollout: dict[str, Any]) -> str:
    head = f"rollout {rollout['id']} of {rollout['release']}: {rollout['state']} {rollout['reason']}".rstrip()
    names = {wave["number"]: f"{wave['number']} {wave['name']} ({wave['state']})" for wave in rollout["waves"]}
    rows = [
        {**deployment, "wave": names.get(deployment["wave"], deployment["wave"])}
        for deployment in rollout["deployments"]
    ]
    head = "\n".join([head, *_choices(rollout)])
    return head + "\n" + table(rows, ("wave", "device", "state", "bytes_received", "reason"), empty="no device")
