"""Revoked releases: listed no more, never gone back to, and replaced on the devices that run them."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session
from tuf.ngclient import Updater

from control_plane import (
    compile_job,
    director,
    grants,
    groups,
    image_repository,
    policies,
    releases,
    replacements,
    retention,
    rollouts,
    staging,
)
from control_plane.keys import sign_payload
from control_plane.plane import Plane
from control_plane.refusals import Conflict, Unknown
from control_plane.replacements import Good, choose
from control_plane.rollout_planner import WaveRequest
from control_plane.schema.devices import Device
from control_plane.schema.models import Build, ModelVersion
from control_plane.schema.releases import Deployment, Release, Rollout
from control_plane.schema.work import Event
from skerry.errors import Rejected
from tests.unit.trust.test_repositories import enrol, image, release, sign, train

Look = Callable[..., Updater]
PROFILE = "x86-64-gateway"


def revoke(plane: Plane, session: Session, keys: Path, name: str) -> Release:
    """Stage a revocation and sign it."""
    releases.revoke(plane, session, name)
    return sign(plane, session, keys, name)


def manifest(session: Session, version: int) -> str:
    """Return the digest of a version's manifest."""
    return session.scalars(select(Build.manifest).where(Build.version == version)).one()


def device(session: Session, plane: Plane, name: str = "wearer-8", *, runs: int, group: str = "default") -> Device:
    """Record a device that reports to run a version."""
    enrol(session, plane, name)
    row = session.get_one(Device, name)
    row.reported, row.group = {"manifest": manifest(session, runs)}, group
    return row


def reconcile(plane: Plane, session: Session) -> int:
    """Commit, and let the reconciler take its turns until it rests; return how many devices it dealt with."""
    session.commit()
    done = 0
    for _ in range(10):
        turn = replacements.reconcile(plane, plane.clock())
        done += turn
        if not turn:
            break
    session.expire_all()
    return done


def alarms(session: Session) -> list[str]:
    """Return the texts of alarms."""
    return list(session.scalars(select(Event.text).where(Event.kind == "alarm").order_by(Event.id)))


def grant(plane: Plane, session: Session, keys: Path) -> None:
    """Let the model gestures be signed online for 30 days, and set its policy."""
    _sign_staged(plane, session, keys, grants.GRANT, grants.grant(plane, session, "gestures", days=30))
    policies.set_policy(session, "gestures", policy="automatic")


def _sign_staged(plane: Plane, session: Session, keys: Path, kind: str, payload: bytes) -> None:
    then = partial(grants.published, kind=kind)
    for each in sign_payload(keys, payload):
        staging.add_signature(plane, session, kind, "gestures", keyid=each["keyid"], sig=each["sig"], then=then)


# -- revoking


def test_a_revocation_needs_signatures_and_takes_every_path_of_the_release_away(
    founded: Plane, session: Session, keys: Path, device: Look
) -> None:
    first, second = (release(founded, session, keys, version) for version in (1, 2))
    releases.revoke(founded, session, "gestures-1")

    row = releases.get(session, "gestures-1")
    assert (row.state, releases.waits_as(session, row)) == ("live", "revocation")
    assert image(device, session).get_targetinfo(first) is not None

    assert sign(founded, session, keys, "gestures-1").state == "revoked"
    assert row.revoked_at == founded.clock()
    view = image(device, session)
    assert view.get_targetinfo(first) is None
    assert view.get_targetinfo(second) is not None
    assert not [path for path in image_repository.targets(session).targets if path.startswith("models/gestures/1/")]


def test_version_1_is_revoked_without_touching_version_10(founded: Plane, session: Session, keys: Path) -> None:
    for version in (1, 10):
        release(founded, session, keys, version)

    revoke(founded, session, keys, "gestures-1")

    assert {path.split("/")[2] for path in image_repository.targets(session).targets} == {"10"}


def test_what_is_staged_meanwhile_does_not_bring_a_revoked_release_back(
    founded: Plane, session: Session, keys: Path
) -> None:
    release(founded, session, keys, 1)
    train(founded, session, 2)
    releases.stage(founded, session, model="gestures", version=2)
    stale = sign_payload(keys, releases.payload(session, "gestures-2"))

    revoke(founded, session, keys, "gestures-1")

    with pytest.raises(Rejected, match="fetch the payload again"):
        releases.add_signature(founded, session, "gestures-2", **stale[0])
    sign(founded, session, keys, "gestures-2")
    assert {path.split("/")[2] for path in image_repository.targets(session).targets} == {"2"}


