"""Revoked releases: listed no more, never gone back to, and replaced on the devices that run them."""

from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import (
    compile_job,
    image_repository,
    releases,
    rollouts,
)
from control_plane.keys import sign_payload
from control_plane.plane import Plane
from control_plane.refusals import Conflict, Unknown
from control_plane.rollout_planner import WaveRequest
from control_plane.schema.models import Build, ModelVersion
from control_plane.schema.releases import Deployment, Rollout
from skerry.errors import Rejected
from tests.unit.trust.releasing import Look, enrol, image, release, sign, train
from tests.unit.trust.revoking import PROFILE, device, revoke


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
