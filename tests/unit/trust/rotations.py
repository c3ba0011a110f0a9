"""What tests of rotations do: make the next roots, sign them, hand them in, and look as a device does."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata, Root

from control_plane import image_repository, next_roots, rotation, tuf_rows
from control_plane.keys import deal_keys, held_keys
from control_plane.next_roots import RootsFile
from control_plane.plane import Plane


def present(session: Session) -> dict[str, str]:
    """Return what a rotation starts from, as the API does."""
    index = image_repository.index(session)
    return {
        "image_root": image_repository.file(session, f"{index.root}.root").decode(),
        "director_root": tuf_rows.newest_root_bytes(session, "director").decode(),
        "targets": image_repository.file(session, f"{index.targets}.targets").decode(),
    }


def online(plane: Plane, session: Session, role: str) -> RootsFile:
    """Return the unsigned roots that name the next online key of a role."""
    key = rotation.make_next(plane, session, role)
    return next_roots.rotate("watch", present(session), role, keys=[key], threshold=1, now=plane.clock())


def offline(plane: Plane, session: Session, role: str, out: Path, *, keys: int = 3, threshold: int = 2) -> RootsFile:
    """Return the unsigned roots that name new keys, made in `out`, for an offline role."""
    deal_keys([out], [role], keys=keys, threshold=threshold)
    held = held_keys([out], role, keys=keys, threshold=threshold)
    return next_roots.rotate("watch", present(session), role, keys=held, threshold=threshold, now=plane.clock())


def signed(file: RootsFile, *folders: Path) -> dict[str, bytes]:
    """Return the roots signed with the keys of the folders, as they are handed in."""
    for folder in folders:
        file = next_roots.sign(file, folder)
    return {name: text.encode() for name, text in file.next.items()}


def follow(plane: Plane, session: Session, file: RootsFile, *folders: Path) -> rotation.Followed:
    """Sign, hand in and commit."""
    followed = rotation.follow(plane, session, **signed(file, *folders))
    session.commit()
    return followed


def tidy(plane: Plane, session: Session) -> list[str]:
    """Tidy as the server does: after the commit, in a session of its own."""
    session.commit()
    return rotation.tidy(plane)


def key_files(plane: Plane) -> set[str]:
    """Return the names of the server's key files."""
    return {path.name for path in plane.home.keys.glob("*.pem")}


def edited(file: RootsFile, change: Callable[[Root], object]) -> RootsFile:
    """Return the file with each root changed before anybody signs."""
    made = {}
    for name, text in file.next.items():
        metadata: Metadata[Root] = Metadata.from_bytes(text.encode())
        change(metadata.signed)
        made[name] = metadata.to_bytes().decode()
    return replace(file, next=made)
