"""Grants: an online key of a model's own, within its paths and until its end, seen by python-tuf's updater."""

from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session
from tuf.api.exceptions import ExpiredMetadataError, UnsignedMetadataError
from tuf.api.metadata import Metadata, TargetFile, Targets

from control_plane import approval, delegated, grants, image_repository, rotation, staging, tuf_rows
from control_plane.keys import sign_payload
from control_plane.online_keys import OnlineSigners
from control_plane.plane import Plane
from control_plane.refusals import Conflict, Unknown
from control_plane.schema.models import ModelVersion
from control_plane.schema.releases import Release
from skerry.errors import Rejected
from skerry.wire.manifest import GRANTED_UNTIL
from tests.unit.trust.releasing import Look, image

DAY = timedelta(days=1)
ROLE = "automatic-gestures"


@pytest.fixture
def model(founded: Plane, session: Session) -> str:
    """Record a model."""
    now = founded.clock()
    session.add(ModelVersion(model="gestures", version=1, dataset="d", bundle="0" * 64, trained_at=now))
    session.commit()
    return "gestures"


def sign(plane: Plane, session: Session, keys: Path, kind: str, name: str) -> None:
    """Sign what waits with the offline keys, publish it and tidy as the server does."""
    then = partial(grants.published, kind=kind) if kind != "release" else None
    for each in sign_payload(keys, staging.payload(session, kind, name)):
        staging.add_signature(plane, session, kind, name, keyid=each["keyid"], sig=each["sig"], then=then)
    session.commit()
    rotation.tidy(plane)


def granted(plane: Plane, session: Session, keys: Path, *, days: int = 30) -> None:
    """Grant the model."""
    grants.grant(plane, session, "gestures", days=days)
    sign(plane, session, keys, grants.GRANT, "gestures")


def entry(version: int, *, model: str = "gestures") -> dict[str, TargetFile]:
    """Return the one file of a version."""
    path = f"models/{model}/{version}/x86-64-gateway/manifest.json"
    return {path: TargetFile(3, {"sha256": "ab" * 32}, path)}


def publish(plane: Plane, session: Session, *versions: int) -> str:
    """List versions online; return the path of the last."""
    listed = {path: file for version in versions for path, file in entry(version).items()}
    image_repository.publish_automatic(session, plane.signers, "gestures", listed, now=plane.clock())
    session.commit()
    return next(reversed(listed), "")


def test_a_grant_lets_the_server_list_a_release_of_that_model(
    founded: Plane, session: Session, keys: Path, device: Look, model: str
) -> None:
    with pytest.raises(Conflict, match="skerry keys grant gestures"):
        publish(founded, session, 1)

    granted(founded, session, keys)
    path = publish(founded, session, 1)

    found = image(device, session).get_targetinfo(path)
    assert found is not None
    assert found.length == 3
    assert image_repository.target(session, path) == found
    assert image_repository.automatic_targets(session, ROLE) == entry(1)
    assert image_repository.targets(session).targets == {}
    assert f"2.{ROLE}" in image_repository.files(session)
    assert image_repository.granted(session, model) == founded.clock() + 30 * DAY


def test_what_waits_says_what_is_granted_until_when(founded: Plane, session: Session, keys: Path, model: str) -> None:
    grants.grant(founded, session, model, days=10)

    shown = approval.show(staging.approval_of(founded, session, grants.GRANT, model), keys)

    assert shown.checked
    (line,) = [line for line in shown.lines if line.startswith("+ role automatic-gestures")]
    assert '"paths": ["models/gestures/*/*/*"]' in line
    assert f'"{GRANTED_UNTIL}": "{founded.clock() + 10 * DAY:%Y-%m-%dT%H:%M:%SZ}"' in line


def test_nothing_else_can_be_listed_online(founded: Plane, session: Session, keys: Path, model: str) -> None:
    granted(founded, session, keys)

    for foreign in ("models/letters/1/p/manifest.json", "models/gestures/manifest.json", "policy/samples"):
        with pytest.raises(Rejected, match="expected paths below models/gestures/"):
            image_repository.publish_automatic(
                session,
                founded.signers,
                model,
                {foreign: TargetFile(1, {"sha256": "00"}, foreign)},
                now=founded.clock(),
            )
    with pytest.raises(Conflict, match="expected a grant to sign online, got none"):
        image_repository.publish_automatic(
            session, founded.signers, "letters", entry(1, model="letters"), now=founded.clock()
        )