def test_a_revoked_release_is_not_revoked_staged_or_rolled_out_again(
    founded: Plane, session: Session, keys: Path
) -> None:
    release(founded, session, keys, 1)
    revoke(founded, session, keys, "gestures-1")
    enrol(session, founded)

    with pytest.raises(Conflict, match="not revoked"):
        releases.revoke(founded, session, "gestures-1")
    with pytest.raises(Conflict, match="train a new version"):
        releases.stage(founded, session, model="gestures", version=1)
    with pytest.raises(Conflict, match="got revoked; train and release a new version"):
        rollouts.create(session, release="gestures-1", waves=[WaveRequest("all", rest=True)], now=founded.clock())
    with pytest.raises(Unknown):
        releases.revoke(founded, session, "gestures-9")


def test_a_staged_release_is_revoked_without_a_signature(founded: Plane, session: Session, keys: Path) -> None:
    train(founded, session, 1)
    releases.stage(founded, session, model="gestures", version=1)

    assert releases.revoke(founded, session, "gestures-1").state == "revoked"
    with pytest.raises(Unknown, match="something to sign"):
        releases.payload(session, "gestures-1")


def test_a_revoked_version_is_no_measure_for_the_next(founded: Plane, session: Session, keys: Path) -> None:
    for version in (1, 2):
        release(founded, session, keys, version)
    train(founded, session, 3)
    third = session.get_one(ModelVersion, ("gestures", 3))

    def previous() -> int:
        found = compile_job._previous(session, third)
        return found.version if found else 0

    assert previous() == 2
    revoke(founded, session, keys, "gestures-2")
    assert previous() == 1
    revoke(founded, session, keys, "gestures-1")
    assert previous() == 0


def test_a_version_keeps_the_grids_of_what_is_live_for_its_profile(
    founded: Plane, session: Session, keys: Path
) -> None:
    for version in (1, 2):
        release(founded, session, keys, version)
        build = session.scalars(select(Build).where(Build.version == version)).one()
        second = {"manifest": "", "files": {"model.onnx": f"second {version}", "golden.npz": "g"}}
        build.report = {"kept": ["int8-qdq", "float32"], "second": second}
    for version in (3, 4):
        train(founded, session, version)

    def before() -> dict[str, str]:
        now = founded.clock()
        job = compile_job.ask(session, model="gestures", version=4, profiles=[PROFILE], window_n=100, now=now)
        (task,) = compile_job.tasks(job.parameters)
        grids: dict[str, str] = task["before"]
        return grids

    one, two = (founded.blobs.put(b"model %d" % version) for version in (1, 2))
    assert before() == {"int8-qdq": two, "float32": "second 2"}  # version 3 runs nowhere
    revoke(founded, session, keys, "gestures-2")
    assert before() == {"int8-qdq": one, "float32": "second 1"}
    revoke(founded, session, keys, "gestures-1")
    assert before() == {}


def test_a_running_rollout_of_a_revoked_release_ends(founded: Plane, session: Session, keys: Path) -> None:
    for version in (1, 2):
        release(founded, session, keys, version)
    device(session, founded, runs=1)
    made = rollouts.create(session, release="gestures-2", waves=[WaveRequest("all", rest=True)], now=founded.clock())

    revoke(founded, session, keys, "gestures-2")

    rollout = session.get_one(Rollout, made.id)
    assert (rollout.state, rollout.reason, rollout.ended_at) == (
        "cancelled",
        "the release was revoked",
        founded.clock(),
    )
    (left,) = session.scalars(select(Deployment).where(Deployment.rollout == made.id))
    assert (left.state, left.reason) == ("left-out", "the release was revoked")
    # the device is free for the next one
    again = rollouts.create(session, release="gestures-1", waves=[WaveRequest("all", rest=True)], now=founded.clock())
    assert again.state == "running"


# -- what a device is to run instead


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


# -- signed online


