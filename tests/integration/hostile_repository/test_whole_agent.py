"""Whole agents, as processes: a few attacks, and clocks that are wrong, told from the report on the broker."""

import os
import subprocess
import sys
from datetime import timedelta

import pytest

from agent.trust.floor import read_floor
from tests.integration.agent.shore import wait_for
from tests.integration.hostile_repository.conftest import MakeWorld
from tests.integration.hostile_repository.world import World
from tests.tuf_repository import now

pytestmark = [pytest.mark.broker, pytest.mark.long]

TEN_YEARS_S = 3650 * 86400
# the agent's own program, on a machine whose clock is off: the judge gets its moment from the agent
WITH_A_CLOCK = "import sys, time; t = time.time; off = float(sys.argv.pop(1)); time.time = lambda: t() + off;"
WITH_A_CLOCK += "from agent.__main__ import main; sys.exit(main())"


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    """A device on version 1, not started, whose metadata comes by MQTT and, where that has none, by HTTPS."""
    return make_world("both")


def start(world: World, *, clock_off_s: float = 0.0) -> None:
    """Start the agent; the last one is stopped."""
    world.device.stop()
    command = [sys.executable, "-c", WITH_A_CLOCK, str(clock_off_s), "run", "--state", str(world.device.folder)]
    with world.device.log.open("ab") as log:
        world.device._process = subprocess.Popen(command, stderr=log, env={**os.environ, "PYTHONUNBUFFERED": "1"})


def say(world: World) -> None:
    """Publish both repositories as they stand."""
    world.publish()
    from skerry.wire import topics

    world.sea.say(topics.down(world.state.identity().who, "assign"), world.assignment())


def reports(world: World, text: str) -> None:
    """Wait until the twin says so, while version 1 runs."""
    wait_for(
        lambda: world.name in world.sea.reported and text in world.sea.reported[world.name].last_error,
        why=f"a report of {text!r}",
        timeout_s=40,
    )
    reported = world.sea.reported[world.name]
    assert (reported.release, reported.manifest) == ("strokes-1", world.digest(1))


def installs(world: World, version: int, deployment: str) -> None:
    """Wait until a version is committed."""
    end = world.sea.ends(world.name, deployment, timeout_s=40)
    assert end.state == "committed", end
    wait_for(lambda: world.sea.reported[world.name].manifest == world.digest(version), why="a report", timeout_s=20)


def test_a_compromised_director_installs_nothing_and_an_honest_one_does(world: World) -> None:
    forged = world.assign(2, data=b'{"model": "evil"}')
    say(world)
    start(world)
    end = world.sea.ends(world.name, forged, timeout_s=40)
    assert (end.state, "agree on length and hashes" in end.reason) == ("failed", True)
    reports(world, "agree on length and hashes")

    deployment = world.assign(2)
    say(world)
    installs(world, 2, deployment)


def test_what_the_broker_withholds_comes_by_https_where_both_roads_are_open(world: World) -> None:
    deployment = world.assign(2)
    say(world)
    from skerry.wire import topics

    for name in ("timestamp", "1.snapshot", "1.targets"):
        world.sea.say(topics.tuf("watch", name), b"")
    start(world)

    installs(world, 2, deployment)
    assert any(path.endswith("/v1/tuf/image/timestamp.json") for path in world.server.asked)


def test_a_frozen_image_repository_is_reported_and_what_runs_runs_on(world: World) -> None:
    world.image.expires = now() - timedelta(days=1)
    world.image.publish()
    world.assign(2)
    say(world)
    start(world)

    reports(world, "timestamp.json is expired")


def test_a_clock_in_1970_installs_what_is_fresh(world: World) -> None:
    deployment = world.assign(2)
    say(world)
    start(world, clock_off_s=-now().timestamp())

    installs(world, 2, deployment)
    assert read_floor(world.state.trust) >= now().timestamp() - 600


def test_a_clock_ten_years_ahead_is_reported_and_forgotten_when_it_is_back(world: World) -> None:
    deployment = world.assign(2)
    say(world)
    start(world, clock_off_s=TEN_YEARS_S)
    reports(world, "if that clock is ahead, set it")
    assert read_floor(world.state.trust) == 0.0

    start(world)
    installs(world, 2, deployment)


def test_a_clock_stepped_back_refuses_what_had_expired_by_the_floor(world: World) -> None:
    deployment = world.assign(2)
    say(world)
    start(world)
    installs(world, 2, deployment)

    world.director.expires = now() - timedelta(hours=1)
    world.assign(3)
    say(world)
    start(world, clock_off_s=-30 * 86400)
    wait_for(lambda: "an assignment proved" in world.sea.reported[world.name].last_error, why="a report", timeout_s=40)
    assert world.sea.reported[world.name].manifest == world.digest(2)
