"""Rotations that are refused: roots below a threshold, of no use here, for one repository alone, or there already."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata, Root

from control_plane import director, image_repository, next_roots, rotation
from control_plane.key_files import load_signer, read_keys
from control_plane.next_roots import RootsFile
from control_plane.plane import Plane
from skerry.errors import Rejected
from tests.unit.trust.rotations import edited, offline, present, signed


def by(folder: Path, numbers: Sequence[int], file: RootsFile) -> RootsFile:
    """Return the file signed by some of a folder's root keys."""
    entries = [read_keys(folder).of("root")[number] for number in numbers]
    made = {}
    for name, text in file.next.items():
        metadata: Metadata[Any] = Metadata.from_bytes(text.encode())
        for entry in entries:
            metadata.sign(load_signer(folder, entry), append=True)
        made[name] = metadata.to_bytes().decode()
    return replace(file, next=made)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ((0, 1, 2), (), "2 signatures by keys of the new root, got 0"),
        ((), (0, 1, 2), "2 signatures by keys of the present root, got 0"),
        ((0,), (0, 1), "2 signatures by keys of the present root, got 1"),
        ((0, 1), (2,), "2 signatures by keys of the new root, got 1"),
        # the same key twice is one signature
        ((0, 0), (0, 1), "2 signatures by keys of the present root, got 1"),
    ],
)
def test_a_root_below_either_threshold_is_not_followed(
    founded: Plane,
    session: Session,
    keys: Path,
    tmp_path: Path,
    old: Sequence[int],
    new: Sequence[int],
    reason: str,
) -> None:
    file = by(tmp_path / "new", new, by(keys, old, offline(founded, session, "root", tmp_path / "new")))

    assert next_roots.missing(file)
    with pytest.raises(Rejected, match=reason):
        rotation.follow(founded, session, **signed(file))


def _skip(root: Root) -> None:
    root.version += 1


def _expire(root: Root) -> None:
    root.expires = datetime.fromisoformat("2020-01-01T00:00:00+00:00")


def _inconsistent(root: Root) -> None:
    root.consistent_snapshot = False


def _foreign(root: Root) -> None:
    root.roles["timestamp"].keyids = root.roles["root"].keyids[:1]


def _doubled(root: Root) -> None:
    root.roles["timestamp"].keyids = [*root.roles["timestamp"].keyids, root.roles["root"].keyids[0]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_skip, "expected version 2, got 3"),
        (_expire, "expired 2020-01-01"),
        (_inconsistent, "consistent snapshots"),
        (_foreign, "expected the key of this server for timestamp"),
        (_doubled, "expected the key of this server for timestamp"),
    ],
)
def test_a_root_that_this_server_or_no_device_could_use_is_not_followed(
    founded: Plane, session: Session, keys: Path, change: Callable[[Root], object], reason: str
) -> None:
    file = edited(next_roots.renew("watch", present(session), now=founded.clock()), change)

    with pytest.raises(Rejected, match=reason):
        rotation.follow(founded, session, **signed(file, keys))
    session.rollback()
    assert image_repository.root(session).version == director.root(session).version == 1


def test_root_keys_change_in_both_repositories_or_in_none(
    founded: Plane, session: Session, keys: Path, tmp_path: Path
) -> None:
    made = signed(offline(founded, session, "root", tmp_path / "new"), keys, tmp_path / "new")

    for half in ("image_root", "director_root"):
        with pytest.raises(Rejected, match="expected the same root keys and threshold in both repositories"):
            rotation.follow(founded, session, **{half: made[half]})
        session.rollback()


def test_what_is_followed_already_is_not_followed_again(founded: Plane, session: Session, keys: Path) -> None:
    made = signed(next_roots.renew("watch", present(session), now=founded.clock()), keys)

    assert rotation.follow(founded, session, **made) == rotation.Followed(2, 2)
    assert rotation.follow(founded, session, **made) == rotation.Followed(0, 0)


def test_signatures_that_do_not_count_are_not_published(founded: Plane, session: Session, keys: Path) -> None:
    file = next_roots.renew("watch", present(session), now=founded.clock())
    made = {}
    for name, text in file.next.items():
        metadata: Metadata[Any] = Metadata.from_bytes(text.encode())
        metadata.sign(founded.signers.newest("snapshot"))
        made[name] = metadata.to_bytes().decode()

    rotation.follow(founded, session, **signed(replace(file, next=made), keys))

    published = Metadata.from_bytes(image_repository.file(session, "2.root"))
    assert set(published.signatures) == {entry.keyid for entry in read_keys(keys).of("root")}
