"""Owns the offline ceremony of an operator: the first keys and metadata, and signatures of releases. No network.

Offline roles are the `root` of both repositories and the image repository's `targets`; online are the image
repository's `snapshot` and `timestamp`, and `director` for all the director's roles but its root. The offline keys are
dealt out over one or several folders, one for each person who holds some; how many of them must sign is the threshold.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Role, Root, Targets
from tuf.api.serialization.json import CanonicalJSONSerializer

from control_plane.key_files import (
    MAX_KEYS,
    KeyEntry,
    KeyList,
    holds_keys,
    make_folder,
    make_key,
    parse_key,
    read_keys,
    role_signers,
    sign_with,
    write_keys,
)
from control_plane.online_keys import ONLINE_ROLES
from skerry.errors import Broken, Rejected
from skerry.wire.topics import check_name

OFFLINE_ROLES = ("root", "targets")
DIRECTOR_ROLES = ("targets", "snapshot", "timestamp")
ROOT_LIFE = timedelta(days=365)
TARGETS_LIFE = timedelta(days=180)

# one passphrase for all folders, or one for each
Passphrase = str | Mapping[Path, str] | None


def hold_ceremony(
    folders: Path | Sequence[Path],
    online: Mapping[str, Any],
    *,
    keys: int = 1,
    threshold: int = 1,
    passphrase: Passphrase = None,
    now: datetime | None = None,
) -> dict[str, str]:
    """Make the offline keys in `folders` and found both repositories with them.

    `online` is the answer of `/v1/trust/online-keys`. Each offline role gets `keys` keys, dealt out over the folders,
    `threshold` of which sign. Returns `image_root`, `director_root` and the empty first `targets`, as JSON text.
    Folders with keys are used, not overwritten: a ceremony whose result got lost on its way can be held again, and
    keys that something else keeps can be listed beforehand.
    """
    check_name(str(online.get("project", "")), "project")
    check_threshold(keys, threshold)
    trusted = _online_keys(online)
    places = [folders] if isinstance(folders, Path) else list(folders)
    if not any(holds_keys(folder) for folder in places):
        deal_keys(places, OFFLINE_ROLES, keys=keys, threshold=threshold, passphrase=passphrase)
    held = {role: held_keys(places, role, keys=keys, threshold=threshold) for role in OFFLINE_ROLES}
    signers = {
        role: [
            signer
            for folder in places
            if read_keys(folder).of(role)
            for signer in role_signers(folder, role, passphrase_of(passphrase, folder))
        ]
        for role in OFFLINE_ROLES
    }
    now = now or datetime.now(UTC)

    image = held | {"snapshot": [trusted["snapshot"]], "timestamp": [trusted["timestamp"]]}
    director = {"root": held["root"]} | {role: [trusted["director"]] for role in DIRECTOR_ROLES}
    offline = dict.fromkeys(OFFLINE_ROLES, threshold)
    return {
        "image_root": _sign_text(make_root(image, thresholds=offline, now=now), signers["root"]),
        "director_root": _sign_text(make_root(director, thresholds={"root": threshold}, now=now), signers["root"]),
        "targets": _sign_text(Targets(expires=from_now(now, TARGETS_LIFE)), signers["targets"]),
    }


def check_threshold(keys: int, threshold: int) -> None:
    """Raise `Rejected` for a threshold that cannot be met or means nothing."""
    if not 1 <= threshold <= keys <= MAX_KEYS:
        raise Rejected(
            f"keys: expected 1 <= threshold <= keys <= {MAX_KEYS}, got a threshold of {threshold} with {keys} keys"
        )


def deal_keys(
    folders: Sequence[Path], roles: Iterable[str], *, keys: int, threshold: int, passphrase: Passphrase = None
) -> None:
    """Make `keys` keys for each role, dealt out in turn over new `folders`.

    Raises:
        Rejected: there are more folders than keys.
        Broken: a folder cannot be written.
    """
    if keys < len(folders):
        raise Rejected(f"--out: expected at most one folder for each of {keys} keys, got {len(folders)} folders")
    dealt: dict[Path, list[KeyEntry]] = {folder: [] for folder in folders}
    for folder in folders:
        make_folder(folder)
    for role in roles:
        for number in range(1, keys + 1):
            folder = folders[(number - 1) % len(folders)]
            made = make_key(folder, role, f"{role}-{number}", passphrase=passphrase_of(passphrase, folder))
            dealt[folder].append(made)
    for folder, entries in dealt.items():
        write_keys(folder, KeyList(tuple(entries), threshold=threshold))


def held_keys(folders: Sequence[Path], role: str, *, keys: int, threshold: int) -> list[Key]:
    """Return the public keys of a role in `folders`: `keys` of them; raises `Rejected` when they are other ones."""
    lists = [read_keys(folder) for folder in folders]
    found = {entry.keyid: entry.key() for held in lists for entry in held.of(role)}
    thresholds = {held.threshold for held in lists if held.of(role)}
    if len(found) != keys or thresholds != {threshold}:
        asked = ", ".join(str(each) for each in sorted(thresholds)) or "none"
        raise Rejected(
            f"{', '.join(map(str, folders))}: expected no keys yet, or {keys} of {role} with a threshold of "
            f"{threshold}, got {len(found)} with {asked}; choose another folder"
        )
    return list(found.values())


def sign_payload(
    folder: Path, payload: bytes, *, passphrase: str | None = None, allowed: Collection[str] | None = None
) -> list[dict[str, str]]:
    """Sign the payload of a staged change with the folder's `targets` keys: as many as the threshold asks for.

    `allowed` are the key ids that the root names, where that is known. Anything but targets metadata is refused before
    a key is touched: a server must not get a root signed as a release. Returns `{"keyid", "sig"}` of each.
    """
    parse_payload(payload)
    signers = role_signers(folder, Targets.type, passphrase, allowed=allowed)[: read_keys(folder).threshold]
    return [{"keyid": each.keyid, "sig": each.signature} for each in sign_with(signers, payload)]


def parse_payload(payload: bytes) -> Targets:
    """Return the targets metadata whose canonical bytes are `payload`; raises `Rejected` for anything else."""
    try:
        targets = Targets.from_dict(json.loads(payload))
        canonical = CanonicalJSONSerializer().serialize(targets)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, RepositoryError) as error:
        raise Rejected(
            f"release payload: expected TUF targets metadata, got {payload[:40]!r}; do not sign it"
        ) from error
    if canonical != payload:
        raise Rejected("release payload: expected canonical JSON, got another form; do not sign it")
    return targets


def make_root(
    keys: Mapping[str, Iterable[Key]], *, thresholds: Mapping[str, int], now: datetime, version: int = 1
) -> Root:
    """Return a root that names `keys` for the roles; a role without a threshold has 1."""
    listed = {role: list(members) for role, members in keys.items()}
    return Root(
        version=version,
        expires=from_now(now, ROOT_LIFE),
        keys={key.keyid: key for members in listed.values() for key in members},
        roles={role: Role([key.keyid for key in members], thresholds.get(role, 1)) for role, members in listed.items()},
        consistent_snapshot=True,
    )


def passphrase_of(passphrase: Passphrase, folder: Path) -> str | None:
    """Return the passphrase of one folder."""
    return passphrase.get(folder) if isinstance(passphrase, Mapping) else passphrase


def from_now(now: datetime, life: timedelta) -> datetime:
    """Return when something made now expires; TUF writes whole seconds."""
    return (now + life).replace(microsecond=0)


def _online_keys(online: Mapping[str, Any]) -> dict[str, Key]:
    shown = online.get("keys")
    if not isinstance(shown, Mapping) or set(shown) != set(ONLINE_ROLES):
        raise Rejected(f"online keys: expected one for each of {', '.join(ONLINE_ROLES)}, got {shown!r:.80}")
    return {role: parse_key(_keyid(public), public) for role, public in shown.items()}


def _keyid(public: Any) -> str:
    return str(public.get("keyid", "")) if isinstance(public, Mapping) else ""


def _sign_text(signed: Root | Targets, signers: Iterable[Signer]) -> str:
    metadata: Metadata[Any] = Metadata(signed)
    try:
        for signer in signers:
            metadata.sign(signer, append=True)
    except Exception as error:  # a signer may be any plug-in of securesystemslib, with any error
        raise Broken(f"signing: expected a signature, got: {error}; is the key's device there?") from error
    return metadata.to_bytes().decode()
