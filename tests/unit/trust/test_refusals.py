"""The bound on refused proofs: by address, for a minute, and never more addresses than fit."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from control_plane.api.problems import status_of
from control_plane.api.proof import Refusals
from control_plane.refusals import Forbidden, TooMany

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def ask(refusals: Refusals, address: str, *, now: datetime = NOW, good: bool = False) -> bool:
    """Ask from an address; say whether the question was heard at all."""
    request: Any = SimpleNamespace(client=SimpleNamespace(host=address))
    try:
        with refusals.counted(request, now):
            if not good:
                raise Forbidden("proof: no")
    except TooMany:
        return False
    except Forbidden:
        pass
    return True


def test_guessing_is_slow_and_others_go_on() -> None:
    refusals = Refusals(limit=3)

    assert [ask(refusals, "10.0.0.1") for _ in range(5)] == [True, True, True, False, False]
    assert not ask(refusals, "10.0.0.1", good=True)
    assert ask(refusals, "10.0.0.2", good=True)
    assert ask(refusals, "10.0.0.1", now=NOW + timedelta(minutes=1))


def test_what_is_granted_counts_for_nothing() -> None:
    refusals = Refusals(limit=1)

    assert all(ask(refusals, "10.0.0.1", good=True) for _ in range(10))


def test_an_ipv6_network_is_one_address() -> None:
    refusals = Refusals(limit=1)

    assert ask(refusals, "2001:db8::1")
    assert not ask(refusals, "2001:db8::2")
    assert ask(refusals, "2001:db8:0:1::1")


def test_what_is_kept_is_bounded() -> None:
    refusals = Refusals(limit=1, addresses=8)

    for number in range(100):
        assert ask(refusals, f"10.0.0.{number}")
    assert len(refusals._counts) == 8
    assert not ask(refusals, "10.0.0.99")


def test_too_many_is_a_status_of_its_own() -> None:
    assert status_of(TooMany("wait")) == 429
    with pytest.raises(TooMany, match="wait a minute"), Refusals(limit=0).counted(_nobody(), NOW):
        pass


def _nobody() -> Any:
    return SimpleNamespace(client=None)
