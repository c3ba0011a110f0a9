"""Owns what a root must be before this server follows it: the founding one, and each that comes after.

The offline keys decide what a root says, with one exception: the online roles must name keys that this server holds,
or it could sign nothing that devices accept. All else is TUF 5.3: the next version, signed by the threshold of the root
before and by its own.
"""

from collections.abc import Mapping
from datetime import datetime

from tuf.api.metadata import Metadata, Root

from control_plane import tuf_rows
from control_plane.keys import DIRECTOR_ROLES
from control_plane.online_keys import OnlineSigners
from control_plane.refusals import Conflict
from skerry.errors import Rejected

# which of our keys signs for which role of a repository
IMAGE_ONLINE: Mapping[str, str] = {"snapshot": "snapshot", "timestamp": "timestamp"}
DIRECTOR_ONLINE: Mapping[str, str] = dict.fromkeys(DIRECTOR_ROLES, "director")


def check_first(body: bytes, *, online: Mapping[str, str], signers: OnlineSigners, now: datetime) -> Root:
    """Check a founding root: version 1, signed by its own threshold, alive, naming our keys.

    Raises:
        Rejected: any of these does not hold.
    """
    metadata = tuf_rows.parse(Root, body)
    root = metadata.signed
    tuf_rows.verify(root, metadata)
    if root.version != 1:
        raise Rejected(f"root: expected version 1, got version {root.version}")
    _check(root, online=online, signers=signers, now=now)
    return root


def check_next(
    body: bytes, *, before: Root, online: Mapping[str, str], signers: OnlineSigners, now: datetime
) -> Metadata[Root]:
    """Check the root that follows `before`, and return it with the signatures that count and no others.

    Raises:
        Conflict: it is not the next version.
        Rejected: the threshold of the old or of the new root keys is not met, it has expired, or it names other keys
            than ours for an online role.
    """
    metadata = tuf_rows.parse(Root, body)
    root = metadata.signed
    if root.version != before.version + 1:
        raise Conflict(
            f"root: expected version {before.version + 1}, got {root.version}; rotate from what is published now"
        )
    result = root.get_root_verification_result(before, metadata.signed_bytes, metadata.signatures)
    for whose, part in (("the present root", result.first), ("the new root", result.second)):
        if not part:
            raise Rejected(
                f"root {root.version}: expected {part.threshold} signatures by keys of {whose}, got "
                f"{len(part.signed)} that hold; sign it further: skerry keys sign FILE --keys FOLDER"
            )
    _check(root, online=online, signers=signers, now=now)
    metadata.signatures = {keyid: each for keyid, each in metadata.signatures.items() if keyid in result.signed}
    return metadata


def _check(root: Root, *, online: Mapping[str, str], signers: OnlineSigners, now: datetime) -> None:
    if not root.consistent_snapshot:
        raise Rejected(f"root {root.version}: expected consistent snapshots, got none")
    if root.is_expired(now):
        raise Rejected(
            f"root: expected one that is alive, got one that expired {root.expires:%Y-%m-%d}; check the clocks"
        )
    for role, ours in online.items():
        named = root.roles[role]
        if named.threshold != 1 or len(named.keyids) != 1 or not signers.holds(ours, named.keyids[0]):
            raise Rejected(
                f"root: expected the key of this server for {role}, got another; make the root anew with what "
                "/v1/trust/online-keys says"
            )
