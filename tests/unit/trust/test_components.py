"""Several models on one device: each is assigned, renewed, replaced and taken away by itself, in one signed set."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import component_changes, components, director, ingest, releases, replacements, rollouts
from control_plane.keys import sign_payload
from control_plane.plane import Plane
from control_plane.refusals import Conflict, Unknown
from control_plane.rollout_planner import WaveRequest
from control_plane.schema.devices import Device, DeviceComponent
from control_plane.schema.models import Build
from control_plane.schema.releases import Deployment
from skerry.errors import Rejected
from skerry.wire import codec, messages, topics
from tests.unit.trust.releasing import enrol, release, sign, train

NAME = "wearer-8"
ALL = [WaveRequest("all", rest=True)]


@pytest.fixture
def two(founded: Plane, session: Session, keys: Path) -> Plane:
    """A device that runs gestures, and releases of that and of lamps."""
    release(founded, session, keys, 1)
    release(founded, session, keys, 1, name="lamps")
    release(founded, session, keys, 2, name="lamps")
    enrol(session, founded)
    row = session.get_one(Device, NAME)
    row.reported = {"manifest": manifest(session, "gestures", 1), "components": {}}
    return founded


def manifest(session: Session, model: str, version: int) -> str:
    """Return the digest of a version's manifest."""
    return session.scalars(select(Build.manifest).where(Build.model == model, Build.version == version)).one()


def roll_out(plane: Plane, session: Session, name: str) -> None:
    """Let a release go to all devices, and bring that as far as it goes."""
    rollouts.create(session, release=name, waves=ALL, now=plane.clock())
    session.commit()
    rollouts.reconcile(plane, plane.clock())
    session.expire_all()


def assigned(session: Session) -> dict[str, str]:
    """Return what each component is assigned."""
    return {name: terms.release for name, (terms, _) in director.assignments(session, NAME).items()}


def say(plane: Plane, session: Session, **said: messages.Component) -> None:
    """Let the device report its components."""
    reported = messages.Reported(
        version=2,
        online=True,
        state="committed",
        agent="0.2.0",
        profile="x86-64-gateway",
        runtime="onnxruntime",
        architecture="x86_64",
        manifest=manifest(session, "gestures", 1),
        components=said,
    )
    session.commit()
    ingest.handle(plane, topics.up(topics.identity("watch", NAME), "reported"), codec.encode(reported))
    session.expire_all()


def test_without_a_component_of_its_own_a_release_replaces_the_one_model(two: Plane, session: Session) -> None:
    roll_out(two, session, "lamps-1")

    assert assigned(session) == {"": "lamps-1"}
    assert director.terms_of(session, NAME)[0].component == ""


def test_a_model_runs_beside_another_under_its_own_name(two: Plane, session: Session) -> None:
    component_changes.add(two, session, NAME, "lamps")
    roll_out(two, session, "gestures-1")
    roll_out(two, session, "lamps-1")

    # the device already runs gestures-1, so nothing was assigned to its unnamed component
    assert assigned(session) == {"lamps": "lamps-1"}
    (deployment,) = session.scalars(select(Deployment).where(Deployment.release == "lamps-1"))
    assert (deployment.component, deployment.state) == ("lamps", "assigned")


def test_assigning_one_component_leaves_the_others_as_they_are_under_the_next_counter(
    two: Plane, session: Session
) -> None:
    component_changes.add(two, session, NAME, "lamps")
    session.get_one(Device, NAME).reported = {"components": {}}
    roll_out(two, session, "gestures-1")
    before = director.terms_of(session, NAME)[0]
    roll_out(two, session, "lamps-1")

    assert assigned(session) == {"": "gestures-1", "lamps": "lamps-1"}
    now, other = (director.terms_of(session, NAME, name)[0] for name in ("", "lamps"))
    assert (before.counter, now.counter, other.counter) == (1, 2, 2)
    assert now.content == before.content
    assert director.blobs_of(session, NAME) == director.blobs_in(now) | director.blobs_in(other)


def test_each_component_has_one_open_rollout(two: Plane, session: Session) -> None:
    component_changes.add(two, session, NAME, "lamps")
    session.get_one(Device, NAME).reported = {"components": {}}
    roll_out(two, session, "gestures-1")
    roll_out(two, session, "lamps-1")

    with pytest.raises(Rejected, match="it is in rollout 2"):
        rollouts.create(session, release="lamps-2", waves=ALL, now=two.clock())


