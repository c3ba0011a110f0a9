"""Owns the change of signing keys: next online keys, the roots that name them, and the switch.

    make_next      a new key lies ready; nothing else has changed
    follow         offline-signed roots came back: in one transaction they are ours, and what the server signs for the
                   image repository is signed anew by what they name
    tidy           after the commit: online keys that no root and no delegation names any more are deleted

A crash between any two of these leaves a server that signs what devices accept (`control_plane.online_keys`); `tidy` is
called again at the next start. Assignments are signed anew by the renewal (`director.due`), in short transactions.
"""

from dataclasses import dataclass

from securesystemslib.signer import Key
from sqlalchemy.orm import Session
from tuf.api.metadata import Root

from control_plane import delegated, director, events, image_repository, staging
from control_plane.online_keys import ONLINE_ROLES
from control_plane.plane import Plane
from control_plane.refusals import Unknown
from skerry.errors import Rejected


@dataclass(frozen=True, slots=True)
class Followed:
    """The versions of the roots that are new; 0 for a repository that keeps its root."""

    image_root: int = 0
    director_root: int = 0


def make_next(plane: Plane, session: Session, role: str) -> Key:
    """Return the public part of the key that is to follow for an online role; asking again returns the same one.

    Raises:
        Unknown: the role is no online one, or no ceremony was held.
    """
    if role not in ONLINE_ROLES:
        raise Unknown(f"online keys: expected one of {', '.join(ONLINE_ROLES)}, got {role!r:.80}")
    return plane.signers.make_next(role, named=named(session))


def follow(
    plane: Plane, session: Session, *, image_root: bytes = b"", director_root: bytes = b"", targets: bytes = b""
) -> Followed:
    """Follow the next root of one repository or of both; `targets` as `image_repository.follow_root` has it.

    What is followed already is not followed again, so an answer that got lost is asked for again. After the commit
    call `tidy`, and publish.

    Raises:
        Conflict: a root is not the next version, or other targets were published in between.
        Rejected: a root is not signed as it must be, or the two repositories would have different root keys.
    """
    now = plane.clock()
    new_image = new_director = None
    if image_root:
        new_image = image_repository.follow_root(session, plane.signers, image_root, targets=targets, now=now)
    if director_root:
        new_director = director.follow_root(session, plane.signers, director_root, now=now)
    image, directors = image_repository.root(session), director.root(session)
    if _root_role(image) != _root_role(directors):
        # root keys that were lost or leaked must not stay good for half of what devices trust
        raise Rejected("roots: expected the same root keys and threshold in both repositories; hand in both roots")
    for repository, root in (("image", new_image), ("director", new_director)):
        if root is not None:
            text = f"{repository} repository: root {root.version} is followed"
            events.record(session, "trust", plane.settings.project, text, repository=repository, version=root.version)
    return Followed(new_image.version if new_image else 0, new_director.version if new_director else 0)


def named(session: Session) -> set[str]:
    """Return the ids of the keys that the newest roots and the present delegations name; raises `Unknown`."""
    keyids: set[str] = set()
    for root in (image_repository.root(session), director.root(session)):
        keyids |= set(root.keys)
    for role in delegated.roles(image_repository.targets(session)).values():
        keyids |= set(role.keyids)
    return keyids


def tidy(plane: Plane) -> list[str]:
    """Delete online keys that others have followed, or whose grant was withdrawn; return their ids.

    Keys that lie ready for a root or a grant that is still being signed stay. Nothing before the ceremony.
    """
    # a writing session: nobody stages a grant with a key that is being deleted
    with plane.sessions.begin() as session:
        try:
            keep = named(session)
        except Unknown:
            return []
        grants = [staged.edit.grant for staged in staging.waiting(session) if staged.edit.grant]
        wanted = keep | {str(grant.key["keyid"]) for grant in grants}
        return [*plane.signers.forget(keep), *plane.signers.forget_automatic(wanted)]


def _root_role(root: Root) -> tuple[frozenset[str], int]:
    return frozenset(root.roles[Root.type].keyids), root.roles[Root.type].threshold
