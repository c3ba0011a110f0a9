"""The runner: saved before acted upon, said once, and safe to interrupt at any moment."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent.deployment.lifecycle import Effect, Event, Good, Grant, Kind, State
from agent.deployment.runner import Runner, read_state
from skerry.delivery.durable import write_durably
from skerry.errors import Broken, Rejected, Unavailable
from skerry.wire.messages import DeploymentEvent

GRANT = Grant(deployment="d2", release="strokes-2", manifest="new")
RESULTS = {
    Effect.DESCRIBE: Kind.DESCRIBED,
    Effect.FETCH: Kind.FETCHED,
    Effect.STAGE: Kind.STAGED,
    Effect.PROBE: Kind.LOADED,
    Effect.REPLAY: Kind.REPLAYED,
    Effect.ACTIVATE: Kind.PASSED,
}


class PowerCutError(BaseException):
    """The plug was pulled."""


@dataclass
class World:
    """A device whose effects only change a few names; everything in it survives a power cut."""

    slot_good: str = "old"
    slot_active: str = "old"
    offered: list[Grant] = field(default_factory=list)
    bad: bool = False
    said: list[tuple[str, str]] = field(default_factory=list)
    performed: list[Effect] = field(default_factory=list)
    trouble: dict[Effect, list[Exception]] = field(default_factory=dict)
    cut: Callable[[str], None] = lambda _moment: None

    def announce(self, event: DeploymentEvent) -> None:
        self.cut("announce")
        self.said.append((event.deployment, event.state))

    def pending(self) -> bool:
        return bool(self.offered)

    def measured(self) -> dict[str, float]:
        return {}

    def decide(self, _state: State) -> Event | None:
        self.cut("decide")
        return Event(Kind.ASSIGN, grant=self.offered[0])

    def decided(self) -> None:
        self.cut("decided")
        self.offered.pop(0)

    def perform(self, effect: Effect, state: State) -> Event | None:
        self.cut(f"before {effect.value}")
        self.performed.append(effect)
        if self.trouble.get(effect):
            raise self.trouble[effect].pop(0)
        result = self._do(effect, state)
        self.cut(f"after {effect.value}")
        return result

    def _do(self, effect: Effect, state: State) -> Event | None:
        if effect is Effect.ROLL_BACK:
            self.slot_active = self.slot_good
            return Event(Kind.ROLLED_BACK, good=Good(manifest=self.slot_good))
        if effect is Effect.COMMIT and state.grant:
            self.slot_good = self.slot_active = state.grant.manifest
        if effect is Effect.ACTIVATE and state.grant:
            self.slot_active = state.grant.manifest
            if self.bad:
                return Event(Kind.REFUSED, reason="too slow")
        return Event(RESULTS[effect]) if effect in RESULTS else None


def boot(file: Path, world: World) -> Runner:
    """Start a runner on what is on the disk."""
    runner = Runner(file, announce=world.announce, retry_s=1e-9, retry_most_s=1e-9)
    runner.wake_up(world)
    return runner


def settle(runner: Runner, world: World) -> None:
    """Let it work until there is nothing to do."""
    for _ in range(200):
        if not runner.turn(world):
            return
    raise AssertionError("expected the runner to settle")


def test_a_deployment_is_carried_through_and_every_step_is_said_once(tmp_path: Path) -> None:
    world = World(offered=[GRANT])
    settle(boot(tmp_path / "lifecycle.json", world), world)

    assert [state for _, state in world.said] == [
        *("assigned", "fetching", "verified", "staged", "replaying", "trial", "committed"),
    ]
    assert (world.slot_good, world.slot_active) == ("new", "new")
    assert read_state(tmp_path / "lifecycle.json").good.manifest == "new"


MOMENTS = [
    "decide",
    "decided",
    "announce",
    *(f"{when} {each.value}" for each in Effect if each is not Effect.NONE for when in ("before", "after")),
]


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("nth", [1, 3])
def test_a_power_cut_at_any_moment_ends_on_a_good_model(tmp_path: Path, moment: str, bad: bool, nth: int) -> None:
    left = nth

    def cut(now: str) -> None:
        nonlocal left
        if now == moment:
            left -= 1
            if left == 0:
                raise PowerCutError

    world = World(offered=[GRANT], bad=bad, cut=cut)
    file = tmp_path / "lifecycle.json"
    for _ in range(3):
        try:
            settle(boot(file, world), world)
            break
        except PowerCutError:
            continue

    state = read_state(file)
    expected = ("failed", "old") if bad else ("committed", "new")
    assert (state.phase, world.slot_active, world.slot_good) == (expected[0], expected[1], expected[1])
    assert world.said[-1] == ("d2", expected[0])


def test_what_passed_its_trial_is_committed_before_the_next_assignment_is_looked_at(tmp_path: Path) -> None:
    world = World(offered=[GRANT])
    after = Grant(deployment="d3", release="strokes-3", manifest="newest")
    world.cut = lambda moment: world.offered.append(after) if moment == "after activate" else None
    runner = boot(tmp_path / "lifecycle.json", world)
    while "d3" not in {deployment for deployment, _ in world.said}:
        runner.turn(world)

    assert (world.slot_good, runner.state.good.manifest) == ("new", "new")


def test_a_missing_connection_is_waited_for(tmp_path: Path) -> None:
    world = World(offered=[GRANT], trouble={Effect.FETCH: [Unavailable("no answer")] * 20})
    settle(boot(tmp_path / "lifecycle.json", world), world)

    assert world.said[-1] == ("d2", "committed")
    assert world.performed.count(Effect.FETCH) == 21
    assert [state for _, state in world.said].count("fetching") == 1


@pytest.mark.parametrize(("error", "tries"), [(Rejected("wrong profile"), 1), (Broken("disk full"), 3)])
def test_who_must_act_decides_how_often_it_is_tried(tmp_path: Path, error: Exception, tries: int) -> None:
    world = World(offered=[GRANT], trouble={Effect.DESCRIBE: [error] * 20})
    settle(boot(tmp_path / "lifecycle.json", world), world)

    assert world.performed.count(Effect.DESCRIBE) == tries
    assert world.said[-1] == ("d2", "failed")
    assert world.slot_active == "old"


def test_a_deployment_that_is_replaced_gets_a_last_word(tmp_path: Path) -> None:
    other = Grant(deployment="d3", release="strokes-3", manifest="newer")
    world = World(offered=[GRANT], trouble={Effect.FETCH: [Unavailable("no answer")]})
    runner = boot(tmp_path / "lifecycle.json", world)
    while Effect.FETCH not in world.performed:
        runner.turn(world)

    world.offered.append(other)
    settle(runner, world)

    assert ("d2", "failed") in world.said
    assert world.said[-1] == ("d3", "committed")


def test_late_news_changes_nothing(tmp_path: Path) -> None:
    world = World(offered=[GRANT])
    runner = boot(tmp_path / "lifecycle.json", world)
    settle(runner, world)
    before = read_state(tmp_path / "lifecycle.json")

    runner.tell(Event(Kind.PASSED))
    settle(runner, world)

    assert read_state(tmp_path / "lifecycle.json") == before


def test_the_end_of_a_trial_says_nothing_about_the_deployment_after_it(tmp_path: Path) -> None:
    other = Grant(deployment="d3", release="strokes-3", manifest="newer")
    world = World(offered=[GRANT])
    runner = boot(tmp_path / "lifecycle.json", world)
    while runner.state.phase != "assigned":
        runner.turn(world)
    world.offered.append(other)
    runner.turn(world)
    assert runner.state.grant == other

    runner.tell(Event(Kind.REFUSED, grant=GRANT, reason="too slow"))
    settle(runner, world)

    assert world.said[-1] == ("d3", "committed")


def test_what_each_of_many_programs_says_of_a_crash_takes_one_artifact_away(tmp_path: Path) -> None:
    world = World(offered=[GRANT])
    runner = boot(tmp_path / "lifecycle.json", world)
    settle(runner, world)
    world.slot_good = "old"

    for _ in range(4):
        runner.tell(Event(Kind.CRASHED, manifest="new", reason="crashed three times"))
    settle(runner, world)

    assert world.performed.count(Effect.ROLL_BACK) == 1
    assert runner.state.good.manifest == "old"


def test_news_that_a_trial_lives_takes_nothing_away_that_is_to_be_done(tmp_path: Path) -> None:
    world = World(offered=[GRANT], trouble={Effect.ACTIVATE: [Broken("no memory")]})
    runner = boot(tmp_path / "lifecycle.json", world)
    while runner.state.attempts == 0:
        runner.turn(world)

    runner.tell(Event(Kind.LIVED, grant=GRANT, lived_s=60))
    settle(runner, world)

    assert world.said[-1] == ("d2", "committed")


@pytest.mark.parametrize("refused", ["write_durably", "announce"])
def test_a_disk_that_refuses_the_state_is_asked_again_and_nothing_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    world = World(offered=[GRANT])
    runner = boot(tmp_path / "lifecycle.json", world)
    calls = 0
    real = write_durably if refused == "write_durably" else world.announce

    def every_other_time(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % 2:
            raise Broken("disk full")
        real(*args)

    if refused == "write_durably":
        monkeypatch.setattr("agent.deployment.runner.write_durably", every_other_time)
    else:
        monkeypatch.setattr(runner, "_announce", every_other_time)
    for _ in range(200):
        with contextlib.suppress(Broken):
            if not runner.turn(world):
                break

    # what was said although its mark could not be written is said again
    assert list(dict.fromkeys(state for _, state in world.said)) == [
        *("assigned", "fetching", "verified", "staged", "replaying", "trial", "committed"),
    ]
    assert read_state(tmp_path / "lifecycle.json").good.manifest == "new"


def test_a_disk_that_refuses_an_effect_is_a_fault_of_this_machine(tmp_path: Path) -> None:
    world = World(offered=[GRANT], trouble={Effect.STAGE: [OSError(28, "No space left on device")]})
    settle(boot(tmp_path / "lifecycle.json", world), world)

    assert world.said[-1] == ("d2", "committed")
    assert world.performed.count(Effect.FETCH) == 2


def test_a_state_that_cannot_be_read_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "lifecycle.json").write_bytes(b"{}")

    with pytest.raises(Broken, match="expected the lifecycle's state"):
        boot(tmp_path / "lifecycle.json", World())
