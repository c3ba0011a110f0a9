"""What a device runs instead of a revoked release: the next older good one, once; or an alarm where there is none."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import (
    director,
    releases,
    rollouts,
)
from control_plane.plane import Plane
from control_plane.refusals import Conflict
from control_plane.replacements import Good, choose
from control_plane.rollout_planner import WaveRequest
from control_plane.schema.devices import Device
from control_plane.schema.models import Build
from control_plane.schema.releases import Deployment
from tests.unit.trust.releasing import release, sign, train
from tests.unit.trust.revoking import PROFILE, alarms, device, manifest, reconcile, revoke


@pytest.mark.parametrize(
    ("good", "running", "refuses", "expected"),
    [
        ([1, 2], "m3", False, "r2"),
        ([1], "m3", False, "r1"),
        ([], "m3", False, None),
        ([4, 5], "m3", False, None),
        ([1, 4], "m3", False, "r1"),
        # it was assigned version 3 and has not got there: what it runs stays
        ([1, 2], "m1", False, "r1"),
        ([1, 2], "", False, "r2"),
        ([1, -2], "m3", False, "r2"),
        ([1, -2], "m3", True, "r1"),
        ([-2], "m3", True, None),
    ],
)
def test_the_next_older_good_one_is_chosen(good: list[int], running: str, refuses: bool, expected: str | None) -> None:
    """A negative number is a version that was signed online; version 3 is revoked."""
    listed = [Good(f"r{abs(each)}", abs(each), f"m{abs(each)}", online=each < 0) for each in good]

    found = choose(listed, running=running, revoked_version=3, refuses_online=refuses)

    assert (found.release if found else None) == expected


def test_of_two_builds_a_device_goes_back_to_the_one_that_the_first_devices_chose(
    founded: Plane, session: Session, keys: Path
) -> None:
    train(founded, session, 1)
    other = founded.blobs.put(b"other manifest")
    session.query(Build).one().report = {"second": {"manifest": other, "files": {}}}
    releases.stage(founded, session, model="gestures", version=1)
    sign(founded, session, keys, "gestures-1").choices = {PROFILE: {"manifest": other}}
    release(founded, session, keys, 2)
    device(session, founded, runs=2)
    # called back while it still runs the second build of the first
    device(session, founded, "wearer-9", runs=2).reported = {"manifest": other}
    session.add(
        Deployment(id="d", device="wearer-9", release="gestures-2", manifest=manifest(session, 2), state="assigned")
    )
    revoke(founded, session, keys, "gestures-2")

    assert reconcile(founded, session) == 2
    for name, state in (("wearer-8", "assigned"), ("wearer-9", "committed")):
        assert director.terms_of(session, name)[1].path == f"models/gestures/1/{PROFILE}.second/manifest.json"
        replacement = session.scalars(select(Deployment).where(Deployment.device == name, Deployment.id != "d")).one()
        assert (replacement.manifest, replacement.state) == (other, state)


def test_a_device_with_a_revoked_release_is_assigned_the_next_older_one_once(
    founded: Plane, session: Session, keys: Path
) -> None:
    paths = [release(founded, session, keys, version) for version in (1, 2, 3)]
    device(session, founded, runs=3)
    device(session, founded, "wearer-9", runs=1)
    assert reconcile(founded, session) == 0

    revoke(founded, session, keys, "gestures-3")
    assert reconcile(founded, session) == 1

    terms, target = director.terms_of(session, "wearer-8")
    assert (terms.release, terms.rollback, target.path) == ("gestures-2", True, paths[1])
    (deployment,) = session.scalars(select(Deployment))
    assert (deployment.rollout, deployment.replaces, deployment.state) == (None, "gestures-3", "assigned")
    assert deployment.id == terms.deployment
    assert director.assigned(session) == ["wearer-8"]
    assert reconcile(founded, session) == 0


def test_a_revoked_release_is_stepped_over(founded: Plane, session: Session, keys: Path) -> None:
    for version in (1, 2, 3):
        release(founded, session, keys, version)
    device(session, founded, runs=3)

    revoke(founded, session, keys, "gestures-2")
    revoke(founded, session, keys, "gestures-3")
    reconcile(founded, session)

    assert director.terms_of(session, "wearer-8")[0].release == "gestures-1"


def test_a_replacement_that_is_revoked_on_its_way_is_replaced_too(founded: Plane, session: Session, keys: Path) -> None:
    for version in (1, 2, 3):
        release(founded, session, keys, version)
    device(session, founded, runs=3)
    revoke(founded, session, keys, "gestures-3")
    reconcile(founded, session)
    assert director.terms_of(session, "wearer-8")[0].release == "gestures-2"

    revoke(founded, session, keys, "gestures-2")
    assert reconcile(founded, session) == 1

    assert director.terms_of(session, "wearer-8")[0].release == "gestures-1"
    assert reconcile(founded, session) == 0


def test_a_device_on_its_way_to_a_revoked_release_is_called_back(founded: Plane, session: Session, keys: Path) -> None:
    for version in (1, 2):
        release(founded, session, keys, version)
    device(session, founded, runs=1)
    rollouts.create(session, release="gestures-2", waves=[WaveRequest("all", rest=True)], now=founded.clock())
    session.commit()
    rollouts.reconcile(founded, founded.clock())
    session.expire_all()
    assert director.terms_of(session, "wearer-8")[0].release == "gestures-2"

    revoke(founded, session, keys, "gestures-2")
    assert reconcile(founded, session) == 1

    assert director.terms_of(session, "wearer-8")[0].release == "gestures-1"
    states = {each.release: each.state for each in session.scalars(select(Deployment))}
    assert states == {"gestures-2": "failed", "gestures-1": "committed"}
    assert reconcile(founded, session) == 0


def test_with_nothing_older_left_there_is_one_alarm_and_the_device_is_left_as_it_is(
    founded: Plane, session: Session, keys: Path
) -> None:
    for version in (1, 2):
        release(founded, session, keys, version)
    device(session, founded, runs=1)

    revoke(founded, session, keys, "gestures-1")
    for _ in range(2):
        reconcile(founded, session)

    assert director.assigned(session) == []
    (alarm,) = alarms(session)
    assert alarm == "wearer-8 has gestures-1, which is revoked, and there is no older good release for it"


def test_a_device_that_cannot_be_assigned_anything_yet_is_tried_again_and_told_of_once(
    founded: Plane, session: Session, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in (1, 2):
        release(founded, session, keys, version)
    row = device(session, founded, runs=2)
    revoke(founded, session, keys, "gestures-2")
    assign = director.assign

    def refuse(*_: Any, **__: Any) -> None:
        raise Conflict("device wearer-8: expected a public key, got none")

    monkeypatch.setattr(director, "assign", refuse)
    for _ in range(3):
        assert reconcile(founded, session) == 0
    assert alarms(session) == [
        "wearer-8 keeps gestures-2, which is revoked: device wearer-8: expected a public key, got none"
    ]
    assert session.get_one(Device, row.name).assign_counter == 0

    monkeypatch.setattr(director, "assign", assign)
    assert reconcile(founded, session) == 1
    assert director.terms_of(session, "wearer-8")[0].release == "gestures-1"


def test_only_enrolled_devices_are_told(founded: Plane, session: Session, keys: Path) -> None:
    for version in (1, 2):
        release(founded, session, keys, version)
    device(session, founded, runs=2).state = "revoked"

    revoke(founded, session, keys, "gestures-2")

    assert reconcile(founded, session) == 0
