"""Owns signing keys: the offline ceremony of an operator, and the online keys of the server. No database, no network.

A key folder holds `keys.json`, a list of keys with their roles, public parts and *signer URIs*. What is made here are
Ed25519 keys in files beside it (mode 0600, encrypted where a passphrase is given); a URI of any other scheme that
securesystemslib knows (a cloud KMS, a PKCS#11 token) may be put in by hand, and is used in the same way.

Offline roles are the `root` of both repositories and the image repository's `targets`; online are the image
repository's `snapshot` and `timestamp`, and `director` for all the director's roles but its root.
"""

import getpass
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives import serialization
from securesystemslib.exceptions import Error as SignerError
from securesystemslib.signer import CryptoSigner, Key, Signer, SSlibKey
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Role, Root, Targets
from tuf.api.serialization.json import CanonicalJSONSerializer

from control_plane.home import write_secret
from skerry.delivery.durable import write_durably
from skerry.errors import Broken, Rejected
from skerry.wire.codec import from_tree
from skerry.wire.topics import check_name

ONLINE_ROLES = ("snapshot", "timestamp", "director")
OFFLINE_ROLES = ("root", "targets")
ROOT_LIFE = timedelta(days=365)
TARGETS_LIFE = timedelta(days=180)
_KEY_FILE_SCHEME = "file2"


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One key of a folder: its role, its public part as TUF writes it, and where securesystemslib finds the private."""

    role: str
    keyid: str
    public: dict[str, Any]
    uri: str
    encrypted: bool = False

    def key(self) -> Key:
        """Return the public key."""
        return parse_key(self.keyid, self.public)


@dataclass(frozen=True, slots=True)
class KeyList:
    """The content of `keys.json`."""

    keys: tuple[KeyEntry, ...]
    threshold: int = 1
    v: int = 1

    def of(self, role: str) -> list[KeyEntry]:
        """Return the keys of a role."""
        return [entry for entry in self.keys if entry.role == role]


@dataclass(frozen=True, slots=True)
class OnlineSigners:
    """The server's signers: snapshot and timestamp of the image repository, and the director's."""

    snapshot: Signer
    timestamp: Signer
    director: Signer


# -- the server


def make_online_keys(folder: Path) -> None:
    """Make the server's keys in `folder`."""
    write_keys(folder, KeyList(tuple(_make_key(folder, role, role, passphrase=None) for role in ONLINE_ROLES)))


def load_online(folder: Path) -> OnlineSigners:
    """Load the server's signers; raises `Broken` when a key is missing or damaged."""
    signers = {entry.role: load_signer(folder, entry) for entry in read_keys(folder).keys}
    missing = [role for role in ONLINE_ROLES if role not in signers]
    if missing:
        raise Broken(f"{folder}: expected a key for each of {', '.join(ONLINE_ROLES)}, got none for {missing[0]}")
    return OnlineSigners(**{role: signers[role] for role in ONLINE_ROLES})


def describe_online(signers: OnlineSigners, project: str) -> dict[str, Any]:
    """Return what the ceremony needs to know of the server: the public parts of its keys."""
    keys = {role: getattr(signers, role).public_key for role in ONLINE_ROLES}
    return {"project": project, "keys": {role: {"keyid": key.keyid, **key.to_dict()} for role, key in keys.items()}}


# -- the operator


def hold_ceremony(
    folder: Path,
    online: Mapping[str, Any],
    *,
    keys: int = 1,
    threshold: int = 1,
    passphrase: str | None = None,
    now: datetime | None = None,
) -> dict[str, str]:
    """Make the offline keys in `folder` and found both repositories with them.

    `online` is the answer of `/v1/trust/online-keys`. Each offline role gets `keys` keys, `threshold` of which sign.
    Returns `image_root`, `director_root` and the empty first `targets`, as JSON text. A folder with keys is used, not
    overwritten, so that a ceremony whose result got lost on its way can be held again.
    """
    check_name(str(online.get("project", "")), "project")
    if not 1 <= threshold <= keys <= 16:
        raise Rejected(f"keys: expected 1 <= threshold <= keys <= 16, got a threshold of {threshold} with {keys} keys")
    trusted = _online_keys(online)
    if not (folder / "keys.json").exists():
        make_offline_keys(folder, keys=keys, threshold=threshold, passphrase=passphrase)
    held = read_keys(folder)
    if (len(held.of("root")), held.threshold) != (keys, threshold):
        raise Rejected(
            f"{folder}: expected no keys yet, or {keys} with a threshold of {threshold}, "
            f"got {len(held.of('root'))} with {held.threshold}; choose another folder"
        )
    signers = {role: _role_signers(folder, held, role, passphrase) for role in OFFLINE_ROLES}
    now = now or datetime.now(UTC)

    image = {"root": _entry_keys(held, "root"), "targets": _entry_keys(held, "targets")}
    image |= {"snapshot": [trusted["snapshot"]], "timestamp": [trusted["timestamp"]]}
    director = {"root": image["root"]} | {role: [trusted["director"]] for role in ("targets", "snapshot", "timestamp")}
    offline = dict.fromkeys(OFFLINE_ROLES, held.threshold)
    return {
        "image_root": _sign_text(_make_root(image, thresholds=offline, now=now), signers["root"]),
        "director_root": _sign_text(
            _make_root(director, thresholds={"root": held.threshold}, now=now), signers["root"]
        ),
        "targets": _sign_text(Targets(expires=_from_now(now, TARGETS_LIFE)), signers["targets"]),
    }


