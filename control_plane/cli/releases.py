"""`skerry release` and `skerry rollout`: what may run, and who gets it when."""

import argparse
import json
import re
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from control_plane.cli.samples import shown as samples_shown
from control_plane.cli.session import Session, read_bytes, table
from skerry.client import Client
from skerry.errors import Rejected, Unavailable

if TYPE_CHECKING:
    from control_plane.approval import Approval
    from control_plane.handed_files import Shown

# no release is named like this: names have no dot and no slash
_FILE = re.compile(r".*[./].*")


def add_verbs(nouns: Any) -> None:
    """Add the verbs of releases and rollouts."""
    verbs = nouns.add_parser("release", help="releases").add_subparsers(dest="verb", required=True, metavar="VERB")

    create = verbs.add_parser("create", help="stage the passed builds of a model version")
    create.add_argument("model")
    create.add_argument("version", type=int)
    create.set_defaults(run=_create)

    sign = verbs.add_parser("sign", help="approve a staged release or revocation with offline targets keys")
    sign.add_argument("release", metavar="RELEASE|FILE", help="a file of `release export` is signed without a network")
    sign.add_argument("--keys", required=True, type=Path, metavar="FOLDER")
    sign.set_defaults(run=_sign)

    export = verbs.add_parser("export", help="write what waits for signatures to a file, to be signed elsewhere")
    export.add_argument("release")
    export.add_argument("--out", required=True, type=Path, metavar="FILE")
    export.set_defaults(run=_export)

    import_ = verbs.add_parser("import", help="hand in the signatures of a file that was exported and signed")
    import_.add_argument("file", type=Path)
    import_.set_defaults(run=_import)

    revoke = verbs.add_parser("revoke", help="stage a revocation: nothing goes back to this release any more")
    revoke.add_argument("release")
    revoke.add_argument("--keys", type=Path, metavar="FOLDER", help="sign it at once")
    revoke.set_defaults(run=_revoke)

    show = verbs.add_parser("show", help="a release, or what a file of `release export` would change")
    show.add_argument("release", metavar="RELEASE|FILE")
    document = show.add_mutually_exclusive_group()
    document.add_argument("--bom", metavar="PROFILE", help="the ML bill of materials (CycloneDX) of a build")
    document.add_argument("--provenance", metavar="PROFILE", help="what a build was made from (in-toto, SLSA)")
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
    session.show(release, _standing(release))


def _sign(options: argparse.Namespace, session: Session) -> None:
    if _FILE.fullmatch(options.release):
        _sign_file(Path(options.release), options.keys, session)
        return
    with session.client() as client:
        _sign_online(client, options.release, options.keys, session)


def _sign_file(path: Path, keys: Path, session: Session) -> None:
    from control_plane import approval, handed_files
    from skerry.delivery.durable import write_durably

    waiting = approval.read(read_bytes(path, limit=handed_files.MAX_BYTES), str(path))
    shown = approval.show(waiting, keys)
    signed = approval.sign(waiting, keys, passphrase=session.passphrase(keys))
    write_durably(path, approval.write(signed))
    given = len(signed.signatures)
    done = f"{path}: {given} of {signed.threshold} signatures"
    enough = given >= signed.threshold
    step = "hand it in: skerry release import FILE" if enough else "the next holder signs the same file"
    answer = {"file": str(path), "changes": list(shown.lines), "checked": shown.checked, "signatures": given}
    session.show(answer, f"{_shown(signed, shown)}\n{done}; {step}")


def _sign_online(client: Client, name: str, keys: Path, session: Session) -> None:
    from control_plane import approval
    from skerry.wire.codec import from_tree

    waiting = from_tree(approval.Approval, client.release_approval(name))
    shown = approval.show(waiting, keys)
    signed = approval.sign(waiting, keys, passphrase=session.passphrase(keys))
    release = _hand_in(client, signed, given_before={each.keyid for each in waiting.signatures})
    session.show(release, f"{_shown(signed, shown)}\n{_standing(release)}")


def _hand_in(client: Client, signed: "Approval", *, given_before: Collection[str] = ()) -> dict[str, Any]:
    release = client.release(signed.name)
    for each in signed.signatures:
        # the one that met the threshold was the last that could be given
        if each.keyid not in given_before and release["waits"]:
            release = client.add_signature(signed.name, keyid=each.keyid, sig=each.sig)
    return release


