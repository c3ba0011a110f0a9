"""A trial over time: how long it waits for inputs, and what a device notes of one that goes on."""

import pytest

from agent.inference.trial import FIRST_GRACE_S, NOTED_S, WELL_S, Life, grace_left


@pytest.mark.parametrize(
    ("granted_s", "lived_s", "has_good", "left_s"),
    [
        (86400, 0, True, 86400),
        (86400, 86000, True, 400),
        (86400, 90000, True, 0),
        (86400, 0, False, FIRST_GRACE_S),
        (86400, 86390, False, 10),
        (5, 0, False, 5),
        (0, 0, True, 0),
    ],
)
def test_the_grace_goes_on_over_restarts_and_is_a_minute_while_nothing_is_good(
    granted_s: int, lived_s: int, has_good: bool, left_s: int
) -> None:
    assert grace_left(granted_s, lived_s=lived_s, has_good=has_good) == left_s


def noted(life: Life, manifest: str, until_s: int) -> list[tuple[int, int]]:
    """Return when something was noted, and how much, turning once a second from 1000 on."""
    turns = ((now, life.turn(manifest, 1000.0 + now)) for now in range(until_s))
    return [(now, lived_s) for now, lived_s in turns if lived_s]


def test_a_trial_is_noted_after_a_minute_and_then_every_quarter_of_an_hour_and_all_of_it() -> None:
    first, often = int(WELL_S), int(NOTED_S)
    assert noted(Life(), "new", first + 2 * often + 1) == [
        (first, first),
        (first + often, often),
        (first + 2 * often, often),
    ]


def test_without_a_trial_nothing_is_noted_and_another_begins_anew() -> None:
    life = Life()
    assert noted(life, "", 1000) == []
    assert noted(life, "new", 50) == []
    assert noted(life, "newer", 70) == [(int(WELL_S), int(WELL_S))]


def test_what_ended_by_itself_is_not_said_to_live() -> None:
    life = Life()
    life.ended("new")
    assert noted(life, "new", 2000) == []
    assert noted(life, "newer", 70) != []
