"""What was revoked is never rolled back to, and what the offline keys did not sign may be refused altogether."""

import pytest

from agent.deployment.lifecycle import Event, Kind
from skerry.delivery.slots import Slots
from skerry.wire.manifest import NO_SAMPLES, SamplePolicy
from tests.integration.hostile_repository.world import World

pytestmark = [pytest.mark.broker, pytest.mark.long]


def _on_trial(world: World, version: int) -> str:
    """Bring a version on a trial that only the test ends."""
    deployment = world.assign(version, grace_s=86400)
    world.publish()
    world.hear()
    world.drive(
        lambda: world.phase_of(deployment) == "trial" and world.running() == world.digest(version), why="a trial"
    )
    return deployment


def _revoke(world: World, version: int) -> None:
    """Take a version out of the image repository, and let the device learn of it by a renewed assignment."""
    grant = world.runner.state.grant
    assert grant is not None
    del world.image.targets[world.path(version)]
    world.image.publish()
    world.assign(int(grant.release.rpartition("-")[2]), deployment=grant.deployment, grace_s=86400)
    world.publish()
    world.hear()
    world.drive(lambda: not world.effects.pending(), why="a renewal to be taken")


def test_a_roll_back_returns_to_what_is_still_listed(world: World) -> None:
    deployment = _on_trial(world, 2)
    world.runner.tell(Event(Kind.REFUSED, reason="too slow"))
    world.drive(lambda: world.phase_of(deployment) == "failed", why="the roll-back")

    assert world.running() == world.digest(1)


def test_a_roll_back_never_returns_to_what_was_revoked(world: World) -> None:
    deployment = _on_trial(world, 2)
    _revoke(world, 1)
    assert world.phase_of(deployment) == "trial"
    world.runner.tell(Event(Kind.REFUSED, reason="too slow"))
    world.drive(lambda: world.phase_of(deployment) == "failed", why="the roll-back")

    assert world.running() == ""
    assert world.runner.state.good.manifest == ""
    assert "too slow; strokes-1 was revoked: nothing runs until another is assigned" in world.report()
    # durably: a device that starts anew does not run it either
    assert Slots(world.state.slots).active == ""

    # the server assigns the next older good one
    world.assign(3, rollback=True)
    world.publish()
    world.hear()
    world.drive(lambda: world.running() == world.digest(3) and world.slots.active != "", why="another release")


def test_a_release_that_is_revoked_on_trial_is_rolled_back(world: World) -> None:
    deployment = _on_trial(world, 2)
    _revoke_and_expect_denial(world, 2)

    assert world.phase_of(deployment) == "failed"
    assert world.running() == world.digest(1)


def _revoke_and_expect_denial(world: World, version: int) -> None:
    _revoke(world, version)
    world.drive(lambda: world.phase_of(f"d{world.deployments}") == "failed", why="a denial")


def test_what_runs_and_is_revoked_runs_on_and_the_device_says_so(world: World) -> None:
    _revoke(world, 1)

    assert world.running() == world.digest(1)
    assert world.runner.state.phase == "committed"
    assert "among its targets, got none" in world.report()

    deployment = world.assign(2)
    world.publish()
    world.hear()
    world.drive(lambda: world.effects.problem.startswith("strokes-1 runs and was revoked"), why="a report")
    world.drive(lambda: world.phase_of(deployment) == "committed" and not world.effects.problem, why="the next one")


def test_what_is_listed_again_may_be_rolled_back_to_again(world: World) -> None:
    _revoke(world, 1)
    assert world.slots.pointer.slot(world.slots.active).revoked
    world.image.add(world.path(1), world.sea.artifacts[1]["manifest.json"])
    world.image.publish()
    world.renew()

    assert not world.slots.pointer.slot(world.slots.active).revoked


@pytest.mark.parametrize("refuses", [False, True])
def test_an_automatic_release_is_installed_where_it_is_not_refused(world: World, refuses: bool) -> None:
    if refuses:
        # as a renewal does, under an agent that runs
        world.state.keep_refusal()
    world.image.delegate("automatic-strokes", ["models/strokes/*/*/*"])
    del world.image.targets[world.path(2)]
    world.image.add(world.path(2), world.sea.artifacts[2]["manifest.json"], role="automatic-strokes")
    world.image.publish()
    deployment = world.assign(2)
    world.publish()
    world.hear()
    world.drive(lambda: world.phase_of(deployment) in ("committed", "failed"), why="an end")

    assert world.phase_of(deployment) == ("failed" if refuses else "committed")
    assert ("which this device refuses" in world.report()) is refuses


@pytest.mark.parametrize("role", ["targets", "automatic-strokes"])
def test_what_may_leave_the_device_is_for_the_offline_keys_to_say(world: World, role: str) -> None:
    says = {"samples": {"rows_per_window": 2, "inputs": ["window"], "max_bytes": 2400}}
    world.image.delegate("automatic-strokes", ["models/strokes/*/*/*"])
    del world.image.targets[world.path(2)]
    world.image.add(world.path(2), world.sea.artifacts[2]["manifest.json"], role=role, custom=says)
    world.image.publish()
    deployment = world.assign(2)
    world.publish()
    world.hear()
    world.drive(lambda: world.phase_of(deployment) == "committed", why="an end")

    allowed = SamplePolicy(2, ("window",), 2400) if role == "targets" else NO_SAMPLES
    assert world.slots.pointer.slot(world.slots.active).samples == allowed
    running = world.engine.running
    assert running is not None
    assert running.allowed() == allowed

    # and to take back
    world.image.add(world.path(2), world.sea.artifacts[2]["manifest.json"])
    world.image.publish()
    world.assign(2, deployment=deployment)
    world.publish()
    world.hear()
    world.drive(lambda: not world.effects.pending(), why="a renewal to be taken")
    assert running.allowed() == NO_SAMPLES


def test_the_director_ends_a_device_once_and_until_it_has_ended(world: World) -> None:
    told: list[str] = []
    world.effects.decisions.decommissioned = lambda: told.append("wipe")
    world.assign(1, path="decommission", data=b"")
    world.hear()
    world.drive(lambda: told != [], why="to be told to wipe")

    world.runner.nudge()
    for _ in range(5):
        world.runner.turn(world.effects)
    assert told == ["wipe"]
    assert not world.effects.pending()
    # a power cut before the wipe: whoever starts anew decides again
    assert world.effects._inbox.pending() is not None