def _export(options: argparse.Namespace, session: Session) -> None:
    from control_plane import approval
    from skerry.delivery.durable import write_durably
    from skerry.wire.codec import from_tree

    with session.client() as client:
        waiting = from_tree(approval.Approval, client.release_approval(options.release))
    write_durably(options.out, approval.write(waiting))
    step = f"skerry release sign {options.out} --keys FOLDER, then skerry release import {options.out}"
    changes = "\n".join(f"  {line}" for line in waiting.publishes)
    text = f"{waiting.kind} {waiting.name} is in {options.out}; next: {step}\n{changes}"
    session.show({"file": str(options.out), "kind": waiting.kind, "changes": list(waiting.publishes)}, text)


def _import(options: argparse.Namespace, session: Session) -> None:
    from control_plane import approval, handed_files

    signed = approval.read(read_bytes(options.file, limit=handed_files.MAX_BYTES), str(options.file))
    payload = approval.payload_of(signed)
    if not signed.signatures:
        raise Rejected(f"{options.file}: expected signatures, got none; first: skerry release sign FILE --keys FOLDER")
    if signed.kind not in ("release", "revocation"):
        raise Rejected(
            f"{options.file}: expected a release or a revocation, got a {signed.kind}: skerry keys submit FILE"
        )
    with session.client() as client:
        release = client.release(signed.name)
        if release["waits"] != signed.kind:
            state = f"waits for a {release['waits']}" if release["waits"] else f"is {release['state']}"
            raise Rejected(f"{options.file}: expected {signed.name} to wait for a {signed.kind}, but it {state}")
        if client.release_payload(signed.name) != payload:
            raise Rejected(
                f"{options.file}: expected what {signed.name} waits for now, got what another change has overtaken; "
                "export and sign it again"
            )
        release = _hand_in(client, signed)
    session.show(release, _standing(release))


def _revoke(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        release = client.revoke_release(options.release)
        if options.keys and release["waits"]:
            _sign_online(client, options.release, options.keys, session)
            return
    session.show(release, _standing(release))


def _show_release(options: argparse.Namespace, session: Session) -> None:
    if _FILE.fullmatch(options.release):
        from control_plane import approval, handed_files

        path = Path(options.release)
        waiting = approval.read(read_bytes(path, limit=handed_files.MAX_BYTES), str(path))
        shown = approval.show(waiting)
        session.show({"changes": list(shown.lines), "signatures": len(waiting.signatures)}, _shown(waiting, shown))
        return
    kind, profile = ("bom", options.bom) if options.bom else ("provenance", options.provenance)
    with session.client() as client:
        if profile:
            document = client.release_document(options.release, profile=profile, kind=kind)
            session.show(document, json.dumps(document, indent=2, sort_keys=True))
            return
        release = client.release(options.release)
    samples = [f"{profile}: may send {samples_shown(each)}" for profile, each in sorted(release["samples"].items())]
    session.show(release, "\n".join([_standing(release), *samples, *_choices(release)]))


def _shown(waiting: "Approval", shown: "Shown") -> str:
    head = f"{waiting.kind} {waiting.name} of project {waiting.project}"
    doubt = (
        ""
        if shown.checked
        else (
            "\nwhat is published now could not be checked with the root keys at hand: all that will be listed is shown"
        )
    )
    return "\n".join([head + doubt, *(f"  {line}" for line in shown.lines)])


def _standing(release: dict[str, Any]) -> str:
    text = f"{release['name']}: {release['state']}"
    if release["profiles"]:
        text += f", for {', '.join(release['profiles'])}"
    if release["role"] != "targets":
        text += f", signed online by {release['role']}"
    if not release["waits"]:
        return text
    signed = f"its {release['waits']} has {len(release['signatures'])} of {release['threshold']} signatures"
    return f"{text}; {signed}: skerry release sign {release['name']} --keys FOLDER"


def _list(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        releases = client.releases()
    columns = ("name", "model", "version", "state", "created_at")
    session.show(releases, table(releases, columns, empty="no releases yet: skerry release create MODEL VERSION"))


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
