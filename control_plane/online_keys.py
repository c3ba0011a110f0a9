"""Owns the server's signing keys: what signs without a person, in the home folder's `keys/`.

Which key of a role signs is not decided here but by the newest root (or by a delegation): it names a key, and the
signer of that key is taken. So a new key may lie ready for as long as it takes to sign the root that names it, and the
commit of that root is the switch: a crash before or after it leaves a server that signs what devices accept.
"""

import threading
from collections.abc import Collection
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from securesystemslib.signer import Key, Signer
from tuf.api.metadata import Role

from control_plane.key_files import KEY_FILE_SCHEME, KeyEntry, KeyList, load_signer, make_key, read_keys, write_keys
from control_plane.refusals import Unknown
from skerry.errors import Broken
from skerry.wire.topics import check_name

ONLINE_ROLES = ("snapshot", "timestamp", "director")
AUTOMATIC = "automatic-"


class OnlineSigners:
    """The signers of a key folder, by key id; may be used from any thread.

    Raises:
        Broken: a key is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._held = read_keys(folder)
        self._signers = {entry.keyid: load_signer(folder, entry) for entry in self._held.keys}
        missing = [role for role in ONLINE_ROLES if not self._held.of(role)]
        if missing:
            raise Broken(f"{folder}: expected a key for each of {', '.join(ONLINE_ROLES)}, got none for {missing[0]}")

    def named(self, role: Role, what: str) -> Signer:
        """Return the signer of the key that a root or a delegation names; raises `Broken` when we do not hold it."""
        for keyid in role.keyids:
            if keyid in self._signers:
                return self._signers[keyid]
        raise Broken(
            f"{self._folder}: expected the {what} key {role.keyids[0][:8]}, got none; "
            "restore keys/ from the same backup as the database"
        )

    def holds(self, role: str, keyid: str) -> bool:
        """Say whether this key is one that we made for the role."""
        return any(entry.keyid == keyid for entry in self._held.of(role))

    def newest(self, role: str) -> Signer:
        """Return the signer of the key that was made last for a role; raises `Unknown`."""
        entries = self._held.of(role)
        if not entries:
            raise Unknown(f"online keys: expected one of {', '.join(ONLINE_ROLES)}, got {role!r:.80}")
        return self._signers[entries[-1].keyid]

    def make_next(self, role: str, *, named: Collection[str]) -> Key:
        """Return the key that is to follow the `named` ones of a role: the one that lies ready, or one made now.

        Raises:
            Unknown: the role is none of ours.
        """
        if role not in ONLINE_ROLES:
            model = role.removeprefix(AUTOMATIC)
            if model == role:
                raise Unknown(f"online keys: expected one of {', '.join(ONLINE_ROLES)}, got {role!r:.80}")
            check_name(model, "model")
        with self._lock:
            for entry in reversed(self._held.of(role)):
                if entry.keyid not in named:
                    return entry.key()
            entry = make_key(self._folder, role, _free_name(self._folder, role))
            held = replace(self._held, keys=(*self._held.keys, entry))
            # the file first: a listed key whose file is missing would keep the server from starting
            write_keys(self._folder, held)
            self._signers[entry.keyid] = load_signer(self._folder, entry)
            self._held = held
            return entry.key()

    def forget(self, named: Collection[str]) -> list[str]:
        """Delete the keys that came before the `named` ones of their role; return their key ids.

        Keys that came after are left: they lie ready for a root that is still being signed.
        """
        with self._lock:
            return self._remove([entry for entry in self._held.keys if self._is_past(entry, named)])

    def forget_automatic(self, wanted: Collection[str]) -> list[str]:
        """Delete the keys of models that are not `wanted`: no delegation names them, nor one that is being signed."""
        with self._lock:
            return self._remove(
                [each for each in self._held.keys if each.role.startswith(AUTOMATIC) and each.keyid not in wanted]
            )

    def _remove(self, entries: list[KeyEntry]) -> list[str]:
        if not entries:
            return []
        # the list first, as when one is made
        held = replace(self._held, keys=tuple(entry for entry in self._held.keys if entry not in entries))
        write_keys(self._folder, held)
        self._held = held
        for entry in entries:
            uri = urlsplit(entry.uri)
            if uri.scheme == KEY_FILE_SCHEME:
                (self._folder / uri.path).unlink(missing_ok=True)
            del self._signers[entry.keyid]
        return [entry.keyid for entry in entries]

    def _is_past(self, entry: KeyEntry, named: Collection[str]) -> bool:
        keyids = [each.keyid for each in self._held.of(entry.role)]
        latest = max((keyids.index(keyid) for keyid in named if keyid in keyids), default=0)
        return keyids.index(entry.keyid) < latest


def make_online_keys(folder: Path) -> None:
    """Make the server's first keys in `folder`."""
    write_keys(folder, KeyList(tuple(make_key(folder, role, role) for role in ONLINE_ROLES)))


def describe_online(signers: OnlineSigners, project: str) -> dict[str, Any]:
    """Return what the ceremony needs to know of the server: the public parts of its keys."""
    keys = {role: signers.newest(role).public_key for role in ONLINE_ROLES}
    return {"project": project, "keys": {role: describe_key(key) for role, key in keys.items()}}


def describe_key(key: Key) -> dict[str, Any]:
    """Return a public key as JSON with its key id."""
    return {"keyid": key.keyid, **key.to_dict()}


def _free_name(folder: Path, role: str) -> str:
    names = chain([role], (f"{role}-{number}" for number in count(2)))
    return next(name for name in names if not (folder / f"{name}.pem").exists())
