"""The trust decision and time: expiry by this device's clock, and by the floor where that clock lies."""

from datetime import timedelta

import pytest
from securesystemslib.signer import CryptoSigner

from agent.trust.floor import parse_moment, read_floor
from tests.unit.agent.trust_case import DAY, ISSUED, NOW, Case


def test_a_clock_in_1970_installs_what_is_fresh_and_refuses_what_had_expired_by_the_floor(case: Case) -> None:
    case.clock = 0.0
    assert case.ask().ok
    assert read_floor(case.folder) == parse_moment(ISSUED)

    # the director is fresh; the image repository is a frozen one that only a clock in 1970 finds alive
    case.image.expires = NOW - timedelta(seconds=1)
    case.image.publish()
    verdict = case.ask()

    assert (verdict.ok, verdict.later) == (False, True)
    assert "the latest moment that an assignment proved" in verdict.reason


def test_the_very_first_assignment_lifts_the_moment_by_which_the_image_repository_is_judged(case: Case) -> None:
    case.clock = 0.0
    case.image.expires = NOW - timedelta(days=1)
    case.image.publish()

    assert case.ask().later
    assert read_floor(case.folder) == 0.0


def test_a_clock_stepped_back_makes_nothing_fresh_again(case: Case) -> None:
    assert case.ask().ok
    case.director.expires = NOW - timedelta(hours=1)
    case.assign()
    case.clock -= 30 * DAY

    assert case.ask().later


def test_a_clock_ten_years_ahead_refuses_says_so_and_leaves_nothing_behind(case: Case) -> None:
    assert case.ask().ok
    case.assign()
    case.clock += 3650 * DAY

    ahead = case.ask()
    assert (ahead.ok, ahead.later) == (False, True)
    assert "if that clock is ahead, set it" in ahead.reason
    assert NOW.strftime("%Y-%m-%d") in ahead.reason

    case.clock -= 3650 * DAY
    assert case.ask().ok


@pytest.mark.parametrize("clock", [-1.0, 1e18])
def test_a_clock_that_no_calendar_has_does_not_end_the_judge(case: Case, clock: float) -> None:
    case.clock = clock
    assert case.ask().ok is (clock < 0)


def test_a_director_cannot_claim_a_moment_at_which_the_offline_targets_have_expired(case: Case) -> None:
    case.director.expires = NOW + timedelta(days=9000)
    case.assign(issued="2050-01-01T00:00:00Z")

    assert case.ask().later
    assert read_floor(case.folder) == 0.0
    case.assign()
    assert case.ask().ok


def test_a_floor_counts_no_longer_once_the_directors_keys_are_replaced(case: Case) -> None:
    # whoever held the online keys of both repositories pushed the floor as far as the offline targets reach
    case.image.expires = case.director.expires = NOW + timedelta(days=300)
    case.image.publish()
    case.assign(issued=(NOW + timedelta(days=299)).strftime("%Y-%m-%dT%H:%M:%SZ"))
    assert case.ask().ok
    case.image.expires = case.director.expires = NOW + timedelta(days=7)
    case.image.publish()
    case.assign()
    assert case.ask().later, "the floor holds while its witness does"

    key = [CryptoSigner.generate_ed25519()]
    for role in ("timestamp", "snapshot", "targets"):
        case.director.rotate(role, key)
    case.assign()

    case.ask()  # learns the new root, still by the old floor
    assert case.ask().ok
    assert read_floor(case.folder) == parse_moment(ISSUED)
