"""Content keys: one for each artifact, sealed to whom it is assigned to."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from control_plane import director, sealing
from control_plane.plane import Plane
from control_plane.refusals import Conflict, Unknown
from control_plane.schema.delivery import SealedArtifact
from control_plane.schema.devices import Device
from skerry.delivery.sealed import open_key
from skerry.errors import Rejected
from skerry.wire.messages import Content, Terms
from tests.device_keys import PRIVATE, make_pair
from tests.unit.trust.releasing import enrol, release

TERMS = Terms(device="", counter=0, issued="", deployment="d1", release="gestures-1")


@pytest.fixture
def assigned(founded: Plane, session: Session, keys: Path) -> Content:
    """Return the content that a device is told when a release is assigned to it."""
    path = release(founded, session, keys, 1)
    enrol(session, founded)
    director.assign(founded, session, device="wearer-8", terms=TERMS, target=path)
    return told(session)


def told(session: Session, device: str = "wearer-8") -> Content:
    """Return what a device is told now."""
    content = director.terms_of(session, device)[0].content
    assert content is not None
    return content


def test_an_assignment_carries_the_content_key_sealed_to_its_device(
    founded: Plane, session: Session, assigned: Content
) -> None:
    row = session.get_one(SealedArtifact, founded.blobs.put(b"manifest 1"))

    assert open_key(assigned.key, PRIVATE, who="watch.wearer-8") == row.key
    assert set(assigned.files) == {"manifest.json", "model.onnx"}
    for who, private in (("watch.wearer-9", PRIVATE), ("watch.wearer-8", make_pair()[0])):
        with pytest.raises(Rejected):
            open_key(assigned.key, private, who=who)


def test_a_renewal_seals_the_same_key_anew(
    founded: Plane, session: Session, assigned: Content, clock: Callable[[], object]
) -> None:
    clock.turn(timedelta(days=4))  # type: ignore[attr-defined]
    director.renew(founded, session, "wearer-8")

    renewed = told(session)
    assert renewed.files == assigned.files
    assert renewed.key != assigned.key
    assert open_key(renewed.key, PRIVATE, who="watch.wearer-8") == open_key(assigned.key, PRIVATE, who="watch.wearer-8")


def test_two_artifacts_have_two_keys(founded: Plane, session: Session, keys: Path) -> None:
    for version in (1, 2):
        release(founded, session, keys, version)
    rows = [sealing.seal(founded, session, founded.blobs.put(b"manifest %d" % version)) for version in (1, 2)]

    assert rows[0].key != rows[1].key
    assert not set(rows[0].files.values()) & set(rows[1].files.values())


def test_an_artifact_is_sealed_once(founded: Plane, session: Session, assigned: Content) -> None:
    assert sealing.seal(founded, session, founded.blobs.put(b"manifest 1")).files == assigned.files


def test_a_device_without_a_public_key_is_assigned_nothing(founded: Plane, session: Session, keys: Path) -> None:
    path = release(founded, session, keys, 1)
    enrol(session, founded)
    session.get_one(Device, "wearer-8").public_key = ""

    with pytest.raises(Conflict, match="it has no key to seal to: renew its certificate"):
        director.assign(founded, session, device="wearer-8", terms=TERMS, target=path)


def test_what_no_build_made_cannot_be_sealed(founded: Plane, session: Session) -> None:
    with pytest.raises(Unknown, match="expected one that was built"):
        sealing.seal(founded, session, "0" * 64)
