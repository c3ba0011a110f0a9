"""Owns folders of signing keys: `keys.json`, the key files beside it, and the signers that they name.

`keys.json` lists keys with their role, public part and *signer URI*. What is made here are Ed25519 keys in files of the
same folder (mode 0600, encrypted where a passphrase is given), with `file2:NAME` as URI. A URI of any other scheme that
securesystemslib knows (a cloud KMS, a PKCS#11 token, Vault) is used in the same way: `add_key` lists it. No network of
our own, no database, and nothing here knows what is signed.
"""

import getpass
import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from securesystemslib.exceptions import Error as SignerError
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, CryptoSigner, Key, Signature, Signer, SSlibKey

from control_plane.home import write_secret
from skerry.delivery.durable import write_durably
from skerry.errors import Broken, Rejected
from skerry.wire.codec import from_tree

KEY_FILE_SCHEME = "file2"
MAX_KEYS = 16


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
    """The content of `keys.json`; `threshold` is how many keys of a role must sign, in this folder or another."""

    keys: tuple[KeyEntry, ...]
    threshold: int = 1
    v: int = 1

    def of(self, role: str) -> list[KeyEntry]:
        """Return the keys of a role."""
        return [entry for entry in self.keys if entry.role == role]


def parse_key(keyid: str, public: Any) -> Key:
    """Build a public key from its JSON; raises `Rejected`."""
    try:
        # not `Key.from_dict`: what comes over the network may name no other kind of key
        return SSlibKey.from_dict(keyid, {name: value for name, value in public.items() if name != "keyid"})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Rejected(f"key {keyid!r:.80}: expected a public key as TUF writes it, got something else") from error


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


def holds_keys(folder: Path) -> bool:
    """Say whether there is a `keys.json` in the folder."""
    return (folder / "keys.json").exists()


def make_folder(folder: Path) -> None:
    """Make a folder that only this user may enter; raises `Broken`."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise Broken(f"{folder}: expected a folder to write keys to, got {error.strerror}") from error


def make_key(folder: Path, role: str, name: str, *, passphrase: str | None = None) -> KeyEntry:
    """Make an Ed25519 key in the file `NAME.pem`, and return its entry, which is not listed yet."""
    signer = CryptoSigner.generate_ed25519()
    write_secret(folder / f"{name}.pem", _seal(signer.private_bytes, passphrase))
    public = signer.public_key
    uri = f"{KEY_FILE_SCHEME}:{name}.pem"
    return KeyEntry(role, public.keyid, public.to_dict(), uri, encrypted=bool(passphrase))


def add_key(folder: Path, role: str, *, uri: str, public: bytes, threshold: int = 1) -> KeyEntry:
    """List a key that something else keeps, by its signer URI and its public part (PEM, or JSON as TUF writes it).

    Raises:
        Rejected: the scheme of the URI is unknown, the public part is none, or the key is listed already.
    """
    scheme = urlsplit(uri).scheme
    if scheme not in SIGNER_FOR_URI_SCHEME:
        known = ", ".join(sorted(SIGNER_FOR_URI_SCHEME))
        raise Rejected(f"--uri: expected a scheme that securesystemslib knows ({known}), got {uri!r:.80}")
    key = _read_public(public)
    make_folder(folder)
    held = read_keys(folder) if holds_keys(folder) else KeyList((), threshold=threshold)
    if any(entry.keyid == key.keyid for entry in held.keys):
        raise Rejected(f"{folder}: expected a key that is not listed yet, got {key.keyid[:8]} again")
    entry = KeyEntry(role, key.keyid, key.to_dict(), uri)
    write_keys(folder, replace(held, keys=(*held.keys, entry)))
    return entry


def load_signer(folder: Path, entry: KeyEntry, passphrase: str | None = None) -> Signer:
    """Return the signer of a key: from its file, or wherever its URI says.

    Raises:
        Broken: the key is not there, is not the one listed, or the passphrase is wrong.
    """
    uri = urlsplit(entry.uri)
    try:
        if uri.scheme != KEY_FILE_SCHEME:
            return Signer.from_priv_key_uri(entry.uri, entry.key(), getpass.getpass)
        pem = (folder / uri.path).read_bytes()
        secret = passphrase.encode() if passphrase and entry.encrypted else None
        private: Any = serialization.load_pem_private_key(pem, secret)
        key = entry.key()
        return CryptoSigner(private, key if isinstance(key, SSlibKey) else None)
    except Exception as error:  # a signer may be any plug-in of securesystemslib, with any error
        hint = "is SKERRY_KEY_PASSPHRASE the right one?" if entry.encrypted else "restore it from its backup"
        raise Broken(f"key {entry.role} ({entry.uri}): expected to load it, got: {_line(error)}; {hint}") from error


def role_signers(
    folder: Path, role: str, passphrase: str | None = None, *, allowed: Collection[str] | None = None
) -> list[Signer]:
    """Return the signers that a folder holds for a role: the `allowed` key ids among them, where given.

    Raises:
        Rejected: it holds none of those.
        Broken: one cannot be loaded.
    """
    entries = [entry for entry in read_keys(folder).of(role) if allowed is None or entry.keyid in allowed]
    if not entries:
        those = "" if allowed is None else f" ({', '.join(sorted(keyid[:8] for keyid in allowed))})"
        raise Rejected(f"{folder}: expected a {role} key that may sign this{those}, got none; give another --keys")
    return [load_signer(folder, entry, passphrase) for entry in entries]


def sign_with(signers: Iterable[Signer], payload: bytes) -> list[Signature]:
    """Return a signature by each signer; raises `Broken`."""
    try:
        return [signer.sign(payload) for signer in signers]
    except Exception as error:  # a signer may be any plug-in of securesystemslib, with any error
        raise Broken(f"signing: expected a signature, got: {_line(error)}") from error


def encrypted(folder: Path) -> bool:
    """Say whether a key of the folder needs a passphrase."""
    return any(entry.encrypted for entry in read_keys(folder).keys)


def _seal(pem: bytes, passphrase: str | None) -> bytes:
    if not passphrase:
        return pem
    return serialization.load_pem_private_key(pem, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase.encode()),
    )


def _read_public(public: bytes) -> Key:
    try:
        if public.lstrip().startswith(b"{"):
            tree = json.loads(public)
            return parse_key(str(tree["keyid"]), tree)
        loaded: Any = serialization.load_pem_public_key(public)
        return SSlibKey.from_crypto(loaded)
    except (ValueError, KeyError, TypeError, UnsupportedAlgorithm, SignerError) as error:
        raise Rejected("--public: expected a public key (PEM, or JSON with its keyid), got something else") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