def make_offline_keys(folder: Path, *, keys: int, threshold: int, passphrase: str | None = None) -> KeyList:
    """Make `keys` keys for each offline role in a new `folder`."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        entries = [
            _make_key(folder, role, f"{role}-{number}", passphrase=passphrase)
            for role in OFFLINE_ROLES
            for number in range(1, keys + 1)
        ]
        made = KeyList(tuple(entries), threshold=threshold)
        write_keys(folder, made)
    except OSError as error:
        raise Broken(f"{folder}: expected a folder to write keys to, got {error.strerror}") from error
    return made


def sign_payload(folder: Path, payload: bytes, *, passphrase: str | None = None) -> list[dict[str, str]]:
    """Sign the payload of a staged release with the folder's `targets` keys: as many as the threshold asks for.

    Anything but targets metadata is refused before a key is touched: a server must not get a root signed as a release.
    Returns `{"keyid", "sig"}` of each.
    """
    parse_payload(payload)
    held = read_keys(folder)
    signers = _role_signers(folder, held, "targets", passphrase)[: held.threshold]
    made = [_guarded(signer, payload) for signer in signers]
    return [{"keyid": signature.keyid, "sig": signature.signature} for signature in made]


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


# -- keys and folders


def parse_key(keyid: str, public: Any) -> Key:
    """Build a public key from its JSON; raises `Rejected`."""
    try:
        key = SSlibKey.from_dict(keyid, {name: value for name, value in public.items() if name != "keyid"})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Rejected(f"key {keyid!r:.80}: expected a public key as TUF writes it, got something else") from error
    return key


def read_keys(folder: Path) -> KeyList:
    """Read `keys.json`; raises `Broken` when the folder holds none."""
    path = folder / "keys.json"
    try:
        return from_tree(KeyList, json.loads(path.read_bytes()))
    except FileNotFoundError as error:
        raise Broken(
            f"{folder}: expected a folder of signing keys, got no keys.json; make one: skerry keys init"
        ) from error
    except (OSError, ValueError, Rejected) as error:
        raise Broken(f"{path}: expected a list of keys, got: {error}; restore it from its backup") from error


def write_keys(folder: Path, keys: KeyList) -> None:
    """Write `keys.json`."""
    write_durably(folder / "keys.json", json.dumps(asdict(keys), indent=1).encode())


def load_signer(folder: Path, entry: KeyEntry, passphrase: str | None = None) -> Signer:
    """Return the signer of a key: from its file, or wherever its URI says.

    Raises:
        Broken: the key is not there, is not the one listed, or the passphrase is wrong.
    """
    uri = urlsplit(entry.uri)
    try:
        if uri.scheme != _KEY_FILE_SCHEME:
            return Signer.from_priv_key_uri(entry.uri, entry.key(), getpass.getpass)
        pem = (folder / uri.path).read_bytes()
        secret = passphrase.encode() if passphrase and entry.encrypted else None
        private: Any = serialization.load_pem_private_key(pem, secret)
        key = entry.key()
        return CryptoSigner(private, key if isinstance(key, SSlibKey) else None)
    except (OSError, ValueError, TypeError, ImportError, SignerError) as error:
        hint = "set SKERRY_KEY_PASSPHRASE" if entry.encrypted else "restore it from its backup"
        raise Broken(f"key {entry.role} ({entry.uri}): expected to load it, got: {_line(error)}; {hint}") from error


def _make_key(folder: Path, role: str, name: str, *, passphrase: str | None) -> KeyEntry:
    signer = CryptoSigner.generate_ed25519()
    pem = signer.private_bytes
    if passphrase:
        pem = serialization.load_pem_private_key(pem, None).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(passphrase.encode()),
        )
    write_secret(folder / f"{name}.pem", pem)
    public = signer.public_key
    return KeyEntry(
        role=role,
        keyid=public.keyid,
        public=public.to_dict(),
        uri=f"{_KEY_FILE_SCHEME}:{name}.pem",
        encrypted=bool(passphrase),
    )


def _role_signers(folder: Path, held: KeyList, role: str, passphrase: str | None) -> list[Signer]:
    entries = held.of(role)
    if len(entries) < held.threshold:
        raise Broken(f"{folder}: expected {held.threshold} or more keys for {role}, got {len(entries)}")
    return [load_signer(folder, entry, passphrase) for entry in entries]


def _entry_keys(held: KeyList, role: str) -> list[Key]:
    return [entry.key() for entry in held.of(role)]


def _online_keys(online: Mapping[str, Any]) -> dict[str, Key]:
    shown = online.get("keys")
    if not isinstance(shown, Mapping) or set(shown) != set(ONLINE_ROLES):
        raise Rejected(f"online keys: expected one for each of {', '.join(ONLINE_ROLES)}, got {shown!r:.80}")
    return {role: parse_key(_keyid(public), public) for role, public in shown.items()}


def _keyid(public: Any) -> str:
    return str(public.get("keyid", "")) if isinstance(public, Mapping) else ""


def _make_root(keys: Mapping[str, Iterable[Key]], *, thresholds: Mapping[str, int], now: datetime) -> Root:
    listed = {role: list(members) for role, members in keys.items()}
    return Root(
        expires=_from_now(now, ROOT_LIFE),
        keys={key.keyid: key for members in listed.values() for key in members},
        roles={role: Role([key.keyid for key in members], thresholds.get(role, 1)) for role, members in listed.items()},
        consistent_snapshot=True,
    )


def _sign_text(signed: Root | Targets, signers: Iterable[Signer]) -> str:
    metadata: Metadata[Any] = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes().decode()


def _guarded(signer: Signer, payload: bytes) -> Any:
    try:
        return signer.sign(payload)
    except Exception as error:  # a signer may be any plug-in of securesystemslib, with any error
        raise Broken(f"signing: expected a signature, got: {_line(error)}") from error


def _from_now(now: datetime, life: timedelta) -> datetime:
    return (now + life).replace(microsecond=0)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
