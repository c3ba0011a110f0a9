"""When a device renews its certificate: by its clock, by the floor, by the broker's silence, and not too often."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.identity import renewal
from agent.identity.errand import Tokens
from agent.identity.folder import StateFolder
from agent.identity.life import Life
from agent.identity.renewal import Renewal
from agent.trust.floor import advance
from skerry.errors import Rejected, Unavailable
from skerry.wire.enrolment import Token

DAY = 86400.0
LIFE = Life(begins=100 * DAY, ends=130 * DAY)


class Watch:
    """A renewal whose errands are remembered; `outcomes` are what they lead to, the last one for ever."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.connected = True
        self.may_keep = True
        self.errands: list[str] = []
        self.outcomes: list[Any] = []
        self.renewed = threading.Event()
        self.folder = folder
        monkeypatch.setattr(renewal, "run_errand", self._errand)
        monkeypatch.setattr(renewal, "full_jitter", lambda *_args, **_named: 0.01)
        self.renewal = Renewal(
            StateFolder(folder),
            connected=lambda: self.connected,
            on_renewed=self.renewed.set,
            may_keep=lambda: self.may_keep,
            clock=lambda: self.now,
        )

    def _errand(self, errand: str, folder: Path, kind: Any) -> Any:
        assert (folder, kind) == (self.folder, Life)
        self.errands.append(errand)
        if errand == "life":
            return LIFE
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watch:
    """A renewal that has not been started."""
    return Watch(tmp_path, monkeypatch)


def eventually(what: Callable[[], bool]) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + 10
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_could_not_be_kept_is_not_asked_for(watch: Watch) -> None:
    watch.now, watch.may_keep = 129 * DAY, False
    watch.outcomes = [LIFE]
    watch.renewal.start()
    eventually(lambda: watch.renewal.life is not None)
    time.sleep(0.1)
    watch.renewal.stop()

    assert watch.errands == ["life"]
    assert watch.renewal.problem == ""


DUE = {
    "young": (110 * DAY, 0.0, False),
    "a moment before two thirds": (120 * DAY - 1, 0.0, False),
    "at two thirds": (120 * DAY, 0.0, True),
    "past its end": (500 * DAY, 0.0, True),
    "a clock in 1970 whose floor is late": (0.0, 121 * DAY, True),
    "a clock in 1970 whose floor is early": (0.0, 110 * DAY, False),
}


@pytest.mark.parametrize("case", DUE)
def test_a_certificate_is_due_by_the_later_of_clock_and_floor(watch: Watch, case: str) -> None:
    watch.now, floor, due = DUE[case]
    if floor:
        advance(watch.folder / "trust", floor, witness=("k",))

    assert watch.renewal._is_due(LIFE) is due


def test_a_new_certificate_is_let_be_whatever_the_clock_says(watch: Watch) -> None:
    watch.now = 3650 * DAY  # ten years ahead: every certificate is past its end
    watch.outcomes = [LIFE]

    watch.renewal.start()
    watch.renewed.wait(5)
    eventually(lambda: watch.renewal.problem == "")
    watch.renewal.stop()

    assert watch.errands == ["life", "renew"]
    assert not watch.renewal._is_due(LIFE)


def test_what_fails_is_tried_again_and_said_until_it_works(watch: Watch) -> None:
    watch.now = 121 * DAY
    watch.outcomes = [Unavailable("no answer"), Rejected("not you"), LIFE]
    seen: list[str] = []
    watch.renewal._on_renewed = lambda: seen.append(watch.renewal.problem)

    watch.renewal.start()
    eventually(lambda: bool(seen) and watch.renewal.problem == "")
    watch.renewal.stop()

    assert watch.errands == ["life", "renew", "renew", "renew"]
    assert seen == ["not you"]


def test_a_silent_broker_casts_doubt_on_the_clock_ever_less_often(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("agent.identity.renewal.time.monotonic", lambda: clock[0])
    watch.renewal._silent_since = clock[0]
    watch.connected = False
    asked = []
    for second in range(0, 3600, 10):
        clock[0] = 1000.0 + second
        if watch.renewal._in_doubt():
            asked.append(second)
    assert asked == [120, 120 + 240, 120 + 240 + 480, 120 + 240 + 480 + 960]

    watch.connected = True
    assert not watch.renewal._in_doubt()
    watch.connected = False
    clock[0] += 119
    assert not watch.renewal._in_doubt()


def test_a_token_is_bought_again_before_it_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bought = iter([Token(token="first", expires_s=900), Token(token="second", expires_s=900)])
    monkeypatch.setattr("agent.identity.errand.run_errand", lambda *_: next(bought))
    now = [0.0]
    tokens = Tokens(tmp_path, clock=lambda: now[0])

    assert [tokens.get(), tokens.get()] == ["first", "first"]
    now[0] = 720.0
    assert tokens.get() == "second"
