"""Who this device is, and the state folder that holds it."""

import fcntl
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from agent.link import Credentials
from skerry.delivery.durable import write_durably
from skerry.errors import Broken, Rejected
from skerry.wire import codec, topics
from skerry.wire.messages import Anchor

FOLDER_VERSION = 1


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
        self.waiting_file = path / "enrolment.json"
        version = path / "VERSION"
        if version.exists():
            _check_version(version)

    def identity(self) -> Identity:
        """Return who the device is; raises `Rejected` when it has not been enrolled."""
        if not self.identity_file.exists():
            raise Rejected(f"{self.path}: expected an enrolled device, got none; run skerry-agent init first")
        return codec.decode(Identity, self.identity_file.read_bytes())

    def anchor(self) -> Anchor:
        """Return the roots of trust that the join string pinned."""
        try:
            return codec.decode(Anchor, self.anchor_file.read_bytes())
        except OSError as error:
            raise Broken(f"{self.anchor_file}: expected the anchor, got: {error.strerror}; enrol again") from error

    def expect_new(self) -> None:
        """Raise `Rejected` when a device lives here already, and `Broken` when none could be kept here."""
        if self.identity_file.exists():
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
            write_durably(self.path / "VERSION", f"{FOLDER_VERSION}\n".encode(), mode=0o600)
            write_durably(self.credentials.key, key, mode=0o600)
            self.keep_certificate(certificate, broker_ca=broker_ca)
            write_durably(self.anchor_file, anchor, mode=0o600)
            write_durably(self.identity_file, codec.encode(identity), mode=0o600)
            self.waiting_file.unlink(missing_ok=True)

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
            write_durably(self.identity_file, codec.encode(replace(identity, refuse_automatic=True)), mode=0o600)

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
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            # a folder that was there before may be open to others
            self.path.chmod(0o700)
        except OSError as error:
            raise Broken(f"{self.path}: expected to make the state folder, got: {error.strerror}") from error

    def lock(self) -> IO[bytes]:
        """Make sure that no other agent runs on this folder; keep the result open."""
        file = (self.path / "lock").open("ab")
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


def _check_version(path: Path) -> None:
    text = path.read_text().strip()
    if not text.isdecimal():
        raise Broken(f"{path}: expected a number, got {text[:20]!r}; restore the folder or enrol again")
    if int(text) > FOLDER_VERSION:
        raise Broken(
            f"{path.parent}: expected a state folder of version {FOLDER_VERSION} or older, got {text};"
            " use a newer skerry-agent, nothing was changed"
        )