def test_what_a_component_reports_settles_its_rollout_and_is_replaced_when_revoked(
    two: Plane, session: Session, keys: Path
) -> None:
    component_changes.add(two, session, NAME, "lamps")
    roll_out(two, session, "lamps-2")
    said = messages.Component(state="committed", release="lamps-2", manifest=manifest(session, "lamps", 2))
    say(two, session, lamps=said, unknown=said)

    row = session.get_one(DeviceComponent, (NAME, "lamps"))
    assert (row.manifest, row.reported["release"]) == (said.manifest, "lamps-2")
    assert components.running(session, session.get_one(Device, NAME), "lamps") == said.manifest
    assert session.get(DeviceComponent, (NAME, "unknown")) is None

    releases.revoke(two, session, "lamps-2")
    sign(two, session, keys, "lamps-2")
    session.commit()
    assert replacements.reconcile(two, two.clock()) == 1
    session.expire_all()
    terms = director.terms_of(session, NAME, "lamps")[0]
    assert (terms.release, terms.rollback, terms.component) == ("lamps-1", True, "lamps")
    assert replacements.reconcile(two, two.clock()) == 0


def test_a_revoked_release_of_one_component_keeps_no_other_from_its_renewal(
    two: Plane, session: Session, keys: Path, clock: Any
) -> None:
    component_changes.add(two, session, NAME, "lamps")
    session.get_one(Device, NAME).reported = {"components": {}}
    roll_out(two, session, "gestures-1")
    roll_out(two, session, "lamps-1")
    releases.revoke(two, session, "lamps-1")
    sign(two, session, keys, "lamps-1")

    clock.turn(timedelta(days=4))
    assert director.due(session, clock()) == [NAME]
    director.renew(two, session, NAME)

    assert assigned(session) == {"": "gestures-1", "lamps": "lamps-1"}
    assert director.terms_of(session, NAME)[0].counter == 3
    assert director.due(session, clock()) == []

    releases.revoke(two, session, "gestures-1")
    sign(two, session, keys, "gestures-1")
    clock.turn(timedelta(days=4))
    assert director.due(session, clock()) == []
    with pytest.raises(Unknown, match="is its release live"):
        director.renew(two, session, NAME)


def test_a_component_that_is_removed_is_assigned_nothing_any_more(two: Plane, session: Session) -> None:
    component_changes.add(two, session, NAME, "lamps")
    roll_out(two, session, "lamps-1")

    assert component_changes.remove(two, session, NAME, "lamps") is not None

    assert assigned(session) == {}
    assert director.assigned(session) == [NAME]
    (deployment,) = session.scalars(select(Deployment))
    assert (deployment.state, deployment.reason) == ("failed", "the component was removed")
    with pytest.raises(Unknown, match="expected one of the components"):
        component_changes.remove(two, session, NAME, "lamps")


def test_an_order_to_wipe_stands_alone(two: Plane, session: Session) -> None:
    component_changes.add(two, session, NAME, "lamps")
    roll_out(two, session, "lamps-1")

    director.decommission(two, session, NAME)

    assert [target.path for _, target in director.assignments(session, NAME).values()] == [director.DECOMMISSION]


def test_what_cannot_be_a_component_is_refused(two: Plane, session: Session) -> None:
    with pytest.raises(Rejected, match="every device has"):
        component_changes.add(two, session, NAME, "agent")
    with pytest.raises(Unknown, match="skerry model list"):
        component_changes.add(two, session, NAME, "doors")
    with pytest.raises(Conflict, match="the one that it runs as its own"):
        component_changes.add(two, session, NAME, "gestures")
    component_changes.add(two, session, NAME, "lamps")
    with pytest.raises(Conflict, match="no component lamps yet"):
        component_changes.add(two, session, NAME, "lamps")
    for number in range(5):
        train(two, session, 1, name=f"m{number}")
        component_changes.add(two, session, NAME, f"m{number}")
    train(two, session, 1, name="m5")
    with pytest.raises(Conflict, match="at most 8"):
        component_changes.add(two, session, NAME, "m5")
    session.get_one(Device, NAME).reported = {"agent": "0.1.0"}
    with pytest.raises(Conflict, match="update that first"):
        component_changes.add(two, session, NAME, "m5")


def test_an_agent_that_knows_no_components_is_left_out_of_what_goes_to_one(two: Plane, session: Session) -> None:
    component_changes.add(two, session, NAME, "lamps")
    session.get_one(Device, NAME).reported = {"agent": "0.1.0"}

    with pytest.raises(Rejected, match="update that first"):
        rollouts.create(session, release="lamps-1", waves=ALL, now=two.clock())


def test_the_agent_is_a_component_of_every_device(two: Plane, session: Session, keys: Path) -> None:
    train(two, session, 1, name="agent")
    releases.stage(two, session, model="agent", version=1)
    for each in sign_payload(keys, releases.payload(session, "agent-1")):
        releases.add_signature(two, session, "agent-1", keyid=each["keyid"], sig=each["sig"])
    roll_out(two, session, "agent-1")
    said = messages.Component(state="committed", release="agent-1", manifest=manifest(session, "agent", 1))
    say(two, session, agent=said)

    assert assigned(session) == {"agent": "agent-1"}
    assert session.get_one(DeviceComponent, (NAME, "agent")).manifest == said.manifest
