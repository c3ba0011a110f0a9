"""Rotations of offline and online keys, seen by the server and by python-tuf's updater on a device."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata

from control_plane import director, image_repository, next_roots, rotation, staging, tuf_rows
from control_plane.keys import sign_payload
from control_plane.online_keys import OnlineSigners
from control_plane.plane import Plane
from control_plane.refusals import Conflict, Forbidden, Unknown
from control_plane.staging import Edit
from skerry.errors import Rejected
from tests.device_rows import enrolled
from tests.unit.trust.releasing import Look, directed, image
from tests.unit.trust.rotations import follow, key_files, offline, online, signed, tidy


@pytest.mark.parametrize("role", ["snapshot", "timestamp"])
def test_an_online_key_is_followed_by_devices_and_the_old_one_deleted(
    founded: Plane, session: Session, keys: Path, device: Look, clock: Any, role: str
) -> None:
    image(device, session).refresh()
    old = founded.signers.newest(role).public_key.keyid

    assert follow(founded, session, online(founded, session, role), keys).image_root == 2
    assert tidy(founded, session) == [old]

    assert key_files(founded) == {"snapshot.pem", "timestamp.pem", "director.pem"} - {f"{role}.pem"} | {f"{role}-2.pem"}
    image(device, session).refresh()
    clock.turn(timedelta(days=4))
    assert image_repository.renew(session, founded.signers, now=clock())
    image(device, session).refresh()
    image(device, session, "a newcomer").refresh()


def test_a_device_that_has_not_seen_the_new_root_yet_verifies_what_is_published_with_it(
    founded: Plane, session: Session, keys: Path, device: Look
) -> None:
    for role in ("snapshot", "timestamp"):
        before = image_repository.files(session)
        follow(founded, session, online(founded, session, role), keys)
        now = image_repository.files(session)

        # a broker is no database: the timestamp may be there before the root
        hidden = [name for name in now if name.endswith(".root") and name not in before]
        device(f"half-way {role}", now["1.root"], {name: now[name] for name in now if name not in hidden}).refresh()


def test_the_next_key_signs_nothing_before_a_root_names_it(
    founded: Plane, session: Session, device: Look, clock: Any
) -> None:
    first = rotation.make_next(founded, session, "timestamp")
    assert rotation.make_next(founded, session, "timestamp").keyid == first.keyid
    assert tidy(founded, session) == []

    clock.turn(timedelta(hours=13))
    image_repository.renew(session, founded.signers, now=clock())

    timestamp = Metadata.from_bytes(image_repository.file(session, "timestamp"))
    assert first.keyid not in timestamp.signatures
    image(device, session).refresh()
    with pytest.raises(Unknown, match="expected one of snapshot, timestamp, director"):
        rotation.make_next(founded, session, "root")


def test_assignments_follow_the_directors_key_one_by_one(
    founded: Plane, session: Session, keys: Path, device: Look
) -> None:
    now = founded.clock()
    for name in ("wearer-8", "wearer-9"):
        session.add(enrolled(name, now))
        session.flush()
        director.decommission(founded, session, name)
    session.commit()
    directed(device, session, director.current(session, "wearer-8")).refresh()

    assert follow(founded, session, online(founded, session, "director"), keys) == rotation.Followed(0, 2)
    tidy(founded, session)
    # not signed anew yet: with the new root it would be a forgery, so that root is not handed out
    assert "2.root" not in director.current(session, "wearer-8").metadata
    directed(device, session, director.current(session, "wearer-8")).refresh()
    assert director.due(session, founded.clock()) == ["wearer-8", "wearer-9"]

    director.renew(founded, session, "wearer-8")
    assert director.due(session, founded.clock()) == ["wearer-9"]
    assert "2.root" in director.current(session, "wearer-8").metadata
    assert "2.root" not in director.current(session, "wearer-9").metadata
    directed(device, session, director.current(session, "wearer-8")).refresh()
    assert director.file(session, "wearer-8", "2.root") == tuf_rows.read(session, "director", "2.root")
    for missing in ("3.root", "1.targets", "targets", "2.timestamp", "2.secrets"):
        with pytest.raises(Unknown):
            director.file(session, "wearer-8", missing)


def test_new_root_keys_hold_in_both_repositories(
    founded: Plane, session: Session, keys: Path, device: Look, tmp_path: Path
) -> None:
    image(device, session).refresh()

    followed = follow(founded, session, offline(founded, session, "root", tmp_path / "new"), keys, tmp_path / "new")

    assert followed == rotation.Followed(2, 2)
    image(device, session).refresh()
    # from here on the old keys sign nothing, and the new ones do
    file = online(founded, session, "timestamp")
    with pytest.raises(Rejected, match="expected a key that the old or the new roots name"):
        next_roots.sign(file, keys)
    follow(founded, session, file, tmp_path / "new")
    image(device, session).refresh()


def give(plane: Plane, session: Session, folder: Path, name: str, *, count: int = 2) -> bool:
    """Give `count` signatures of a folder's targets keys to a staged release; return whether it is published."""
    payload = staging.payload(session, "release", name)
    done = [
        staging.add_signature(plane, session, "release", name, keyid=each["keyid"], sig=each["sig"])
        for each in sign_payload(folder, payload)[:count]
    ]
    return done[-1]


