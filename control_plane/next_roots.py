"""Owns the operator's side of a rotation: the next roots, as a file that is signed by key holders and handed in.

A rotation of `root` gives both repositories a next root, any other role the one repository that it is of. The file has
them with the signatures so far, and the roots that they follow. Where `targets` changes hands it has the published
targets as well: they are signed by the new keys, as they are, or nothing would be valid under the new root.

Nothing in the file is believed. What a signer is shown is read from the very bytes that are signed. What they follow
counts only when a root key of the signer's own folder has signed it and the threshold holds; else all is shown as new.
No network and no database are needed here.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from securesystemslib.signer import Key
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, Role, Root, Targets

from control_plane.handed_files import Shown, parse_metadata, read_file, write_file
from control_plane.key_files import read_keys, role_signers, sign_with
from control_plane.keys import DIRECTOR_ROLES, OFFLINE_ROLES, ROOT_LIFE, from_now
from control_plane.online_keys import ONLINE_ROLES
from skerry.errors import Rejected

FORMAT = "skerry-roots-1"
IMAGE, DIRECTOR, TARGETS = "image_root", "director_root", "targets"


@dataclass(frozen=True, slots=True)
class RootsFile:
    """The content of the file: metadata as TUF's JSON text by `image_root`, `director_root` and `targets`.

    `next` is what is signed; `present` what it follows, as published.
    """

    project: str
    next: dict[str, str]
    present: dict[str, str] = field(default_factory=dict)
    format: str = FORMAT


def rotate(
    project: str,
    present: Mapping[str, str],
    role: str,
    *,
    keys: Sequence[Key],
    threshold: int,
    now: datetime,
) -> RootsFile:
    """Return the unsigned next roots in which `keys` hold `role`: an offline one, an online one, or `director`.

    Raises:
        Rejected: there is no such role, or `present` is no metadata.
    """
    if role not in (*OFFLINE_ROLES, *ONLINE_ROLES):
        raise Rejected(f"role: expected one of {', '.join((*OFFLINE_ROLES, *ONLINE_ROLES))}, got {role!r:.80}")
    roles = DIRECTOR_ROLES if role == DIRECTOR.removesuffix("_root") else (role,)
    changed = {Root.type: (IMAGE, DIRECTOR), "director": (DIRECTOR,)}.get(role, (IMAGE,))
    made = {}
    for name in changed:
        root = parse_metadata(Root, present[name]).signed
        for each in roles:
            root.roles[each] = Role([key.keyid for key in keys], threshold)
        known = root.keys | {key.keyid: key for key in keys}
        named = {keyid for each in root.roles.values() for keyid in each.keyids}
        root.keys = {keyid: known[keyid] for keyid in known if keyid in named}
        root.version += 1
        root.expires = from_now(now, ROOT_LIFE)
        made[name] = Metadata(root).to_bytes().decode()
    if role == Targets.type:
        made[TARGETS] = present[TARGETS]
    return RootsFile(project=project, next=made, present={name: present[name] for name in changed})


def renew(project: str, present: Mapping[str, str], *, now: datetime) -> RootsFile:
    """Return the unsigned next roots of both repositories with the same keys and a new expiry."""
    role = parse_metadata(Root, present[IMAGE]).signed
    held = [role.get_key(keyid) for keyid in role.roles[Root.type].keyids]
    return rotate(project, present, Root.type, keys=held, threshold=role.roles[Root.type].threshold, now=now)


def read(data: bytes, what: str) -> RootsFile:
    """Read the file `what`; raises `Rejected` for anything else."""
    file = read_file(RootsFile, data, what, form=FORMAT, made_by="skerry keys rotate")
    if not file.next or not set(file.next) <= {IMAGE, DIRECTOR, TARGETS}:
        raise Rejected(f"{what}: expected next roots, got {', '.join(file.next) or 'nothing'}")
    for name, text in file.next.items():
        _metadata(name, text)
    return file


def write(file: RootsFile) -> bytes:
    """Return the bytes of the file."""
    return write_file(file)


def show(file: RootsFile, folder: Path | None = None) -> Shown:
    """Return what the next roots change, as far as it can be told with the root keys of a key folder."""
    known = [entry.key() for entry in read_keys(folder).of(Root.type)] if folder else []
    lines: list[str] = []
    checked = True
    for name in (IMAGE, DIRECTOR):
        if name in file.next:
            new = parse_metadata(Root, file.next[name]).signed
            before = _trusted(file.present.get(name, ""), known, new.version)
            checked = checked and before is not None
            lines += _changes(name.replace("_", " "), before, new)
    if TARGETS in file.next:
        targets = parse_metadata(Targets, file.next[TARGETS]).signed
        lines.append(f"targets version {targets.version} as published, {len(targets.targets)} files")
    return Shown(tuple(lines), checked=checked)


def sign(file: RootsFile, folder: Path, *, passphrase: str | None = None) -> RootsFile:
    """Return the file with the signatures of all keys of the folder that count for any of its metadata.

    Raises:
        Rejected: the folder holds no such key, or the targets are not those that the present keys have signed.
        Broken: a key cannot be used.
    """
    held = read_keys(folder)
    signed = dict(file.next)
    used = False
    for name, text in file.next.items():
        role = Targets.type if name == TARGETS else Root.type
        allowed = _may_sign(file, name)
        if not any(entry.keyid in allowed for entry in held.of(role)):
            continue
        metadata = _metadata(name, text)
        if name == TARGETS:
            _check_targets(file, metadata)
        for signature in sign_with(role_signers(folder, role, passphrase, allowed=allowed), metadata.signed_bytes):
            metadata.signatures[signature.keyid] = signature
        signed[name] = metadata.to_bytes().decode()
        used = True
    if not used:
        raise Rejected(f"{folder}: expected a key that the old or the new roots name, got none; give another --keys")
    return replace(file, next=signed)


def missing(file: RootsFile) -> list[str]:
    """Return what signatures are missing, a line for each set of keys; nothing when it can be handed in."""
    lines = []
    for name, text in file.next.items():
        metadata = _metadata(name, text)
        role = Targets.type if name == TARGETS else Root.type
        askers = {"new": parse_metadata(Root, file.next[IMAGE if name == TARGETS else name]).signed}
        if name != TARGETS:
            askers["present"] = (
                parse_metadata(Root, file.present[name]).signed if name in file.present else askers["new"]
            )
        for whose, root in askers.items():
            result = root.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
            if not result:
                have = f"{len(result.signed)} of {result.threshold} signatures"
                lines.append(f"{name.replace('_', ' ')}: {have} by the {whose} {role} keys")
    return lines


def _may_sign(file: RootsFile, name: str) -> Collection[str]:
    if name == TARGETS:
        return parse_metadata(Root, file.next[IMAGE]).signed.roles[Targets.type].keyids if IMAGE in file.next else ()
    roots = [file.next[name], *([file.present[name]] if name in file.present else [])]
    return {keyid for text in roots for keyid in parse_metadata(Root, text).signed.roles[Root.type].keyids}


def _check_targets(file: RootsFile, metadata: Metadata[Targets]) -> None:
    """New keys sign again what is published: which is what the present ones have signed."""
    try:
        present = parse_metadata(Root, file.present.get(IMAGE, "")).signed
        present.verify_delegate(Targets.type, metadata.signed_bytes, metadata.signatures)
    except (UnsignedMetadataError, Rejected) as error:
        raise Rejected(
            "targets: expected what the present targets keys have signed, got another; do not sign it"
        ) from error


def _trusted(text: str, known: Sequence[Key], version: int) -> Root | None:
    """The root that is followed, when one of the `known` keys signed it, and its own threshold holds."""
    from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError

    try:
        root = parse_metadata(Root, text)
        root.signed.verify_delegate(Root.type, root.signed_bytes, root.signatures)
    except (Rejected, UnsignedMetadataError):
        return None
    for key in known:
        try:
            key.verify_signature(root.signatures[key.keyid], root.signed_bytes)
        except (KeyError, UnverifiedSignatureError, VerificationError):
            continue
        return root.signed if root.signed.version == version - 1 else None
    return None


def _changes(what: str, before: Root | None, after: Root) -> Iterator[str]:
    yield f"{what} version {after.version}, good until {after.expires:%Y-%m-%d}"
    for role, now in sorted(after.roles.items()):
        old = before.roles[role] if before else None
        if before is None or old is None:
            yield f"+ {role}: {_holders(now)}"
        elif old != now:
            yield f"~ {role}: {_holders(old)} becomes {_holders(now)}"
        for keyid in now.keyids:
            if before is None or keyid not in before.keys or before.keys[keyid] != after.keys[keyid]:
                yield f"+ key {json.dumps({'keyid': keyid, **after.keys[keyid].to_dict()}, sort_keys=True)}"
    if not after.consistent_snapshot or after.unrecognized_fields:
        more = json.dumps(after.unrecognized_fields, sort_keys=True)
        yield f"~ consistent snapshots {after.consistent_snapshot}, other fields {more}"


def _holders(role: Role) -> str:
    more = f" {json.dumps(role.unrecognized_fields)}" if role.unrecognized_fields else ""
    return f"{role.threshold} of {', '.join(keyid[:8] for keyid in role.keyids) or 'none'}{more}"


def _metadata(name: str, text: str) -> Metadata[Any]:
    return parse_metadata(Targets, text) if name == TARGETS else parse_metadata(Root, text)
