"""Properties of the lifecycle's table as a whole, and the page that is drawn from it."""

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.deployment.lifecycle import (
    MAX_ATTEMPTS,
    TABLE,
    Effect,
    Event,
    IllegalEvent,
    Kind,
    Phase,
    Resume,
    State,
    resume,
    settled,
    step,
)
from tests.unit.agent.states import BEFORE_ACTIVATION, GRANT, OLD, OTHER, in_phase

DOCS = Path(__file__).parents[3] / "docs"
TOUCHES_WHAT_RUNS = {Effect.ACTIVATE, Effect.COMMIT, Effect.ROLL_BACK}
ROWS = [(phase, kind, row) for phase, rule in TABLE.items() for kind, row in rule.on.items()]
COUNTED = [(phase, kind) for phase, kind, row in ROWS if row.counted]


def reached(state: State) -> set[Phase]:
    """Return every phase that some order of events leads to."""
    seen, todo = set(), [state]
    while todo:
        state = todo.pop()
        key = (state.phase, state.attempts, state.following is not None)
        if key in seen:
            continue
        seen.add(key)
        todo += [step(state, Event(kind, grant=OTHER))[0] for kind in TABLE[Phase(state.phase)].on]
    return {Phase(phase) for phase, *_ in seen}


def test_every_phase_has_a_row_and_can_be_reached_and_left_again() -> None:
    assert set(TABLE) == set(Phase)
    assert reached(State()) == set(Phase)
    for phase in Phase:
        assert reached(in_phase(phase)) >= set(Phase) - {Phase.IDLE}


def test_every_event_is_in_place_somewhere_and_every_effect_belongs_to_one_phase() -> None:
    assert {kind for _, kind, _ in ROWS} == set(Kind)
    effects = [rule.effect for rule in TABLE.values()]
    assert sorted(each.value for each in effects) == sorted(each.value for each in Effect)
    assert {rule.resume for rule in TABLE.values()} == set(Resume)


def test_no_way_leads_to_a_trial_but_through_the_replay() -> None:
    ways = {(phase, kind) for phase, kind, row in ROWS if Phase.TRIAL in (row.to, row.counted and row.spent)}
    stays = {(Phase.TRIAL, kind) for kind in (Kind.UNAVAILABLE, Kind.FAULT, Kind.LIVED)}
    assert ways == {(Phase.REPLAYING, Kind.REPLAYED), *stays}
    ways = {(phase, kind) for phase, kind, row in ROWS if row.to is Phase.REPLAYING}
    assert {phase for phase, _ in ways} == {Phase.STAGED, Phase.REPLAYING}
    assert all(rule.spent not in (Phase.TRIAL, Phase.COMMITTED) for rule in TABLE.values())


def test_nothing_is_committed_but_what_passed_its_trial_or_was_committed_before() -> None:
    ways = {(phase, kind) for phase, kind, row in ROWS if row.to is Phase.COMMITTED}
    assert ways == {(Phase.TRIAL, Kind.PASSED), (Phase.ASSIGNED, Kind.PRESENT), (Phase.COMMITTED, Kind.FAULT)}


@pytest.mark.parametrize("phase", BEFORE_ACTIVATION)
@pytest.mark.parametrize("kind", [Kind.ASSIGN, Kind.DENY])
@pytest.mark.parametrize("attempts", range(MAX_ATTEMPTS))
def test_a_deployment_is_called_off_before_activation_without_touching_what_runs(
    phase: Phase, kind: Kind, attempts: int
) -> None:
    before = replace(in_phase(phase), attempts=attempts, reason="an older one")

    after, effect = step(before, Event(kind, grant=OTHER, reason="" if kind is Kind.ASSIGN else "denied"))

    assert effect not in TOUCHES_WHAT_RUNS
    assert after.phase == ("assigned" if kind is Kind.ASSIGN else "failed")
    assert (after.good, after.grant, after.attempts, after.undo) == (OLD, OTHER, 0, "")


def test_before_activation_no_event_of_the_deployment_itself_touches_what_runs() -> None:
    for phase, kind, row in ROWS:
        if phase not in BEFORE_ACTIVATION or kind in (Kind.CORRUPTED, Kind.CRASHED, Kind.PRESENT):
            continue
        ends = {TABLE[row.to].effect} | ({TABLE[row.spent].effect} if row.counted else set())
        assert ends & TOUCHES_WHAT_RUNS <= ({Effect.ACTIVATE} if kind is Kind.REPLAYED else set()), (phase, kind)


@pytest.mark.parametrize("phase", [Phase.TRIAL, Phase.ROLLING_BACK])
@pytest.mark.parametrize("kind", [Kind.ASSIGN, Kind.DENY])
def test_once_the_pointer_was_switched_it_goes_back_before_anything_else(phase: Phase, kind: Kind) -> None:
    state, effect = step(in_phase(phase), Event(kind, grant=OTHER))
    assert (state.phase, effect, state.undo) == ("rolling_back", Effect.ROLL_BACK, "new")

    state, _ = step(state, Event(Kind.ROLLED_BACK, good=OLD))

    assert (state.phase, state.grant) == (("assigned", OTHER) if kind is Kind.ASSIGN else ("failed", GRANT))