def test_new_targets_keys_sign_again_what_is_published(
    founded: Plane, session: Session, keys: Path, device: Look, tmp_path: Path
) -> None:
    entry = {"length": 1, "hashes": {"sha256": "00" * 32}}
    for name in ("published", "waits"):
        staging.stage(session, "release", name, Edit(add={name: entry}), now=founded.clock())
    assert give(founded, session, keys, "published")
    assert not give(founded, session, keys, "waits", count=1)
    image(device, session).refresh()

    file = offline(founded, session, "targets", tmp_path / "new", keys=2, threshold=1)
    follow(founded, session, file, keys, tmp_path / "new")

    for view in ("image", "a newcomer"):
        assert image(device, session, view).get_targetinfo("published") is not None
    # also for whom the new root has not reached yet
    files = image_repository.files(session)
    device("half-way", files["1.root"], {name: body for name, body in files.items() if name != "2.root"}).refresh()

    # a signature of an old key counts no more
    assert staging.signatures(session, "release", "waits") == ([], 1)
    with pytest.raises(Forbidden, match="expected a targets key of the root"):
        give(founded, session, keys, "waits")
    assert give(founded, session, tmp_path / "new", "waits")
    assert image(device, session).get_targetinfo("waits") is not None


def test_targets_that_the_new_keys_did_not_sign_again_are_refused(
    founded: Plane, session: Session, keys: Path, tmp_path: Path
) -> None:
    made = signed(offline(founded, session, "targets", tmp_path / "new"), keys)

    with pytest.raises(Rejected, match="published targets to be signed by 2 of its targets keys, got 0"):
        rotation.follow(founded, session, **made)
    session.rollback()
    assert image_repository.root(session).version == 1


def test_targets_that_were_published_during_the_rotation_ask_for_it_again(
    founded: Plane, session: Session, keys: Path, tmp_path: Path
) -> None:
    made = signed(offline(founded, session, "targets", tmp_path / "new"), keys, tmp_path / "new")
    payload = staging.stage(session, "renewal", "targets", Edit(), now=founded.clock())
    for each in sign_payload(keys, payload):
        staging.add_signature(founded, session, "renewal", "targets", keyid=each["keyid"], sig=each["sig"])

    with pytest.raises(Conflict, match="begin the rotation again"):
        rotation.follow(founded, session, **made)


def test_a_device_that_slept_through_rotations_follows_the_chain(
    founded: Plane, session: Session, keys: Path, device: Look, tmp_path: Path
) -> None:
    image(device, session).refresh()
    holders = keys
    for number in range(3):
        new = tmp_path / f"root-{number}"
        follow(founded, session, offline(founded, session, "root", new), holders, new)
        holders = new
        follow(founded, session, online(founded, session, "timestamp"), holders)
        tidy(founded, session)

    assert image_repository.root(session).version == 7
    image(device, session).refresh()
    lost = {name: body for name, body in image_repository.files(session).items() if name != "4.root"}
    with pytest.raises(UnsignedMetadataError, match="timestamp"):
        device("without one link", lost["1.root"], lost).refresh()


# -- stops in between


def reopened(plane: Plane) -> Plane:
    """Return the plane as a server sees it that starts now: its keys come from the disk."""
    return replace(plane, signers=OnlineSigners(plane.home.keys))


@pytest.mark.parametrize("stop", ["key made", "before the commit", "after the commit", "old key unlisted"])
@pytest.mark.parametrize("role", ["timestamp", "director"])
def test_a_server_that_stops_between_two_steps_goes_on_signing(
    founded: Plane,
    session: Session,
    keys: Path,
    device: Look,
    clock: Any,
    monkeypatch: pytest.MonkeyPatch,
    stop: str,
    role: str,
) -> None:
    now = founded.clock()
    session.add(enrolled("w", now))
    session.flush()
    director.decommission(founded, session, "w")
    session.commit()
    file = online(founded, session, role)
    if stop != "key made":
        rotation.follow(founded, session, **signed(file, keys))
    if stop in ("key made", "before the commit"):
        session.rollback()
    else:
        session.commit()
    if stop == "old key unlisted":
        with monkeypatch.context() as power:
            power.setattr(Path, "unlink", _stop)
            with pytest.raises(KeyboardInterrupt):
                tidy(founded, session)

    again = reopened(founded)
    clock.turn(timedelta(days=4))
    image_repository.renew(session, again.signers, now=clock())
    for name in director.due(session, clock()):
        director.renew(again, session, name)
    session.commit()
    image(device, session).refresh()
    directed(device, session, director.current(session, "w")).refresh()

    # and it is finished as if nothing had been
    if stop in ("key made", "before the commit"):
        follow(again, session, file, keys)
    tidy(again, session)
    for name in director.due(session, clock()):
        director.renew(again, session, name)
    assert again.signers.newest(role).public_key.keyid in rotation.named(session)
    image(device, session).refresh()
    directed(device, session, director.current(session, "w")).refresh()


def _stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt
