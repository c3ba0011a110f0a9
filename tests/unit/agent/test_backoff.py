"""A thousand devices that lose their broker at once, by seeded dice and without waiting."""

import random
from collections import Counter

import pytest

from agent.link.backoff import Backoff, full_jitter
from skerry.errors import Rejected

FLEET = 1000
SPREAD_S = 10.0


def arrivals(outage_s: float, *, seed: int = 1) -> tuple[list[float], list[float]]:
    """Return when each device was let in again, and when each attempt was made, in seconds after the loss."""
    back, attempts = [], []
    for number in range(FLEET):
        backoff = Backoff(SPREAD_S, dice=random.Random(seed * FLEET + number))
        now = backoff.pause(lived_s=86400)
        attempts.append(now)
        while now < outage_s:
            now += backoff.pause()
            attempts.append(now)
        back.append(now)
    return back, attempts


def most_in(span_s: float, moments: list[float]) -> int:
    """Return how many fell into the fullest span of this length, wherever that began."""
    moments, most, first = sorted(moments), 0, 0
    for last, moment in enumerate(moments):
        while moments[first] <= moment - span_s:
            first += 1
        most = max(most, last - first + 1)
    return most


@pytest.mark.parametrize("outage_s", [0, 1, 5, 30, 300, 3600])
def test_a_fleet_does_not_come_back_at_once(outage_s: float) -> None:
    back, attempts = arrivals(outage_s)

    # a thousand over ten seconds are a hundred a second; who tried too early comes on top, and so does chance
    assert most_in(1.0, back) <= 175
    assert most_in(0.2, back) <= 50
    assert most_in(1.0, attempts) <= 175
    assert max(back) - outage_s <= 12 * SPREAD_S, "and nobody stays away for ever"


def test_the_longer_the_outage_the_fewer_come_in_a_second() -> None:
    assert most_in(1.0, arrivals(300)[0]) <= 40


def test_a_broker_that_accepts_and_drops_is_asked_ever_less_often() -> None:
    backoff, now, attempts = Backoff(SPREAD_S, dice=random.Random(7)), 0.0, 0
    while now < 3600:
        now += backoff.pause(lived_s=0.5) + 0.5
        attempts += 1

    assert 3600 / 120 <= attempts <= 3600 / 60 + 30


def test_a_connection_that_lived_a_while_begins_anew_and_one_that_did_not_does_not() -> None:
    def waits(lived_s: float) -> list[float]:
        backoff = Backoff(SPREAD_S, dice=random.Random(3))
        return [backoff.pause(lived_s=lived_s) for _ in range(200)]

    assert max(waits(3 * SPREAD_S)) <= SPREAD_S
    assert max(waits(3 * SPREAD_S - 0.1)) > 6 * SPREAD_S


def test_the_first_wait_is_spread_like_all_others() -> None:
    firsts = [Backoff(SPREAD_S, dice=random.Random(seed)).pause() for seed in range(FLEET)]

    by_second = Counter(int(each) for each in firsts)
    assert set(by_second) == set(range(10))
    assert max(by_second.values()) <= 135


def test_errands_are_spread_from_the_first_repetition_on() -> None:
    firsts = [full_jitter(0, least_s=2.0, most_s=60.0) for _ in range(FLEET)]

    assert 2.0 <= min(firsts) < 2.2
    assert 3.8 < max(firsts) <= 4.0
    assert max(full_jitter(60, least_s=2.0, most_s=60.0) for _ in range(FLEET)) <= 60.0
    assert full_jitter(0, least_s=60.0, most_s=30.0) == 60.0


@pytest.mark.parametrize("reconnect_s", [0.0, -1.0, 3601.0])
def test_a_spread_has_bounds(reconnect_s: float) -> None:
    with pytest.raises(Rejected, match="reconnect_s: expected"):
        Backoff(reconnect_s)