@pytest.mark.parametrize(("phase", "kind"), COUNTED)
def test_every_counted_event_leads_elsewhere_after_as_many_attempts_as_are_granted(phase: Phase, kind: Kind) -> None:
    row, state = TABLE[phase].on[kind], in_phase(phase)
    for attempt in range(1, MAX_ATTEMPTS):
        state, _ = step(replace(state, phase=phase.value), Event(kind))
        assert (state.phase, state.attempts) == (row.to.value, attempt)

    state, effect = step(replace(state, phase=phase.value), Event(kind))

    assert (state.phase, effect) == (row.spent.value, TABLE[row.spent].effect)
    assert row.spent is not phase


def test_whatever_stays_where_it_is_or_goes_back_is_counted_or_is_the_network() -> None:
    order = list(Phase)
    again = {
        (phase, kind) for phase, kind, row in ROWS if order.index(row.to) <= order.index(phase) and not row.counted
    }
    of_the_network = {(phase, kind) for phase, kind in again if kind is Kind.UNAVAILABLE}
    by_the_director = {(phase, kind) for phase, kind in again if kind in (Kind.ASSIGN, Kind.DENY)}
    # undoing must come to its end however often it fails, and damage is met wherever it is found
    undoing = {(Phase.ROLLING_BACK, Kind.FAULT), (Phase.ROLLING_BACK, Kind.REFUSED)}
    damaged = {(Phase.FAILED, Kind.CORRUPTED), (Phase.FAILED, Kind.CRASHED)}
    # it runs: nothing is done again
    lives = {(Phase.TRIAL, Kind.LIVED)}
    assert again - of_the_network - by_the_director - undoing - damaged - lives == set()


TROUBLE = st.lists(st.sampled_from([Kind.FAULT, Kind.UNAVAILABLE, None]), min_size=0, max_size=40)


@given(st.sampled_from((*BEFORE_ACTIVATION, Phase.TRIAL)), TROUBLE)
def test_faults_and_power_cuts_together_are_counted_once_each_and_never_beyond_the_cap(
    phase: Phase, trouble: list[Kind | None]
) -> None:
    """None is a power cut; it counts where the resume rule says so."""
    state, counted = in_phase(phase), 0
    for kind in trouble:
        if settled(state) or state.phase == Phase.ROLLING_BACK.value:
            break
        now = Phase(state.phase)
        if kind is None:
            counted += TABLE[now].resume is Resume.RETRY
            state, _ = resume(state)
        else:
            counted += TABLE[now].on[kind].counted
            state, _ = step(state, Event(kind))
        assert state.attempts == counted <= MAX_ATTEMPTS
        over = settled(state) or state.phase == Phase.ROLLING_BACK.value
        assert over == (counted == MAX_ATTEMPTS)


@given(st.sampled_from(list(Phase)), st.sampled_from(list(Kind)))
def test_the_table_and_the_steps_say_the_same(phase: Phase, kind: Kind) -> None:
    state = in_phase(phase)
    row = TABLE[phase].on.get(kind)
    if row is None:
        with pytest.raises(IllegalEvent):
            step(state, Event(kind, grant=OTHER))
        return
    after, effect = step(state, Event(kind, grant=OTHER, good=OLD))
    assert Phase(after.phase) is row.to
    assert effect is (Effect.NONE if kind is Kind.LIVED else TABLE[row.to].effect)


def test_a_trial_that_lives_between_power_cuts_is_not_given_up_and_its_time_adds_up() -> None:
    state = in_phase(Phase.TRIAL)
    for _ in range(10):
        state, effect = resume(state)
        assert (state.phase, effect, state.attempts) == ("trial", Effect.ACTIVATE, 1)
        state, effect = step(state, Event(Kind.LIVED, grant=GRANT, lived_s=60))
        assert (state.phase, effect, state.attempts) == ("trial", Effect.NONE, 0)
    assert state.lived_s == 600
    assert step(state, Event(Kind.ASSIGN, grant=OTHER))[0].following == OTHER

    for _ in range(MAX_ATTEMPTS):
        state, _ = resume(state)
    assert state.phase == "rolling_back"


def test_the_lifecycle_page_is_generated_from_the_table_as_it_is() -> None:
    page = runpy.run_path(str(DOCS / "generate_lifecycle.py"))["page"]

    assert (DOCS / "lifecycle.md").read_text() == page(), "run `make protocol`"


def test_the_diagram_draws_every_phase_and_every_way_on() -> None:
    drawn = (DOCS / "lifecycle.md").read_text().split("```")[1]

    for phase, kind, row in ROWS:
        if kind not in (Kind.ASSIGN, Kind.DENY, Kind.CORRUPTED, Kind.CRASHED):
            assert any(
                f"    {phase.value} --> {row.to.value}: " in line and kind.value in line for line in drawn.splitlines()
            )
    assert all(phase.value in drawn for phase in Phase)
