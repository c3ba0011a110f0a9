"""The lifecycle's table: what follows what, what survives, and what can never happen."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.deployment.lifecycle import (
    MAX_ATTEMPTS,
    TABLE,
    Effect,
    Event,
    Good,
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

HAPPY = (Kind.DESCRIBED, Kind.FETCHED, Kind.STAGED, Kind.LOADED, Kind.REPLAYED, Kind.PASSED)


def test_a_deployment_without_trouble_runs_through_to_committed() -> None:
    state, effect = step(State(), Event(Kind.ASSIGN, grant=GRANT))
    effects = [effect]
    for kind in HAPPY:
        state, effect = step(state, Event(kind))
        effects.append(effect)

    assert state.phase == "committed"
    assert state.good == Good(manifest="new", release="strokes-2", deployment="d2")
    assert [each.value for each in effects] == [
        *("describe", "fetch", "stage", "probe", "replay", "activate", "commit"),
    ]


@pytest.mark.parametrize("phase", Phase)
def test_an_event_out_of_place_raises_and_changes_nothing(phase: Phase) -> None:
    state = in_phase(phase)
    for kind in set(Kind) - set(TABLE[phase].on):
        with pytest.raises(IllegalEvent, match=f"in {phase.value}, got {kind.value}"):
            step(state, Event(kind))
    assert state == in_phase(phase)


@pytest.mark.parametrize("phase", Phase)
def test_every_phase_has_a_way_on_and_a_rule_for_waking_up(phase: Phase) -> None:
    after, effect = resume(in_phase(phase))

    assert Phase(after.phase) in TABLE
    assert effect is TABLE[Phase(after.phase)].effect
    assert Kind.ASSIGN in TABLE[phase].on


@pytest.mark.parametrize(
    ("phase", "rule"),
    [
        (Phase.ASSIGNED, Resume.CONTINUE),
        (Phase.FETCHING, Resume.CONTINUE),
        (Phase.VERIFIED, Resume.CONTINUE),
        (Phase.STAGED, Resume.RETRY),
        (Phase.REPLAYING, Resume.RETRY),
        (Phase.TRIAL, Resume.RETRY),
        (Phase.COMMITTED, Resume.CONTINUE),
        (Phase.ROLLING_BACK, Resume.ROLL_BACK),
        (Phase.FAILED, Resume.REPORT),
    ],
)
def test_waking_up_follows_the_resume_column(phase: Phase, rule: Resume) -> None:
    state = in_phase(phase)
    after, effect = resume(state)

    assert TABLE[phase].resume is rule
    assert after.attempts == state.attempts + (rule is Resume.RETRY)
    assert after.phase == phase.value
    assert effect is TABLE[phase].effect


def test_a_trial_that_takes_the_device_down_again_and_again_is_rolled_back() -> None:
    state = in_phase(Phase.TRIAL)
    for _ in range(MAX_ATTEMPTS):
        state, effect = resume(state)

    assert (state.phase, effect, state.undo) == ("rolling_back", Effect.ROLL_BACK, "new")
    state, _ = step(state, Event(Kind.ROLLED_BACK, good=OLD))
    assert (state.phase, state.good) == ("failed", OLD)


@pytest.mark.parametrize("phase", [Phase.ASSIGNED, Phase.FETCHING])
def test_a_missing_connection_is_never_counted(phase: Phase) -> None:
    state = in_phase(phase)
    for _ in range(20 * MAX_ATTEMPTS):
        state, effect = step(state, Event(Kind.UNAVAILABLE, reason="no answer"))

    assert (state.phase, state.attempts, effect) == (phase.value, 0, TABLE[phase].effect)


@pytest.mark.parametrize("phase", BEFORE_ACTIVATION)
def test_faults_of_this_machine_are_tried_again_but_not_for_ever(phase: Phase) -> None:
    state = in_phase(phase)
    seen = 0
    while state.phase != "failed":
        kind = Kind.FAULT if Kind.FAULT in TABLE[Phase(state.phase)].on else Kind.REFUSED
        state, _ = step(state, Event(kind, reason="disk full"))
        seen += 1

    assert seen == MAX_ATTEMPTS
    assert (state.good, state.reason) == (OLD, "disk full")


@pytest.mark.parametrize("phase", BEFORE_ACTIVATION)
def test_what_is_proven_bad_fails_at_once_without_touching_the_pointer(phase: Phase) -> None:
    state, effect = step(in_phase(phase), Event(Kind.REFUSED, reason="wrong profile"))

    assert (state.phase, state.good, effect) == ("failed", OLD, Effect.CLEAN)


@pytest.mark.parametrize("phase", [*BEFORE_ACTIVATION, Phase.IDLE, Phase.COMMITTED, Phase.FAILED])
def test_a_new_assignment_replaces_what_is_under_way_and_starts_counting_anew(phase: Phase) -> None:
    state, effect = step(replace(in_phase(phase), attempts=2), Event(Kind.ASSIGN, grant=OTHER))

    assert state == State(phase="assigned", grant=OTHER, good=OLD)
    assert effect is Effect.DESCRIBE


def test_a_new_assignment_during_a_trial_waits_for_the_roll_back() -> None:
    state, effect = step(in_phase(Phase.TRIAL), Event(Kind.ASSIGN, grant=OTHER))
    assert (state.phase, effect, state.undo, state.following) == ("rolling_back", Effect.ROLL_BACK, "new", OTHER)

    state, effect = step(state, Event(Kind.ROLLED_BACK, good=OLD))

    assert state == State(phase="assigned", grant=OTHER, good=OLD)


def test_a_damaged_last_good_slot_does_not_cost_the_deployment_that_may_repair_it() -> None:
    state, _ = step(in_phase(Phase.FETCHING), Event(Kind.CORRUPTED, reason="digest"))
    assert (state.phase, state.undo, state.following) == ("rolling_back", "old", GRANT)

    state, effect = step(state, Event(Kind.ROLLED_BACK, good=Good()))

    assert (state.phase, state.grant, state.good, effect) == ("assigned", GRANT, Good(), Effect.DESCRIBE)


def test_an_artifact_that_is_present_already_is_committed_without_a_fetch() -> None:
    grant = replace(GRANT, manifest="old")
    state, effect = step(State(phase="assigned", grant=grant, good=OLD), Event(Kind.PRESENT))

    assert (state.phase, effect) == ("committed", Effect.COMMIT)
    assert state.good == Good(manifest="old", release="strokes-2", deployment="d2")


def test_bytes_received_only_grow() -> None:
    state, _ = step(in_phase(Phase.ASSIGNED), Event(Kind.DESCRIBED, received=100))
    state, _ = step(state, Event(Kind.FETCHED, received=900))
    state, _ = step(state, Event(Kind.STAGED))

    assert state.bytes_received == 900


EVENTS = st.tuples(st.sampled_from([kind for kind in Kind if kind is not Kind.CORRUPTED]), st.booleans())


@given(st.lists(EVENTS, max_size=60), st.booleans())
def test_no_order_of_events_and_power_cuts_loses_the_last_good_model(
    events: list[tuple[Kind, bool]], first: bool
) -> None:
    good = Good() if first else OLD
    state = State(good=good)
    for kind, power_cut in events:
        grant = GRANT if kind is Kind.DENY else OTHER
        before = state
        try:
            state, effect = step(state, Event(kind, grant=grant, good=state.good if kind is Kind.ROLLED_BACK else None))
        except IllegalEvent:
            assert state == before
        else:
            assert effect is TABLE[Phase(state.phase)].effect
        if power_cut:
            state, _ = resume(state)
        assert state.attempts <= MAX_ATTEMPTS
        assert state.good.manifest or not before.good.manifest
        if state.good != before.good:
            assert state.phase == "committed"
        if state.phase == "rolling_back":
            assert state.undo
        assert settled(state) or state.grant is not None