def test_without_a_grant_an_automatic_model_is_not_released(founded: Plane, session: Session) -> None:
    train(founded, session, 1)
    policies.set_policy(session, "gestures", policy="automatic")

    with pytest.raises(Conflict, match="skerry keys grant gestures"):
        releases.stage(founded, session, model="gestures", version=1)


def test_with_a_grant_an_automatic_model_is_live_at_once_and_devices_find_it(
    founded: Plane, session: Session, keys: Path, device: Look
) -> None:
    train(founded, session, 1)
    grant(founded, session, keys)

    made = releases.stage(founded, session, model="gestures", version=1)

    assert (made.state, made.role) == ("live", "automatic-gestures")
    path = releases.target_path(made, PROFILE)
    assert path not in image_repository.targets(session).targets
    assert image(device, session).get_targetinfo(path) is not None
    assert manifest(session, 1) in retention.blobs(session, made)


def test_after_its_end_a_grant_signs_nothing_new(founded: Plane, session: Session, keys: Path, clock: Any) -> None:
    train(founded, session, 1)
    grant(founded, session, keys)
    clock.turn(timedelta(days=31))

    with pytest.raises(Conflict, match="ended"):
        releases.stage(founded, session, model="gestures", version=1)


def test_a_release_that_was_signed_online_is_revoked_online_at_once(
    founded: Plane, session: Session, keys: Path, device: Look
) -> None:
    for version in (1, 2):
        train(founded, session, version)
    grant(founded, session, keys)
    first, second = (releases.stage(founded, session, model="gestures", version=version) for version in (1, 2))

    assert releases.revoke(founded, session, "gestures-1").state == "revoked"

    view = image(device, session)
    assert view.get_targetinfo(releases.target_path(first, PROFILE)) is None
    assert view.get_targetinfo(releases.target_path(second, PROFILE)) is not None


def test_when_a_grant_is_withdrawn_what_was_signed_online_is_revoked_and_replaced(
    founded: Plane, session: Session, keys: Path
) -> None:
    release(founded, session, keys, 1)
    train(founded, session, 2)
    grant(founded, session, keys)
    releases.stage(founded, session, model="gestures", version=2)
    device(session, founded, runs=2)

    _sign_staged(founded, session, keys, grants.WITHDRAWAL, grants.withdraw(founded, session, "gestures"))
    reconcile(founded, session)

    states = {name: releases.get(session, name).state for name in ("gestures-1", "gestures-2")}
    assert states == {"gestures-1": "live", "gestures-2": "revoked"}
    assert director.terms_of(session, "wearer-8")[0].release == "gestures-1"


def test_a_group_that_refuses_online_signatures_is_left_out_of_rollouts_and_replacements(
    founded: Plane, session: Session, keys: Path
) -> None:
    release(founded, session, keys, 1)
    for version in (2, 3):
        train(founded, session, version)
    grant(founded, session, keys)
    for version in (2, 3):
        releases.stage(founded, session, model="gestures", version=version)
    groups.set_rule(session, "wary", refuse_automatic=True)
    device(session, founded, runs=3, group="wary")
    device(session, founded, "wearer-9", runs=3)

    made = rollouts.create(
        session,
        release="gestures-2",
        waves=[WaveRequest("named", devices=("wearer-8", "wearer-9"))],
        now=founded.clock(),
    )
    reasons = {each.device: each.reason for each in session.scalars(select(Deployment))}
    assert reasons == {"wearer-8": "its group refuses releases that were signed online", "wearer-9": ""}

    rollouts.cancel(session, made.id, now=founded.clock())
    releases.revoke(founded, session, "gestures-3")
    reconcile(founded, session)
    assigned = {name: director.terms_of(session, name)[0].release for name in ("wearer-8", "wearer-9")}
    assert assigned == {"wearer-8": "gestures-1", "wearer-9": "gestures-2"}


def test_a_policy_is_of_a_model_that_there_is(session: Session, founded: Plane) -> None:
    with pytest.raises(Unknown, match="skerry model list"):
        policies.set_policy(session, "none", policy="automatic")
    train(founded, session, 1)
    assert policies.policy(session, "gestures") == "manual"
    with pytest.raises(Rejected, match="manual or automatic"):
        policies.set_policy(session, "gestures", policy="sometimes")
