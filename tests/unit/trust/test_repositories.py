"""The image repository, releases and the director, seen by python-tuf's own updater."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session
from tuf.api.exceptions import BadVersionNumberError, ExpiredMetadataError, UnsignedMetadataError
from tuf.api.metadata import Metadata, Targets

from control_plane import director, enrolment, image_repository, releases, tuf_rows
from control_plane.key_files import load_signer, read_keys
from control_plane.keys import sign_payload
from control_plane.plane import Plane
from control_plane.refusals import Forbidden, Unknown
from skerry.errors import Rejected
from skerry.wire.messages import Assign
from tests.unit.trust.releasing import Look, directed, enrol, image, release, sign, terms, train

DAY = timedelta(days=1)


# -- the image repository


def test_an_updater_finds_a_signed_release(founded: Plane, session: Session, keys: Path, device: Look) -> None:
    path = release(founded, session, keys, 1)

    target = image(device, session).get_targetinfo(path)

    assert target is not None
    assert target.hashes == {"sha256": founded.blobs.put(b"manifest 1")}
    assert path == "models/gestures/1/x86-64-gateway/manifest.json"


def test_older_live_releases_stay_listed(founded: Plane, session: Session, keys: Path, device: Look) -> None:
    first, second = (release(founded, session, keys, version) for version in (1, 2))

    view = image(device, session)

    assert view.get_targetinfo(first) is not None
    assert view.get_targetinfo(second) is not None


def test_a_release_is_not_live_below_the_threshold(founded: Plane, session: Session, keys: Path, device: Look) -> None:
    train(founded, session, 1)
    releases.stage(founded, session, model="gestures", version=1)
    first, second = sign_payload(keys, releases.payload(session, "gestures-1"))

    releases.add_signature(founded, session, "gestures-1", **first)
    releases.add_signature(founded, session, "gestures-1", **first)
    assert releases.get(session, "gestures-1").state == "staged"
    assert releases.signatures(session, "gestures-1") == ([first["keyid"]], 2)
    assert image_repository.index(session).targets == 1

    releases.add_signature(founded, session, "gestures-1", **second)
    assert releases.get(session, "gestures-1").state == "live"
    assert image_repository.index(session).targets == 2


def test_a_late_signature_changes_nothing(founded: Plane, session: Session, keys: Path) -> None:
    train(founded, session, 1)
    releases.stage(founded, session, model="gestures", version=1)
    payload = releases.payload(session, "gestures-1")
    sign(founded, session, keys, "gestures-1")
    third = load_signer(keys, read_keys(keys).of("targets")[2]).sign(payload)

    answer = releases.add_signature(founded, session, "gestures-1", keyid=third.keyid, sig=third.signature)

    assert answer.state == "live"
    assert image_repository.index(session).targets == 2


def test_a_signature_by_another_key_or_of_other_bytes_is_refused(founded: Plane, session: Session, keys: Path) -> None:
    train(founded, session, 1)
    releases.stage(founded, session, model="gestures", version=1)
    payload = releases.payload(session, "gestures-1")
    (good, _) = sign_payload(keys, payload)
    root_key = load_signer(keys, read_keys(keys).of("root")[0])

    with pytest.raises(Forbidden, match="expected a targets key"):
        releases.add_signature(
            founded, session, "gestures-1", keyid=root_key.public_key.keyid, sig=root_key.sign(payload).signature
        )
    for wrong in ("00" * 64, "no hex", ""):
        with pytest.raises(Forbidden, match="expected a signature of its payload"):
            releases.add_signature(founded, session, "gestures-1", keyid=good["keyid"], sig=wrong)
    assert releases.signatures(session, "gestures-1") == ([], 2)


def test_a_release_that_another_one_overtook_is_staged_again(founded: Plane, session: Session, keys: Path) -> None:
    train(founded, session, 1)
    releases.stage(founded, session, model="gestures", version=1)
    stale = releases.payload(session, "gestures-1")
    release(founded, session, keys, 2)

    with pytest.raises(Forbidden, match="fetch the payload again"):
        releases.add_signature(founded, session, "gestures-1", **sign_payload(keys, stale)[0])

    # the bytes that were signed would list no gestures-2
    assert sign(founded, session, keys, "gestures-1").state == "live"
    assert {path.split("/")[2] for path in image_repository.targets(session).targets} == {"1", "2"}


def test_staging_again_drops_the_signatures_of_the_old_payload(founded: Plane, session: Session, keys: Path) -> None:
    train(founded, session, 1)
    releases.stage(founded, session, model="gestures", version=1)
    payload = releases.payload(session, "gestures-1")
    releases.add_signature(founded, session, "gestures-1", **sign_payload(keys, payload)[0])

    releases.stage(founded, session, model="gestures", version=1)

    assert releases.signatures(session, "gestures-1") == ([], 2)
    assert sign(founded, session, keys, "gestures-1").state == "live"


def test_only_passed_builds_are_released(founded: Plane, session: Session) -> None:
    train(founded, session, 1, gate="refused")

    with pytest.raises(Rejected, match="compile gestures 1"):
        releases.stage(founded, session, model="gestures", version=1)
    with pytest.raises(Unknown):
        releases.stage(founded, session, model="gestures", version=2)


def test_an_updater_refuses_an_older_repository(founded: Plane, session: Session, keys: Path, device: Look) -> None:
    release(founded, session, keys, 1)
    old = image_repository.files(session)
    release(founded, session, keys, 2)
    image(device, session).refresh()

    with pytest.raises(BadVersionNumberError):
        device("image", old["1.root"], old).refresh()


def test_an_updater_refuses_targets_that_the_offline_keys_did_not_sign(
    founded: Plane, session: Session, device: Look
) -> None:
    # the worst that the online keys can do: snapshot and timestamp are genuine, the targets are their own
    forged = Targets(version=2, expires=founded.clock() + DAY)
    snapshot = tuf_rows.snapshot_of(forged, version=2, expires=founded.clock() + DAY)
    timestamp = tuf_rows.timestamp_of(snapshot, version=2, expires=founded.clock() + DAY)
    files = image_repository.files(session) | {
        "2.targets": tuf_rows.sign(forged, founded.signers.newest("snapshot")),
        "2.snapshot": tuf_rows.sign(snapshot, founded.signers.newest("snapshot")),
        "timestamp": tuf_rows.sign(timestamp, founded.signers.newest("timestamp")),
    }

    with pytest.raises(UnsignedMetadataError, match="targets was signed by 0/2 keys"):
        device("image", files["1.root"], files).refresh()


def test_targets_that_the_threshold_did_not_sign_are_not_published(founded: Plane, session: Session) -> None:
    forged: Metadata[Targets] = Metadata(Targets(version=2, expires=founded.clock() + DAY))
    forged.sign(founded.signers.newest("snapshot"))

    with pytest.raises(Rejected, match="enough valid signatures"):
        image_repository.publish_targets(session, founded.signers, forged, now=founded.clock())


def test_metadata_is_renewed_at_half_of_its_life_and_not_before(founded: Plane, session: Session, clock: Any) -> None:
    assert not image_repository.renew(session, founded.signers, now=clock())

    clock.turn(timedelta(hours=13))
    assert image_repository.renew(session, founded.signers, now=clock())
    assert not image_repository.renew(session, founded.signers, now=clock())
    assert (image_repository.index(session).timestamp, image_repository.index(session).snapshot) == (2, 1)

    clock.turn(timedelta(days=4))
    assert image_repository.renew(session, founded.signers, now=clock())
    assert (image_repository.index(session).timestamp, image_repository.index(session).snapshot) == (3, 2)


def test_an_updater_refuses_a_repository_that_nobody_renewed(
    plane: Plane, keys: Path, clock: Any, device: Look
) -> None:
    from control_plane import ceremony
    from control_plane.keys import hold_ceremony
    from control_plane.online_keys import describe_online

    clock.turn(-2 * DAY)
    made = hold_ceremony(keys, describe_online(plane.signers, "watch"), now=clock())
    with plane.sessions() as session:
        ceremony.take(plane, session, **made)

        with pytest.raises(ExpiredMetadataError, match="timestamp"):
            image(device, session).refresh()

        clock.turn(2 * DAY)
        image_repository.renew(session, plane.signers, now=clock())
        image(device, session).refresh()


def test_what_is_published_is_what_the_index_names(founded: Plane, session: Session, keys: Path) -> None:
    for version in (1, 2, 3):
        release(founded, session, keys, version)

    assert set(image_repository.files(session)) == {"1.root", "4.targets", "4.snapshot", "timestamp"}
    assert image_repository.superseded(session) == ["2.targets", "2.snapshot"]
    index = image_repository.index(session)
    assert (index.root, index.targets, index.snapshot, index.timestamp) == (1, 4, 4, 4)


# -- the director


def test_a_device_finds_one_target_that_both_repositories_list_alike(
    founded: Plane, session: Session, keys: Path, device: Look
) -> None:
    path = release(founded, session, keys, 1)
    enrol(session, founded)

    assign = director.assign(founded, session, device="wearer-8", terms=terms(rollback=True), target=path)

    told = directed(device, session, assign).get_targetinfo(path)
    genuine = image(device, session).get_targetinfo(path)
    assert told is not None
    assert genuine is not None
    assert (told.length, told.hashes) == (genuine.length, genuine.hashes)
    assert told.custom["device"] == "wearer-8"
    assert told.custom["counter"] == 1
    assert told.custom["rollback"] is True
    assert told.custom["issued"] == founded.clock().strftime("%Y-%m-%dT%H:%M:%SZ")


def test_each_assignment_takes_the_next_counter_and_the_one_before_is_refused(
    founded: Plane, session: Session, keys: Path, device: Look
) -> None:
    path = release(founded, session, keys, 1)
    enrol(session, founded)
    first, second = (director.assign(founded, session, device="wearer-8", terms=terms(), target=path) for _ in range(2))

    directed(device, session, second).refresh()

    assert director.terms_of(session, "wearer-8")[0].counter == 2
    with pytest.raises(BadVersionNumberError):
        directed(device, session, first).refresh()


def test_counters_are_each_devices_own(founded: Plane, session: Session, keys: Path) -> None:
    path = release(founded, session, keys, 1)
    for name in ("wearer-8", "wearer-9"):
        enrol(session, founded, name)
        director.assign(founded, session, device=name, terms=terms(), target=path)

    counters = [director.terms_of(session, name)[0].counter for name in ("wearer-8", "wearer-9")]
    assert counters == [1, 1]
    assert director.assigned(session) == ["wearer-8", "wearer-9"]


def test_what_the_image_repository_does_not_list_cannot_be_assigned(founded: Plane, session: Session) -> None:
    enrol(session, founded)

    with pytest.raises(Unknown, match="is its release live"):
        director.assign(founded, session, device="wearer-8", terms=terms(), target="models/x/1/y/manifest.json")
    with pytest.raises(Unknown):
        director.current(session, "wearer-8")


def test_an_assignment_is_renewed_at_half_of_its_life_as_the_same_deployment(
    founded: Plane, session: Session, keys: Path, clock: Any, device: Look
) -> None:
    path = release(founded, session, keys, 1)
    enrol(session, founded)
    before = director.assign(founded, session, device="wearer-8", terms=terms(), target=path)
    assert director.due(session, clock()) == []

    clock.turn(4 * DAY)
    assert director.due(session, clock()) == ["wearer-8"]
    director.renew(founded, session, "wearer-8")
    assert director.due(session, clock()) == []

    renewed, target = director.terms_of(session, "wearer-8")
    assert (renewed.counter, renewed.deployment, target.path) == (2, "d1", path)
    directed(device, session, before).refresh()
    directed(device, session, director.current(session, "wearer-8")).refresh()


def test_an_assignment_signed_by_another_key_is_refused(
    founded: Plane, session: Session, keys: Path, device: Look
) -> None:
    path = release(founded, session, keys, 1)
    enrol(session, founded)
    assign = director.assign(founded, session, device="wearer-8", terms=terms(), target=path)
    targets = tuf_rows.parse(Targets, assign.metadata["targets"].encode()).signed
    forged = Assign(assign.metadata | {"targets": tuf_rows.sign(targets, founded.signers.newest("snapshot")).decode()})

    with pytest.raises(UnsignedMetadataError, match="targets was signed by 0/1 keys"):
        directed(device, session, forged).refresh()


def test_the_anchor_is_what_the_first_trust_of_a_device_is(founded: Plane, session: Session) -> None:
    from skerry.wire.codec import decode
    from skerry.wire.enrolment import Anchor

    anchor = decode(Anchor, founded.home.anchor.read_bytes())

    assert anchor.image_root.encode() == tuf_rows.read(session, "image", "1.root")
    assert anchor.director_root.encode() == tuf_rows.read(session, "director", "1.root")
    assert len(enrolment.anchor_sha256(founded)) == 64
