"""Who this device is, and the state folder that holds it."""

import errno
import fcntl
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from agent.link.tls import Credentials
from skerry.delivery.checked import read_copy, read_either, write_copy
from skerry.delivery.durable import make_folder, sync_folder, write_durably
from skerry.errors import Broken, Rejected
from skerry.wire import codec, topics
from skerry.wire.enrolment import Anchor

FOLDER_VERSION = 1
_LONGEST_VERSION = 10


@dataclass(frozen=True, slots=True)
class Identity:
    """What enrolment settled; `architecture` and `runtime` are the profile's.

    `refuse_automatic` refuses releases that no offline key has signed, by the owner's or the group's rule.
    """

    project: str
    device: str
    profile: str
    runtime: str
    architecture: str
    broker: str
    server: str
    simulated: bool = False
    refuse_automatic: bool = False

    @property
    def who(self) -> str:
        """Client id and user name: `PROJECT.DEVICE`."""
        return topics.identity(self.project, self.device)


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a device keeps until an operator has accepted it: for which join string, its ticket and its key (PEM)."""

    join_sha256: str
    device: str
    ticket: str
    key: str
    v: int = 1


class ComponentFolder:
    """The paths of one component: what belongs to one lifecycle."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lifecycle_file = path / "lifecycle.json"
        self.slots = path / "slots"
        self.fetch = path / "fetch"
        self.other = path / "other"


