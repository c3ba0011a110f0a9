"""A TUF repository in memory for tests of trust: right by default, and every part of it can be bent.

    repository = TufRepository()
    repository.add("models/strokes/1/gateway/manifest.json", b"...")
    repository.publish()                                     # the next targets, snapshot and timestamp
    repository.rotate("timestamp", [CryptoSigner.generate_ed25519()])      # the next root
    repository.files                                         # {"1.root.json": ..., "timestamp.json": ..., ...}

`files` is what a repository serves, by name as TUF asks for it; an attack replaces, keeps or removes some of it.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Key,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)

LIFE = timedelta(days=7)
ROOT_LIFE = timedelta(days=365)
ROLES = ("root", "timestamp", "snapshot", "targets")


def now() -> datetime:
    """Return the moment, in whole seconds as TUF writes it."""
    return datetime.now(UTC).replace(microsecond=0)


def sign(signed: Any, signers: Sequence[Signer]) -> bytes:
    """Return metadata with these signatures."""
    metadata: Metadata[Any] = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


@dataclass
class Delegated:
    """A delegated role: what it lists, its version, when it expires (None: as everything else), and who signs it."""

    signers: list[CryptoSigner]
    targets: dict[str, TargetFile] = field(default_factory=dict)
    version: int = 0
    expires: datetime | None = None
    delegations: Delegations | None = None


class TufRepository:
    """One repository, with a key for each role unless told otherwise."""

    def __init__(
        self, *, expires: datetime | None = None, signers: dict[str, list[CryptoSigner]] | None = None
    ) -> None:
        self.expires = expires or now() + LIFE
        self.root_expires = now() + ROOT_LIFE
        self.signers = signers or {role: [CryptoSigner.generate_ed25519()] for role in ROLES}
        self.thresholds = dict.fromkeys(ROLES, 1)
        self.files: dict[str, bytes] = {}
        self.targets: dict[str, TargetFile] = {}
        self.delegated: dict[str, Delegated] = {}
        self.delegations: list[DelegatedRole] = []
        self.succinct: SuccinctRoles | None = None
        self.root_version = self.targets_version = self.snapshot_version = self.timestamp_version = 0
        self.publish_root()

    @property
    def root(self) -> bytes:
        """The first root: what an anchor pins."""
        return self.files["1.root.json"]

    def newest(self) -> dict[str, bytes]:
        """Return timestamp, snapshot and targets as they were published last, by role."""
        names = ("timestamp", f"{self.snapshot_version}.snapshot", f"{self.targets_version}.targets")
        return {name.rpartition(".")[2]: self.files[f"{name}.json"] for name in names}

    def clone(self) -> "TufRepository":
        """Return another repository with the same keys, which may go its own way."""
        twin = TufRepository.__new__(TufRepository)
        twin.__dict__ = {
            **self.__dict__,
            **{name: dict(getattr(self, name)) for name in ("files", "targets", "signers")},
        }
        twin.thresholds, twin.delegations = dict(self.thresholds), list(self.delegations)
        twin.delegated = {name: Delegated(**vars(role)) for name, role in self.delegated.items()}
        return twin

    def add(self, path: str, data: bytes, *, role: str = "targets", custom: dict[str, Any] | None = None) -> None:
        """List a target; it is published by the next `publish`."""
        target = TargetFile.from_data(path, data, ["sha256"])
        if custom is not None:
            target.unrecognized_fields["custom"] = custom
        (self.targets if role == "targets" else self.delegated[role].targets)[path] = target

    def delegate(
        self, name: str, paths: Sequence[str], *, terminating: bool = True, expires: datetime | None = None
    ) -> CryptoSigner:
        """Delegate paths to a role with a key of its own; returns that key."""
        signer = CryptoSigner.generate_ed25519()
        self.delegated[name] = Delegated([signer], expires=expires)
        self.delegations.append(DelegatedRole(name, [signer.public_key.keyid], 1, terminating, paths=list(paths)))
        return signer

    def publish(self, *, targets: bool = True, snapshot: bool = True) -> None:
        """Sign the next versions: of all roles, or only of those that renew others."""
        if targets:
            self.targets_version += 1
            self._sign_targets()
        if snapshot or targets:
            self.snapshot_version += 1
            self._sign_snapshot()
        self.timestamp_version += 1
        self.sign_timestamp()

    def publish_root(self, *, signers: Sequence[CryptoSigner] | None = None) -> None:
        """Sign the next root, with the root keys unless told otherwise."""
        self.root_version += 1
        root = Root(version=self.root_version, expires=self.root_expires, consistent_snapshot=True)
        for role in ROLES:
            keys: list[Key] = [signer.public_key for signer in self.signers[role]]
            root.roles[role] = Role([key.keyid for key in keys], self.thresholds[role])
            root.keys.update({key.keyid: key for key in keys})
        self.files[f"{self.root_version}.root.json"] = sign(root, signers or self.signers["root"])

    def rotate(self, role: str, signers: list[CryptoSigner], *, threshold: int = 1) -> None:
        """Give a role other keys, in the next root; a new root is signed by the old and by the new root keys."""
        before = list(self.signers["root"])
        self.signers[role] = signers
        self.thresholds[role] = threshold
        self.publish_root(signers=[*before, *(each for each in self.signers["root"] if each not in before)])

    def sign_timestamp(self, **bent: Any) -> None:
        """Sign the timestamp as it is; `bent` replaces fields of it."""
        meta = MetaFile(self.snapshot_version)
        timestamp = Timestamp(version=self.timestamp_version, expires=self.expires, snapshot_meta=meta)
        self.files["timestamp.json"] = sign(_bent(timestamp, bent), self.signers["timestamp"])

    def _sign_snapshot(self) -> None:
        snapshot = Snapshot(version=self.snapshot_version, expires=self.expires)
        snapshot.meta["targets.json"] = MetaFile(self.targets_version)
        for name, role in self.delegated.items():
            snapshot.meta[f"{name}.json"] = MetaFile(role.version)
        self.files[f"{self.snapshot_version}.snapshot.json"] = sign(snapshot, self.signers["snapshot"])

    def _sign_targets(self) -> None:
        content = Targets(version=self.targets_version, expires=self.expires, targets=deepcopy(self.targets))
        if self.delegations or self.succinct:
            keys = {each.public_key.keyid: each.public_key for role in self.delegated.values() for each in role.signers}
            roles = {each.name: each for each in self.delegations} or None
            content.delegations = Delegations(dict(keys), roles=roles, succinct_roles=self.succinct)
        self.files[f"{self.targets_version}.targets.json"] = sign(content, self.signers["targets"])
        for name, role in self.delegated.items():
            role.version += 1
            expires = role.expires or self.expires
            listed = Targets(version=role.version, expires=expires, targets=deepcopy(role.targets))
            listed.delegations = role.delegations
            self.files[f"{role.version}.{name}.json"] = sign(listed, role.signers)


def _bent(signed: Any, fields: dict[str, Any]) -> Any:
    for name, value in fields.items():
        setattr(signed, name, value)
    return signed


def published(repository: TufRepository) -> dict[str, str]:
    """Sign the targets as they are, under the next version; return what an assignment carries, by role."""
    repository.publish()
    return {role: data.decode() for role, data in repository.newest().items()}
