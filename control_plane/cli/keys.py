"""`skerry keys`: the offline ceremony, and what people are told of keys; `rotations` has the verbs that sign."""

import argparse
from pathlib import Path
from typing import Any

from control_plane.cli import rotations
from control_plane.cli.session import Session, read_bytes, table
from skerry.errors import Rejected


def add_verbs(nouns: Any) -> None:
    """Add the verbs of keys."""
    verbs = nouns.add_parser("keys", help="signing keys").add_subparsers(dest="verb", required=True, metavar="VERB")

    init = verbs.add_parser("init", help="make the offline keys and found both repositories")
    rotations.add_out(init, "one for each person who holds keys; keep them off the server, and backed up")
    init.add_argument("--keys", type=int, default=3, help="keys of each offline role (default: %(default)s)")
    init.add_argument("--threshold", type=int, default=2, help="signatures that a role needs (default: %(default)s)")
    init.set_defaults(run=_init)

    status = verbs.add_parser("status", help="versions, expiry and keys of the metadata, and alarms")
    status.add_argument("--keys", type=Path, action="append", default=[], metavar="FOLDER", help="show what it holds")
    status.set_defaults(run=_status)

    add = verbs.add_parser("add", help="list a key that a KMS, a token or another signer keeps")
    add.add_argument("role", choices=("root", "targets"))
    add.add_argument("--uri", required=True, help="as securesystemslib knows it, such as hsm: or gcpkms:...")
    add.add_argument("--public", required=True, type=Path, metavar="FILE", help="its public key, PEM or TUF's JSON")
    add.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="where it is listed, before keys init")
    add.add_argument("--threshold", type=int, default=2, help="signatures that its role needs (default: %(default)s)")
    add.set_defaults(run=_add)

    rotations.add_verbs(verbs)


def _init(options: argparse.Namespace, session: Session) -> None:
    from control_plane.key_files import encrypted, holds_keys
    from control_plane.keys import hold_ceremony

    with session.client() as client:
        # before keys are made that would sign nothing
        if client.health()["ceremony"]:
            raise Rejected("ceremony: expected none before, got one already; sign with the keys that it made")
        made = {folder: holds_keys(folder) for folder in options.out}
        ask = {folder: session.passphrase if was else session.new_passphrase for folder, was in made.items()}
        metadata = hold_ceremony(
            options.out,
            client.online_keys(),
            keys=options.keys,
            threshold=options.threshold,
            passphrase={folder: secret for folder in options.out if (secret := ask[folder](folder))},
        )
        anchor = client.init_trust(**metadata)
    folders = ", ".join(map(str, options.out))
    plain = "" if all(encrypted(folder) for folder in options.out) else " (not encrypted: no passphrase was given)"
    session.show(anchor, f"offline keys in {folders}{plain}; anchor sha256 {anchor['anchor_sha256']}")


def _status(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        trust = client.trust()
    rows = [
        {
            **role,
            "expires": role["expires"][:10],
            "needs": f"{role['threshold']} of {len(role['keys'])}",
            "keys": " ".join(f"{key['keyid'][:8]}{'*' * (key['keyid'] in role['signed_by'])}" for key in role["keys"]),
            "scheme": " ".join(sorted({key["scheme"] for key in role["keys"]})),
        }
        for role in trust["roles"]
    ]
    columns = ("repository", "role", "version", "expires", "needs", "keys", "scheme")
    lines = [table(rows, columns, empty="no ceremony yet")]
    if rows:
        lines.append("* has signed the present version")
    lines += [
        f"{role}: {key['keyid'][:8]} signs" + (f", {key['next'][:8]} lies ready" if key["next"] else "")
        for role, key in trust["online_keys"].items()
    ]
    lines += [f"waits for signatures: {each['kind']} {each['name']}" for each in trust["waiting"]]
    lines += [f"ALARM {alarm['text']}" for alarm in trust["alarms"]]
    if options.keys:
        held = _held(options.keys, trust["roles"])
        trust["held"] = held
        lines.append(table(held, ("folder", "role", "keyid", "uri", "encrypted", "named"), empty="no keys held"))
    session.show(trust, "\n".join(lines))


def _held(folders: list[Path], roles: list[Any]) -> list[dict[str, Any]]:
    from control_plane.key_files import read_keys

    named = {(role["role"], key["keyid"]) for role in roles for key in role["keys"]}
    return [
        {
            "folder": str(folder),
            "role": entry.role,
            "keyid": entry.keyid[:8],
            "uri": entry.uri,
            "encrypted": entry.encrypted,
            "named": (entry.role, entry.keyid) in named,
        }
        for folder in folders
        for entry in read_keys(folder).keys
    ]


def _add(options: argparse.Namespace, session: Session) -> None:
    from control_plane.key_files import add_key

    public = read_bytes(options.public, limit=1 << 16)
    entry = add_key(options.out, options.role, uri=options.uri, public=public, threshold=options.threshold)
    session.show({"keyid": entry.keyid, "uri": entry.uri}, f"{options.role} key {entry.keyid[:8]} is at {entry.uri}")
