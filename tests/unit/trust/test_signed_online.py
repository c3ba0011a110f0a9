"""Releases that are signed online: only with a grant, and revoked with it."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import (
    director,
    grants,
    groups,
    image_repository,
    policies,
    releases,
    retention,
    rollouts,
)
from control_plane.plane import Plane
from control_plane.refusals import Conflict, Unknown
from control_plane.rollout_planner import WaveRequest
from control_plane.schema.releases import Deployment
from skerry.errors import Rejected
from tests.unit.trust.releasing import Look, image, release, train
from tests.unit.trust.revoking import PROFILE, device, grant, manifest, reconcile, sign_staged


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

    sign_staged(founded, session, keys, grants.WITHDRAWAL, grants.withdraw(founded, session, "gestures"))
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