class StateFolder:
    """The paths in a state folder; opening one checks its version."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identity_file = path / "identity.json"
        self.anchor_file = path / "anchor.json"
        self.credentials = Credentials(
            ca=path / "broker-ca.pem", certificate=path / "device.crt", key=path / "device.key"
        )
        self.lifecycle_file = path / "lifecycle.json"
        self.outbox_file = path / "outbox.db"
        self.slots = path / "slots"
        self.fetch = path / "fetch"
        self.trust = path / "trust"
        self.components = path / "components"
        self.waiting_file = path / "enrolment.json"
        self.version_file = path / "VERSION"
        self._check_version()

    def _check_version(self) -> None:
        """Refuse a folder of a newer agent, which writes the version twice as `keep` does."""
        data = read_either(self.version_file, is_sound=is_version)
        # what is damaged says nothing; what else is in the folder is looked at by whoever needs it
        if data is not None and is_version(data) and int(data) > FOLDER_VERSION:
            raise Broken(
                f"{self.path}: expected a state folder of version {FOLDER_VERSION} or older, got {int(data)};"
                " use a newer skerry-agent, nothing was changed"
            )

    def component(self, name: str) -> ComponentFolder:
        """Return the folder of a component; that of the unnamed one is the state folder itself."""
        return ComponentFolder(self.components / topics.check_name(name, "component") if name else self.path)

    def component_names(self) -> list[str]:
        """Return the named components that have a folder; one that is on its way out has none any more."""
        folders = self.components.iterdir() if self.components.is_dir() else ()
        return sorted(each.name for each in folders if each.is_dir() and topics.is_name(each.name))

    def begin(self, names: Iterable[str]) -> bool:
        """Make the folders of named components that have none, durably; say whether there was one to make."""
        missing = [self.component(name).path for name in names if not self.component(name).path.is_dir()]
        try:
            for path in missing:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if missing:
                sync_folder(self.components)
                sync_folder(self.path)
        except OSError as error:
            raise Broken(f"{self.components}: expected to make a folder, got: {error.strerror}") from error
        return bool(missing)

    def identity(self) -> Identity:
        """Return who the device is; raises `Rejected` when it has not been enrolled."""
        data = read_either(self.identity_file, is_sound=is_identity)
        if data is None:
            raise Rejected(f"{self.path}: expected an enrolled device, got none; run skerry-agent init first")
        try:
            return codec.decode(Identity, data)
        except Rejected as error:
            raise Rejected(f"{self.identity_file}, and its copy: {error}; enrol again in another folder") from error

    @property
    def is_enrolled(self) -> bool:
        """Whether a device lives here, as far as the disk still knows."""
        return self.identity_file.exists() or read_copy(self.identity_file) is not None

    def anchor_bytes(self) -> bytes:
        """Return the roots of trust as the server gave them; raises `Broken` when they are gone."""
        try:
            data = read_either(self.anchor_file, is_sound=is_anchor)
        except OSError as error:
            raise Broken(f"{self.anchor_file}: expected the anchor, got: {error.strerror}; enrol again") from error
        if data is None:
            raise Broken(f"{self.anchor_file}: expected the anchor, got none, and no copy; enrol again")
        return data

    def anchor(self) -> Anchor:
        """Return the roots of trust that the join string pinned."""
        try:
            return codec.decode(Anchor, self.anchor_bytes())
        except Rejected as error:
            raise Rejected(f"{self.anchor_file}, and its copy: {error}; enrol again") from error

    def expect_new(self) -> None:
        """Raise `Rejected` when a device lives here already, and `Broken` when none could be kept here."""
        if self.is_enrolled:
            who = self.identity().who
            raise Rejected(f"{self.path}: expected a new state folder, got the one of {who}; use another --state")
        there = next(each for each in (self.path, *self.path.absolute().parents) if each.exists())
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise Broken(f"{self.path}: expected to write to {there}, got no permission; use another --state")

    def keep(self, identity: Identity, *, anchor: bytes, key: bytes, certificate: str, broker_ca: str) -> None:
        """Write a new identity; `identity.json` comes last, so a power cut leaves a folder that is not enrolled."""
        self._make()
        with self.lock():
            self.expect_new()
            self.keep_twice(self.version_file, f"{FOLDER_VERSION}\n".encode())
            write_durably(self.credentials.key, key, mode=0o600)
            self.keep_certificate(certificate, broker_ca=broker_ca)
            self.keep_twice(self.anchor_file, anchor)
            self.keep_twice(self.identity_file, codec.encode(identity))
            self.waiting_file.unlink(missing_ok=True)

    def keep_twice(self, file: Path, data: bytes) -> None:
        """Write a file and its second copy, for the first time: a copy alone stands for a file that was lost."""
        write_durably(file, data, mode=0o600)
        write_copy(file, data, mode=0o600)

    @property
    def has_certificate(self) -> bool:
        """Whether there is one that could be renewed."""
        return self.credentials.certificate.exists() and self.credentials.certificate.stat().st_size > 0

    def keep_certificate(self, certificate: str, *, broker_ca: str) -> None:
        """Write the certificate and what vouches for the broker, durably."""
        write_durably(self.credentials.ca, broker_ca.encode(), mode=0o600)
        write_durably(self.credentials.certificate, certificate.encode(), mode=0o600)

    def keep_refusal(self) -> None:
        """Note that the group refuses releases signed online; nothing that a server says takes this back."""
        identity = self.identity()
        if not identity.refuse_automatic:
            data = codec.encode(replace(identity, refuse_automatic=True))
            # the copy first: the other way round, a power cut in between could look like rot, and be taken back
            write_copy(self.identity_file, data, mode=0o600)
            write_durably(self.identity_file, data, mode=0o600)

    def keep_waiting(self, waiting: Waiting) -> None:
        """Write what a device needs that waits for an operator."""
        self._make()
        write_durably(self.waiting_file, codec.encode(waiting), mode=0o600)

    def waiting(self, join_sha256: str) -> Waiting | None:
        """Return what was kept for this join string, or None."""
        if not self.waiting_file.exists():
            return None
        waiting = codec.decode(Waiting, self.waiting_file.read_bytes())
        return waiting if waiting.join_sha256 == join_sha256 else None

    def _make(self) -> None:
        try:
            make_folder(self.path, mode=0o700)
            # a folder that was there before may be open to others
            self.path.chmod(0o700)
        except OSError as error:
            raise Broken(f"{self.path}: expected to make the state folder, got: {error.strerror}") from error

    def lock(self) -> IO[bytes]:
        """Make sure that no other agent runs on this folder; keep the result open."""
        path = self.path / "lock"
        try:
            file: IO[bytes] = path.open("ab")
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            # a file is locked, whoever may write it
            file = path.open("rb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise Broken(
                f"{self.path}: expected to be the only agent here, got another one running; stop it"
            ) from error
        return file

    def starts(self) -> int:
        """Count the starts of the agent, durably."""
        path = self.path / "starts"
        try:
            number = int(path.read_text()) + 1 if path.exists() else 1
        except ValueError:
            # more than it can have been, short of a start an hour
            number = int(path.stat().st_mtime) // 3600
        write_durably(path, str(number).encode(), mode=0o600)
        return number

    def last_start(self) -> tuple[int, float]:
        """Return the number of the last start that was counted, 0 for none, and how many seconds ago that was."""
        path = self.path / "starts"
        try:
            return int(path.read_text()), max(time.time() - path.stat().st_mtime, 0.0)
        except (OSError, ValueError):
            return 0, 0.0


def is_identity(data: bytes) -> bool:
    """Say whether this reads as an identity."""
    return _decodes(Identity, data)


def is_anchor(data: bytes) -> bool:
    """Say whether this reads as an anchor."""
    return _decodes(Anchor, data)


def is_version(data: bytes) -> bool:
    """Say whether this reads as the version of a state folder."""
    return data.strip().isdigit() and len(data) < _LONGEST_VERSION


def _decodes(kind: type[Identity | Anchor], data: bytes) -> bool:
    try:
        codec.decode(kind, data)
    except Rejected:
        return False
    return True
