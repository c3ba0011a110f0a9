"""`skerry keys rotate|renew|grant|withdraw`: what offline keys sign after the ceremony, and how a file of it travels.

With the folders of enough keys (`--keys`) all is done at once. With `--file` it is written to be signed elsewhere, also
on machines without a network (`sign`), and handed in (`submit`).
"""

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from control_plane.cli.session import Session, read_bytes
from skerry.client import Client
from skerry.errors import Broken, Rejected

if TYPE_CHECKING:
    from control_plane.approval import Approval
    from control_plane.next_roots import RootsFile

_KEYS_HELP = "a folder of keys that sign; may be given several times"
_FILE_HELP = "write what is to be signed there, for `skerry keys sign` and `submit`"
_UNCHECKED = "not checked against a root that your keys signed: read all of it"


def add_verbs(verbs: Any) -> None:
    """Add the verbs to those of keys."""
    rotate = verbs.add_parser("rotate", help="replace the keys of a role, offline or online")
    rotate.add_argument("role", choices=("root", "targets", "snapshot", "timestamp", "director"))
    add_out(rotate, "of the new keys of root or targets", required=False)
    rotate.add_argument("--count", type=int, help="new keys of root or targets (default: as many as now)")
    rotate.add_argument("--threshold", type=int, help="signatures that the role will need (default: as many as now)")
    _add_signing(rotate)
    rotate.set_defaults(run=_rotate)

    renew = verbs.add_parser("renew", help="put off the expiry of what the offline keys sign")
    renew.add_argument("role", choices=("root", "targets"))
    _add_signing(renew)
    renew.set_defaults(run=_renew)

    grant = verbs.add_parser("grant", help="let the server sign the releases of one model, for a time")
    grant.add_argument("model")
    grant.add_argument("--days", type=int, default=30, help="when it ends (default: in %(default)s days)")
    _add_signing(grant)
    grant.set_defaults(run=_grant)

    withdraw = verbs.add_parser("withdraw", help="end the grant of a model")
    withdraw.add_argument("model")
    _add_signing(withdraw)
    withdraw.set_defaults(run=_withdraw)

    sign = verbs.add_parser("sign", help="sign a file of rotate, renew, grant or withdraw; needs no network")
    sign.add_argument("file", type=Path)
    sign.add_argument("--keys", required=True, type=Path, action="append", metavar="FOLDER", help=_KEYS_HELP)
    sign.set_defaults(run=_sign)

    submit = verbs.add_parser("submit", help="hand in a signed file")
    submit.add_argument("file", type=Path)
    submit.set_defaults(run=_submit)


def add_out(verb: argparse.ArgumentParser, help_: str, *, required: bool = True) -> None:
    """Add the folders of keys that are made."""
    verb.add_argument("--out", required=required, type=Path, action="append", default=[], metavar="FOLDER", help=help_)


