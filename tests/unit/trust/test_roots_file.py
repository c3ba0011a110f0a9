"""The file of next roots that key holders sign: what it shows them, and which of it they do not sign."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata, Root, Targets

from control_plane import image_repository, next_roots
from control_plane.keys import deal_keys
from control_plane.plane import Plane
from skerry.errors import Rejected
from tests.unit.trust.rotations import edited, offline, online, present


def test_what_a_rotation_changes_is_shown_against_a_root_that_the_holder_signed(
    founded: Plane, session: Session, keys: Path, tmp_path: Path
) -> None:
    file = online(founded, session, "timestamp")

    shown = next_roots.show(file, keys)

    assert shown.checked
    old = image_repository.root(session).roles["timestamp"].keyids[0][:8]
    new = founded.signers.newest("timestamp").public_key.keyid[:8]
    assert [line for line in shown.lines if line.startswith("~")] == [f"~ timestamp: 1 of {old} becomes 1 of {new}"]

    # with nothing to check it against, everything is shown
    deal_keys([tmp_path / "other"], ["root"], keys=1, threshold=1)
    unchecked = next_roots.show(file, tmp_path / "other")
    assert not unchecked.checked
    assert len([line for line in unchecked.lines if line.startswith("+ ")]) > 4


def test_a_root_that_lowers_a_threshold_cannot_hide_behind_a_false_present(
    founded: Plane, session: Session, keys: Path
) -> None:
    """A server that shows a present root of its own making: the holder's keys did not sign it, so all is new."""
    file = next_roots.renew("watch", present(session), now=founded.clock())

    def lower(root: Root) -> None:
        root.roles["targets"].threshold = 1

    lowered = edited(file, lower)
    forged = edited(replace(file, next=file.present), lower).next

    shown = next_roots.show(replace(lowered, present=forged), keys)

    assert not shown.checked
    assert any(line.startswith("+ targets: 1 of ") for line in shown.lines)
    assert any("~ targets: 2 of" in line and "becomes 1 of" in line for line in next_roots.show(lowered, keys).lines)


def test_other_targets_are_not_signed_as_the_published_ones(
    founded: Plane, session: Session, keys: Path, tmp_path: Path
) -> None:
    file = offline(founded, session, "targets", tmp_path / "new")
    forged = Metadata(Targets(version=1, expires=founded.clock() + timedelta(days=1))).to_bytes().decode()

    with pytest.raises(Rejected, match="do not sign it"):
        next_roots.sign(replace(file, next=file.next | {"targets": forged}), tmp_path / "new")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 100_000,
        b'{"format":"skerry-roots-1"}',
        b'{"format":"skerry-roots-1","project":"w","next":{}}',
        b'{"format":"skerry-roots-1","project":"w","next":{"image_root":"{}"}}',
        b'{"format":"skerry-roots-1","project":"w","next":{"other":"{}"}}',
    ],
)
def test_a_file_that_is_none_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(Rejected) as refused:
        next_roots.read(data, "next.json")
    assert "\n" not in str(refused.value)


def test_a_file_that_travels_is_the_same_when_it_comes_back(founded: Plane, session: Session) -> None:
    file = online(founded, session, "snapshot")

    assert next_roots.read(next_roots.write(file), "next.json") == file
