"""What one component makes of the assignments that the director signs: an event for its lifecycle, or nothing.

The judging itself is for all components at once (`agent.trust.judging`); here a verdict on one of them meets what that
one is doing. What was decided is kept, so that a power cut does not lead to another decision.
"""

import logging
from collections.abc import Callable

from agent.deployment.lifecycle import MAX_ATTEMPTS, Event, Grant, Kind, Phase, State, settled
from agent.trust.assignment import Inbox
from agent.trust.question import Verdict
from skerry.delivery.slots import Slots
from skerry.errors import Broken, Unavailable
from skerry.wire.messages import AGENT

_log = logging.getLogger("skerry.agent.decisions")
Decide = Callable[[bytes, str], tuple[Verdict, bool]]
"""Returns the verdict on a component of an assignment, and whether the director names that component no more."""


class Decisions:
    """Decides on the assignments of one component; the unnamed one is named by an empty text."""

    def __init__(self, component: str, *, inbox: Inbox, judge: Decide, slots: Slots) -> None:
        self._component = component
        self._inbox = inbox
        self._judge = judge
        self._slots = slots
        self._denials = 0
        self._judged: bytes | None = None
        self._leaving = False
        self.refusal = ""
        # the director names this component no more: it ends
        self.dropped: Callable[[], None] = lambda: None
        self.decommissioned: Callable[[], None] = lambda: None

    def pending(self) -> bool:
        """True while an assignment waits for a decision."""
        # one that ends this device is never noted as decided: should the power go before the end, it is decided again
        return self._inbox.pending() is not None and not self._leaving

    def decide(self, state: State) -> Event | None:
        """Decide on the pending assignment: an event for the lifecycle, or None when it changes nothing.

        Raises:
            Unavailable: something was missing or had expired; ask again later.
            Broken: the judge gave no verdict, or the disk refused.
        """
        payload = self._inbox.pending()
        if payload is None:
            return None
        try:
            verdict, absent = self._judge(payload, self._component)
        except Broken as error:
            self.refusal = str(error)
            raise
        self._slots.note_standing(revoked=verdict.revoked, listed=verdict.listed, samples=verdict.allowed)
        if absent and self._component not in ("", AGENT):
            # as with an order to wipe: noted as decided by what it leads to, the end of all that is kept of it
            self._leaving = True
            self.dropped()
            return None
        if absent:
            # what runs without a name runs on, and so does the agent: others were assigned, and these were not
            self._judged = payload
            return None
        self.refusal = verdict.reason
        if verdict.later:
            raise Unavailable(verdict.reason)
        if verdict.terms is None:
            # not signed by the director, or not for this device: there is no deployment to report to
            _log.warning("assignment refused: %s", verdict.reason)
            self._judged = payload
            return None
        if verdict.decommission:
            self._leaving = True
            self.decommissioned()
            return None
        return self._weigh(payload, verdict, state)

    def decided(self) -> None:
        """Note that what was judged last needs no further decision, now that what came of it is durable."""
        judged, self._judged = self._judged, None
        if judged is not None:
            self._inbox.decided(judged)

    def _weigh(self, payload: bytes, verdict: Verdict, state: State) -> Event | None:
        assert verdict.terms is not None  # noqa: S101 -- `decide` has looked
        current = state.following or state.grant
        repeated = current is not None and verdict.terms.deployment == current.deployment
        if verdict.ok:
            self._denials = 0
            self._judged = payload
            # signed anew before it expired: the floor and the standing of the slots are all that it brings
            grant = grant_of(verdict)
            return None if repeated and not _sealed_anew(state, grant) else Event(Kind.ASSIGN, grant=grant)
        # director and broker are two roads: the image repository's newest metadata may be a moment behind
        self._denials += 1
        if self._denials < MAX_ATTEMPTS:
            raise Unavailable(verdict.reason)
        self._denials = 0
        self._judged = payload
        if repeated and settled(state):
            _log.warning("assignment refused: %s", verdict.reason)
            return None
        return Event(Kind.DENY, grant=grant_of(verdict), reason=verdict.reason)


def _sealed_anew(state: State, grant: Grant) -> bool:
    """True when what is being fetched is to be had under other names: the server has lost the form it had sealed."""
    fetching = state.phase in (Phase.ASSIGNED.value, Phase.FETCHING.value)
    sealed = state.grant.content if state.grant is not None else None
    return fetching and sealed is not None and grant.content is not None and grant.content.files != sealed.files


def grant_of(verdict: Verdict) -> Grant:
    """Return what a verdict grants, or would have granted."""
    assert verdict.terms is not None  # noqa: S101 -- callers have looked
    terms = verdict.terms
    return Grant(
        deployment=terms.deployment,
        release=terms.release,
        path=verdict.path,
        length=verdict.length,
        manifest=verdict.sha256,
        rollback=terms.rollback,
        grace_s=terms.grace_s,
        trial_inferences=terms.trial_inferences,
        measure=terms.measure,
        measure_length=verdict.measure_length,
        measure_sha256=verdict.measure_sha256,
        content=terms.content,
        measure_content=terms.measure_content,
        samples=verdict.samples,
    )
