"""Turns: what asks the link, or holds a second model in memory, is done by one component of the device at a time."""

import threading

from agent.deployment.lifecycle import Effect, Event, Kind, State
from agent.deployment.runner import Effects, Runner
from skerry.errors import Unavailable

_IN_TURN = (Effect.DESCRIBE, Effect.FETCH, Effect.PROBE)
_TURN_S = 0.2


class InTurn:
    """Effects of which no two units do what takes the network, or a lot of memory, at a time."""

    def __init__(self, effects: Effects, runner: Runner, turn: threading.Lock) -> None:
        self._effects = effects
        self._runner = runner
        self._turn = turn

    def perform(self, effect: Effect, state: State) -> Event | None:
        """Do it, in its turn; something more urgent is no reason to wait any longer."""
        if effect not in _IN_TURN:
            return self._effects.perform(effect, state)
        while not self._turn.acquire(timeout=_TURN_S):
            if self._runner.interrupts(self._effects):
                return Event(Kind.UNAVAILABLE)
        try:
            return self._effects.perform(effect, state)
        finally:
            self._turn.release()

    def decide(self, state: State) -> Event | None:
        """Judge the pending assignment, in its turn; who fetches meanwhile is interrupted by the same one."""
        if not self._turn.acquire(timeout=_TURN_S * 10):
            raise Unavailable("assignment: expected its turn, got another component that is busy; trying again")
        try:
            return self._effects.decide(state)
        finally:
            self._turn.release()

    def decided(self) -> None:
        """Note that the assignment was decided."""
        self._effects.decided()

    def pending(self) -> bool:
        """True while an assignment waits for a decision."""
        return self._effects.pending()

    def measured(self) -> dict[str, float]:
        """What is known about the artifact under way."""
        return self._effects.measured()
