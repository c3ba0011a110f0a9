"""One TUF repository as this device sees it: what the trust decision and a client for conformance suites share.

    repository = open_repository(fetcher, folder, root, at=now)     # the anchor's root, and what was trusted before
    repository.refresh()                                            # root, timestamp, snapshot, targets
    found = find_target(repository, "models/strokes/1/gateway/manifest.json")

Imports tuf, so the resident agent never imports it: `agent.trust.trust_child` does.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tuf.api.exceptions import ExpiredMetadataError
from tuf.api.metadata import TargetFile, Targets
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.fetcher import FetcherInterface

from agent.trust.floor import parse_moment
from skerry.delivery.durable import make_folder, sync_folder, write_durably
from skerry.errors import Rejected
from skerry.wire.manifest import GRANTED_UNTIL

MAX_ROOTS = 256
MAX_DELEGATIONS = 32
# no machine's calendar ends before it, and it fits every one
_LATEST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()


@dataclass(frozen=True, slots=True)
class Found:
    """A target and the role that lists it; `direct` when the top-level targets name that role, or are it."""

    target: TargetFile
    role: str
    direct: bool


class _Updater(Updater):
    """python-tuf's client, but durable: it syncs nothing, and a power cut could leave an empty file for a good one."""

    def _persist_file(self, filename: str, data: bytes) -> None:
        write_durably(Path(filename), data)

    def _update_root_symlink(self) -> None:
        super()._update_root_symlink()
        sync_folder(Path(self._dir))


def open_repository(
    fetcher: FetcherInterface,
    folder: Path,
    root: bytes,
    *,
    at: float,
    url: str = "metadata://",
    targets: Path | None = None,
    targets_url: str | None = None,
) -> Updater:
    """Return a repository that trusts `root` and what `folder` keeps, and judges expiry at `at` (seconds since 1970).

    Raises:
        RepositoryError: the root is none.
    """
    # where python-tuf keeps the roots; it would make it too, and not durably
    make_folder(folder / "root_history")
    updater = _Updater(
        str(folder),
        url,
        target_dir=str(targets) if targets else None,
        target_base_url=targets_url,
        fetcher=fetcher,
        config=UpdaterConfig(max_root_rotations=MAX_ROOTS, max_delegations=MAX_DELEGATIONS),
        bootstrap=root,
    )
    # private, because python-tuf reads the clock in a constructor: nothing has been judged by it at this point
    # (the first root is valid however old it is, TUF specification 5.3.10), so all of the workflow sees our moment
    trusted(updater).reference_time = datetime.fromtimestamp(min(max(at, 0.0), _LATEST), UTC)
    return updater


def find_target(repository: Updater, path: str) -> Found | None:
    """Return the target of a path after the whole client workflow, delegations included; None when nobody lists it."""
    target = repository.get_targetinfo(path)
    if target is None:
        return None
    metadata = trusted(repository)
    # iterating the set itself yields no names, and python-tuf does not say which role listed a target
    for role, signed in metadata._trusted_set.items():  # noqa: SLF001
        # the very object: another role may list the same path, and is not the one that was chosen
        if isinstance(signed, Targets) and signed.targets.get(path) is target:
            direct = role == Targets.type or metadata.contains(role, Targets.type)
            if direct and role != Targets.type:
                _check_grant(metadata, role)
            return Found(target=target, role=role, direct=direct)
    raise Rejected(f"{path}: expected a role that lists it, got none; report this")


def trusted(repository: Updater) -> TrustedMetadataSet:
    """Return what a repository trusts now: the moment, the roles by name, who delegated to them."""
    # private in python-tuf, so tests pin what is used of it
    return repository._trusted_set  # noqa: SLF001


def _check_grant(metadata: TrustedMetadataSet, role: str) -> None:
    """Raise `ExpiredMetadataError` when the grant of a role has ended: its own metadata may say what its key likes."""
    delegation = (metadata.targets.delegations.roles or {}).get(role) if metadata.targets.delegations else None
    until = delegation.unrecognized_fields.get(GRANTED_UNTIL) if delegation else None
    if until is not None and metadata.reference_time.timestamp() >= parse_moment(str(until)):
        raise ExpiredMetadataError(f"{role}: expected a grant that lasts, got one that ended {until}")
