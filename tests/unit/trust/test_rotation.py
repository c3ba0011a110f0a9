"""Rotations of offline and online keys, seen by the server and by python-tuf's updater on a device."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, Root, Targets
from tuf.ngclient import Updater

from control_plane import director, image_repository, next_roots, rotation, staging, tuf_rows
from control_plane.key_files import load_signer, read_keys
from control_plane.keys import deal_keys, held_keys, sign_payload
from control_plane.next_roots import RootsFile
from control_plane.online_keys import OnlineSigners
from control_plane.plane import Plane
from control_plane.refusals import Conflict, Forbidden, Unknown
from control_plane.schema.devices import Device
from control_plane.staging import Edit
from skerry.errors import Rejected
from skerry.wire.messages import Assign

Look = Callable[..., Updater]


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


def image(device: Look, session: Session, name: str = "image") -> Updater:
    """Return a device's view of the image repository, which trusts the first root."""
    files = image_repository.files(session)
    return device(name, files["1.root"], files)


def directed(device: Look, session: Session, assign: Assign) -> Updater:
    """Return a device's view of its assignment, which trusts the first root."""
    texts = {role: text.encode() for role, text in assign.metadata.items()}
    version = Metadata.from_bytes(texts["targets"]).signed.version
    files = texts | {f"{version}.{role}": texts[role] for role in ("snapshot", "targets")}
    return device("director", tuf_rows.read(session, "director", "1.root"), files)


def key_files(plane: Plane) -> set[str]:
    """Return the names of the server's key files."""
    return {path.name for path in plane.home.keys.glob("*.pem")}


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
        session.add(Device(name=name, profile="p", certificate_serial="1", certificate_expires=now, enrolled_at=now))
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


# -- what is refused


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


def edited(file: RootsFile, change: Callable[[Root], object]) -> RootsFile:
    """Return the file with each root changed before anybody signs."""
    made = {}
    for name, text in file.next.items():
        metadata: Metadata[Root] = Metadata.from_bytes(text.encode())
        change(metadata.signed)
        made[name] = metadata.to_bytes().decode()
    return replace(file, next=made)


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
    session.add(Device(name="w", profile="p", certificate_serial="1", certificate_expires=now, enrolled_at=now))
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


# -- the file that key holders sign


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