def test_a_stolen_key_of_a_model_lists_nothing_of_another(
    founded: Plane, session: Session, keys: Path, device: Look, model: str
) -> None:
    """The worst that the model's key and the online keys can do together: a role that lists more than its paths."""
    granted(founded, session, keys)
    role = delegated.roles(image_repository.targets(session))[ROLE]
    listed = entry(7) | entry(7, model="letters")
    delegated.write(session, founded.signers, role, listed, version=2, now=founded.clock())
    image_repository._publish_snapshot(
        session, founded.signers, image_repository.targets(session), {ROLE: 2}, now=founded.clock()
    )

    view = image(device, session)

    assert view.get_targetinfo("models/gestures/7/x86-64-gateway/manifest.json") is not None
    assert view.get_targetinfo("models/letters/7/x86-64-gateway/manifest.json") is None


def test_the_online_keys_of_the_repository_cannot_list_in_a_models_place(
    founded: Plane, session: Session, keys: Path, device: Look, model: str
) -> None:
    granted(founded, session, keys)
    path = publish(founded, session, 1)
    files = image_repository.files(session)
    forged = Targets(version=2, expires=founded.clock() + DAY, targets=entry(9))
    files[f"2.{ROLE}"] = tuf_rows.sign(forged, founded.signers.newest("snapshot"))

    with pytest.raises(UnsignedMetadataError, match=ROLE):
        device("image", files["1.root"], files).get_targetinfo(path)


def test_metadata_of_a_role_is_renewed_ahead_and_never_beyond_the_grant(
    founded: Plane, session: Session, keys: Path, device: Look, model: str, clock: Any
) -> None:
    granted(founded, session, keys, days=10)
    path = publish(founded, session, 1)
    end = image_repository.granted(session, model)
    assert end is not None

    expiries = []
    for _ in range(9):
        clock.turn(DAY)
        image_repository.renew(session, founded.signers, now=clock())
        version = image_repository._versions(session)[ROLE]
        expiries.append(delegated.read(session, ROLE, version).signed.expires)  # type: ignore[union-attr]
    assert max(expiries) == end
    # once, at half of its life, and not every day
    assert len(set(expiries)) == 2

    clock.turn(2 * DAY)
    image_repository.renew(session, founded.signers, now=clock())
    with pytest.raises(Conflict, match="got one that ended"):
        publish(founded, session, 1, 2)
    # but what it lists can still be taken away
    publish(founded, session)
    assert image_repository.automatic_targets(session, ROLE) == {}
    assert path not in image_repository.listed(session)


def test_an_updater_refuses_a_grant_that_has_ended(plane: Plane, keys: Path, device: Look, clock: Any) -> None:
    from control_plane import ceremony
    from control_plane.keys import hold_ceremony
    from control_plane.online_keys import describe_online

    real = clock()
    clock.turn(-20 * DAY)
    made = hold_ceremony(keys, describe_online(plane.signers, "watch"), now=clock())
    with plane.sessions() as session:
        ceremony.take(plane, session, **made)
        session.add(ModelVersion(model="gestures", version=1, dataset="d", bundle="0" * 64, trained_at=clock()))
        session.commit()
        granted(plane, session, keys, days=10)
        path = publish(plane, session, 1)
        clock.now = real
        image_repository.renew(session, plane.signers, now=clock())

        with pytest.raises(ExpiredMetadataError, match=ROLE):
            image(device, session).get_targetinfo(path)
        # other models go on
        assert image(device, session).get_targetinfo("models/letters/1/p/manifest.json") is None


def test_a_withdrawn_grant_lists_nothing_and_breaks_no_device_that_saw_it(
    founded: Plane, session: Session, keys: Path, device: Look, model: str
) -> None:
    granted(founded, session, keys)
    path = publish(founded, session, 1)
    assert image(device, session).get_targetinfo(path) is not None

    now = founded.clock()
    session.add(Release(name="gestures-1", model=model, version=1, state="live", role=ROLE, created_at=now))
    session.flush()
    grants.withdraw(founded, session, model)
    sign(founded, session, keys, grants.WITHDRAWAL, model)

    # a snapshot that forgets a role is refused by updaters that have seen it
    assert image(device, session).get_targetinfo(path) is None
    assert image_repository.listed(session) == {}
    assert session.get_one(Release, "gestures-1").state == "revoked"
    assert f"2.{ROLE}" in image_repository.superseded(session)
    assert not list(founded.home.keys.glob("automatic-*"))
    with pytest.raises(Conflict, match="expected a grant to withdraw, got none"):
        grants.withdraw(founded, session, model)
    # revoking what nothing lists any more needs no grant
    publish(founded, session)

    granted(founded, session, keys)
    assert image(device, session).get_targetinfo(path) is None
    path = publish(founded, session, 2)
    assert image(device, session).get_targetinfo(path) is not None


