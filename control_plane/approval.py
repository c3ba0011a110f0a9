"""The file that carries a staged change to whoever signs it and back: `skerry release export`, `sign` and `import`.

Nothing in it is believed. What is shown to the person who signs is read from the very bytes that will be signed, and
from the metadata that is published now; that one counts only when the root in the file is signed by a root key of the
signer's own folder, and it is signed as that root asks. Otherwise everything that the new metadata lists is shown as
new, so that a server cannot have anything approved unseen. No network and no database are needed here.
"""

import base64
import binascii
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from securesystemslib.signer import Key
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, Root, TargetFile, Targets

from control_plane.handed_files import Shown, parse_metadata, read_file, write_file
from control_plane.key_files import read_keys
from control_plane.keys import parse_payload, sign_payload
from skerry.errors import Rejected

FORMAT = "skerry-approval-1"


@dataclass(frozen=True, slots=True)
class Given:
    """One signature of the payload, as securesystemslib writes it."""

    keyid: str
    sig: str


@dataclass(frozen=True, slots=True)
class Approval:
    """The content of the file.

    `payload` is base64 of the bytes to sign, `published` and `root` the targets and the root as published now. `keyids`
    are the root's targets keys, `threshold` how many of them must sign. `publishes` says for people what will change.
    """

    kind: str
    name: str
    project: str
    payload: str
    published: str
    root: str
    keyids: tuple[str, ...]
    threshold: int
    publishes: tuple[str, ...] = ()
    signatures: tuple[Given, ...] = ()
    format: str = FORMAT


def make(
    *, kind: str, name: str, project: str, payload: bytes, published: bytes, root: bytes, signed: Iterable[Given]
) -> Approval:
    """Return the approval of what waits for signatures on the server."""
    role = parse_metadata(Root, root.decode()).signed.roles[Targets.type]
    lines = changes(parse_metadata(Targets, published.decode()).signed, parse_payload(payload))
    return Approval(
        kind=kind,
        name=name,
        project=project,
        payload=base64.b64encode(payload).decode(),
        published=published.decode(),
        root=root.decode(),
        keyids=tuple(role.keyids),
        threshold=role.threshold,
        publishes=tuple(lines),
        signatures=tuple(signed),
    )


def read(data: bytes, what: str) -> Approval:
    """Read the file `what`; raises `Rejected` for anything else."""
    return read_file(Approval, data, what, form=FORMAT, made_by="skerry release export")


def write(approval: Approval) -> bytes:
    """Return the bytes of the file."""
    return write_file(approval)


def payload_of(approval: Approval) -> bytes:
    """Return the bytes to sign; raises `Rejected` unless they are targets metadata."""
    try:
        payload = base64.b64decode(approval.payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Rejected(f"approval of {approval.name}: expected a payload in base64, got: {error}") from error
    parse_payload(payload)
    return payload


def show(approval: Approval, keys: Path | None = None) -> Shown:
    """Return what the approval changes, as far as it can be told with the root keys of the folder `keys`.

    Raises:
        Rejected: the payload is no targets metadata.
        Broken: the folder holds no keys.
    """
    wanted = parse_payload(payload_of(approval))
    known = [entry.key() for entry in read_keys(keys).of(Root.type)] if keys else []
    published = _published(approval, known, wanted.version)
    lines = changes(published or Targets(), wanted)
    return Shown(tuple(lines), checked=published is not None)


def sign(approval: Approval, keys: Path, *, passphrase: str | None = None) -> Approval:
    """Return the approval with the signatures of the folder's targets keys.

    Raises:
        Rejected: the payload is no targets metadata, or the folder holds none of the keys that are asked for.
        Broken: a key cannot be used.
    """
    made = sign_payload(keys, payload_of(approval), passphrase=passphrase, allowed=approval.keyids)
    given = {each.keyid: each for each in approval.signatures}
    given |= {each["keyid"]: Given(each["keyid"], each["sig"]) for each in made}
    return replace(approval, signatures=tuple(given.values()))


def changes(before: Targets, after: Targets) -> Iterator[str]:
    """Yield what becomes of the published targets, a line each: `+` listed, `-` no longer, `~` changed."""
    yield f"targets version {after.version}, good until {after.expires:%Y-%m-%d}"
    old, new = before.targets, after.targets
    for path in sorted(old.keys() | new.keys()):
        if path not in new:
            yield f"- {path} {_digest(old[path])}"
        elif path not in old:
            yield f"+ {path} {_digest(new[path])}"
        elif old[path] != new[path]:
            yield f"~ {path} {_digest(old[path])} becomes {_digest(new[path])}"
    yield from _delegated(before, after)
    if after.unrecognized_fields != before.unrecognized_fields:
        yield f"~ other fields: {json.dumps(after.unrecognized_fields, sort_keys=True)}"
    kept = sum(1 for path, file in new.items() if old.get(path) == file)
    if kept:
        yield f"{kept} other targets stay as they are"


def _delegated(before: Targets, after: Targets) -> Iterator[str]:
    old, new = _roles(before), _roles(after)
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            yield f"- role {name}: it may sign nothing any more"
        elif old.get(name) != new[name]:
            mark = "~" if name in old else "+"
            yield f"{mark} role {name} may sign by itself: {new[name]}"


def _roles(targets: Targets) -> dict[str, str]:
    """What each delegation grants, whole: what is not shown could be changed unseen."""
    if targets.delegations is None:
        return {}
    tree: dict[str, Any] = targets.delegations.to_dict()
    keys = tree.pop("keys", {})
    roles = tree.pop("roles", None)
    more = {"more": tree} if tree else {}
    named = {role["name"]: role for role in roles or ()}
    return {
        name: json.dumps({**role, "keys": {keyid: keys.get(keyid) for keyid in role["keyids"]}, **more}, sort_keys=True)
        for name, role in named.items()
    } or ({"(other)": json.dumps(more)} if more else {})


def _digest(file: TargetFile) -> str:
    shown = json.dumps(file.unrecognized_fields, sort_keys=True) if file.unrecognized_fields else ""
    hashes = " ".join(f"{name} {value}" for name, value in sorted(file.hashes.items()))
    return f"{file.length} bytes {hashes} {shown}".rstrip()


def _published(approval: Approval, known: Iterable[Key], version: int) -> Targets | None:
    """The targets that are published, when a root that one of the `known` keys signed vouches for them."""
    try:
        root, published = parse_metadata(Root, approval.root), parse_metadata(Targets, approval.published)
        root.signed.verify_delegate(Targets.type, published.signed_bytes, published.signatures)
    except (Rejected, UnsignedMetadataError, ValueError):
        return None
    vouched = any(_is_signed(root, key) for key in known)
    return published.signed if vouched and published.signed.version == version - 1 else None


def _is_signed(root: Metadata[Root], key: Key) -> bool:
    from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError

    signature = root.signatures.get(key.keyid)
    if signature is None:
        return False
    try:
        key.verify_signature(signature, root.signed_bytes)
    except (UnverifiedSignatureError, VerificationError):
        return False
    return True