def _add_signing(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--keys", type=Path, action="append", default=[], metavar="FOLDER", help=_KEYS_HELP)
    verb.add_argument("--file", type=Path, help=_FILE_HELP)


def _rotate(options: argparse.Namespace, session: Session) -> None:
    from control_plane import next_roots
    from control_plane.key_files import parse_key

    with session.client() as client:
        present = client.trust_roots()
        if options.role in ("root", "targets"):
            threshold, keys = _new_keys(options, session, present)
        else:
            if options.out or options.count or options.threshold:
                raise Rejected(f"--out: expected none for {options.role}: its key is the server's, which makes it")
            public = client.next_online_key(options.role)
            threshold, keys = 1, [parse_key(public["keyid"], public)]
        now = datetime.now(UTC)
        file = next_roots.rotate(present["project"], present, options.role, keys=keys, threshold=threshold, now=now)
        _sign_roots_and_submit(file, [*options.out, *options.keys], options.file, session, client)


def _new_keys(options: argparse.Namespace, session: Session, present: dict[str, Any]) -> tuple[int, list[Any]]:
    """Make the new keys of an offline role, or take those that `--out` lists already."""
    from tuf.api.metadata import Metadata

    from control_plane.key_files import holds_keys
    from control_plane.keys import check_threshold, deal_keys, held_keys

    if not options.out:
        raise Rejected(f"--out: expected a folder for the new {options.role} keys, got none")
    now = Metadata.from_bytes(present["image_root"].encode()).signed.roles[options.role]
    count = options.count or len(now.keyids)
    threshold = options.threshold or now.threshold
    check_threshold(count, threshold)
    if not any(holds_keys(folder) for folder in options.out):
        secrets = {folder: secret for folder in options.out if (secret := session.new_passphrase(folder))}
        deal_keys(options.out, [options.role], keys=count, threshold=threshold, passphrase=secrets)
    return threshold, held_keys(options.out, options.role, keys=count, threshold=threshold)


def _renew(options: argparse.Namespace, session: Session) -> None:
    from control_plane import next_roots

    with session.client() as client:
        if options.role == "targets":
            _sign_staged_and_submit(client.renew_targets(), options, session, client)
            return
        present = client.trust_roots()
        file = next_roots.renew(present["project"], present, now=datetime.now(UTC))
        _sign_roots_and_submit(file, options.keys, options.file, session, client)


def _grant(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        _sign_staged_and_submit(client.grant(options.model, days=options.days), options, session, client)


def _withdraw(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        _sign_staged_and_submit(client.withdraw_grant(options.model), options, session, client)


def _sign(options: argparse.Namespace, session: Session) -> None:
    from control_plane import approval, handed_files, next_roots

    data = read_bytes(options.file, limit=handed_files.MAX_BYTES)
    if _is_roots(data):
        file = next_roots.read(data, str(options.file))
        lines = _show_roots(file, options.keys)
        for folder in options.keys:
            file = next_roots.sign(file, folder, passphrase=session.passphrase(folder))
        missing = next_roots.missing(file)
        signed = next_roots.write(file)
    else:
        waiting = approval.read(data, str(options.file))
        lines = _show_staged(waiting, options.keys)
        for folder in options.keys:
            waiting = approval.sign(waiting, folder, passphrase=session.passphrase(folder))
        missing = _missing(waiting)
        signed = approval.write(waiting)
    _write(options.file, signed)
    step = f"next: skerry keys submit {options.file}" if not missing else "the next holder signs the same file"
    answer = {"file": str(options.file), "changes": lines, "missing": missing}
    session.show(answer, "\n".join([*lines, *(f"missing: {each}" for each in missing), step]))


def _submit(options: argparse.Namespace, session: Session) -> None:
    from control_plane import approval, handed_files, next_roots

    data = read_bytes(options.file, limit=handed_files.MAX_BYTES)
    with session.client() as client:
        if _is_roots(data):
            _submit_roots(next_roots.read(data, str(options.file)), [], session, client)
        else:
            _submit_staged(approval.read(data, str(options.file)), [], session, client)


def _sign_roots_and_submit(
    file: "RootsFile", folders: list[Path], to: Path | None, session: Session, client: Client
) -> None:
    from control_plane import next_roots

    lines = _show_roots(file, folders)
    for folder in folders:
        file = next_roots.sign(file, folder, passphrase=session.passphrase(folder))
    missing = next_roots.missing(file)
    if to is not None:
        _hand_out(to, next_roots.write(file), lines, missing, session)
    elif missing:
        raise Rejected(f"{missing[0]}: expected enough; give more --keys, or --file to have others sign")
    else:
        _submit_roots(file, lines, session, client)


def _submit_roots(file: "RootsFile", lines: list[str], session: Session, client: Client) -> None:
    followed = client.follow_roots(**file.next)
    new = [f"{name.replace('_', ' ')} {version} is followed" for name, version in followed.items() if version]
    session.show(followed, "\n".join([*lines, *(new or ["nothing new: the server follows these roots already"])]))


def _sign_staged_and_submit(
    staged: dict[str, Any], options: argparse.Namespace, session: Session, client: Client
) -> None:
    from control_plane import approval
    from skerry.wire.codec import from_tree

    waiting = from_tree(approval.Approval, staged)
    lines = _show_staged(waiting, options.keys)
    for folder in options.keys:
        waiting = approval.sign(waiting, folder, passphrase=session.passphrase(folder))
    missing = _missing(waiting)
    if options.file is not None:
        _hand_out(options.file, approval.write(waiting), lines, missing, session)
    elif missing:
        raise Rejected(f"{missing[0]}: expected enough; give more --keys, or --file to have others sign")
    else:
        _submit_staged(waiting, lines, session, client)


def _submit_staged(signed: "Approval", lines: list[str], session: Session, client: Client) -> None:
    if signed.kind in ("release", "revocation"):
        raise Rejected(
            f"{signed.name}: expected a file of `skerry keys`, got a {signed.kind}; use skerry release import"
        )
    done: dict[str, Any] = {"published": False, "signatures": [], "threshold": signed.threshold}
    for each in signed.signatures:
        if not done["published"]:
            done = client.sign_staged(signed.kind, signed.name, keyid=each.keyid, sig=each.sig)
    counted = f"{len(done['signatures'])} of {done['threshold']} signatures"
    end = "is published" if done["published"] else f"has {counted}"
    session.show(done, "\n".join([*lines, f"{signed.kind} {signed.name} {end}"]))


def _hand_out(path: Path, data: bytes, lines: list[str], missing: list[str], session: Session) -> None:
    _write(path, data)
    verb = "submit" if not missing else "sign"
    answer = {"file": str(path), "changes": lines, "missing": missing}
    text = [*lines, *(f"missing: {each}" for each in missing), f"next: skerry keys {verb} {path}"]
    session.show(answer, "\n".join(text))


def _show_roots(file: "RootsFile", folders: list[Path]) -> list[str]:
    from control_plane import next_roots

    shown = [next_roots.show(file, folder) for folder in folders] or [next_roots.show(file)]
    best = next((each for each in shown if each.checked), shown[0])
    return [*best.lines, *([] if best.checked else [_UNCHECKED])]


def _show_staged(waiting: "Approval", folders: list[Path]) -> list[str]:
    from control_plane import approval

    shown = [approval.show(waiting, folder) for folder in folders] or [approval.show(waiting)]
    best = next((each for each in shown if each.checked), shown[0])
    return [*best.lines, *([] if best.checked else [_UNCHECKED])]


def _missing(waiting: "Approval") -> list[str]:
    given = len(waiting.signatures)
    name = f"{waiting.kind} {waiting.name}"
    return [] if given >= waiting.threshold else [f"{name}: {given} of {waiting.threshold} signatures"]


def _is_roots(data: bytes) -> bool:
    from control_plane import next_roots

    return next_roots.FORMAT.encode() in data


def _write(path: Path, data: bytes) -> None:
    from skerry.delivery.durable import write_durably

    try:
        write_durably(path, data)
    except OSError as error:
        raise Broken(f"{path}: expected a file to write to, got: {error.strerror}") from error