def test_granting_again_replaces_the_key_and_keeps_what_is_listed(
    founded: Plane, session: Session, keys: Path, device: Look, model: str
) -> None:
    granted(founded, session, keys)
    path = publish(founded, session, 1)
    assert image(device, session).get_targetinfo(path) is not None
    (first,) = delegated.roles(image_repository.targets(session))[ROLE].keyids

    granted(founded, session, keys, days=60)

    (second,) = delegated.roles(image_repository.targets(session))[ROLE].keyids
    assert first != second
    assert image(device, session).get_targetinfo(path) is not None
    assert [file.name for file in founded.home.keys.glob("automatic-*")] == [f"{ROLE}-2.pem"]
    # a server that starts now finds the key
    again = replace(founded, signers=OnlineSigners(founded.home.keys))
    path = publish(again, session, 1, 2)
    assert image(device, session).get_targetinfo(path) is not None


def test_a_grant_survives_releases_that_are_signed_offline(
    founded: Plane, session: Session, keys: Path, device: Look, model: str
) -> None:
    granted(founded, session, keys)
    path = publish(founded, session, 1)
    other = entry(1, model="letters")
    staging.stage(session, "release", "letters-1", staging.Edit(add=staging.listed(other)), now=founded.clock())
    sign(founded, session, keys, "release", "letters-1")

    view = image(device, session)
    assert view.get_targetinfo(path) is not None
    assert view.get_targetinfo(next(iter(other))) is not None
    assert set(image_repository.listed(session)) == {path, *other}
    assert image_repository.automatic_targets(session, ROLE).keys() == {path}


def test_targets_are_renewed_as_they_are(
    founded: Plane, session: Session, keys: Path, device: Look, model: str, clock: Any
) -> None:
    granted(founded, session, keys)
    before = image_repository.targets(session)
    clock.turn(20 * DAY)

    grants.renew_targets(founded, session)
    sign(founded, session, keys, grants.RENEWAL, grants.RENEWED)

    after = image_repository.targets(session)
    assert (after.targets, after.delegations) == (before.targets, before.delegations)
    assert after.expires == before.expires + 20 * DAY
    image(device, session).refresh()


def test_a_grant_that_is_not_signed_grants_nothing(founded: Plane, session: Session, model: str) -> None:
    grants.grant(founded, session, model, days=5)
    session.commit()
    (file,) = founded.home.keys.glob("automatic-*")

    assert image_repository.granted(session, model) is None
    session.commit()
    # its key lies ready as long as it waits
    assert rotation.tidy(founded) == []
    assert file.exists()
    grants.grant(founded, session, model, days=6)
    assert list(founded.home.keys.glob("automatic-*")) == [file]
    staging.discard(session, grants.GRANT, model)
    session.commit()
    rotation.tidy(founded)
    assert not file.exists()


@pytest.mark.parametrize(
    ("name", "days", "kind"),
    [("letters", 5, Unknown), ("gestures", 0, Rejected), ("gestures", 366, Rejected), ("../x", 5, Rejected)],
)
def test_a_grant_that_cannot_be_is_refused(
    founded: Plane, session: Session, model: str, name: str, days: int, kind: type[Rejected]
) -> None:
    with pytest.raises(kind) as refused:
        grants.grant(founded, session, name, days=days)
    assert "\n" not in str(refused.value)
    assert not list(founded.home.keys.glob("automatic-*"))


def test_the_end_of_a_grant_is_under_the_offline_signatures(
    founded: Plane, session: Session, keys: Path, model: str
) -> None:
    granted(founded, session, keys)
    body = image_repository.file(session, "2.targets")
    moved = body.replace(b"x-skerry-until", b"x-skerry-never")
    assert moved != body

    metadata = Metadata[Targets].from_bytes(moved)
    with pytest.raises(Rejected, match="enough valid signatures"):
        tuf_rows.verify(image_repository.root(session), metadata)
