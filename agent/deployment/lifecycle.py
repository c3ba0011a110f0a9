"""The device's lifecycle: one table, `step(state, event) -> (state, effect)`.

A deployment moves  assigned > fetching > verified > staged > replaying > trial > committed;  whatever goes wrong ends
in `failed` with the last good artifact still running, by way of `rolling_back` once the pointer has been switched.

Rules, each visible in the table:

- entering a phase has one effect, and every effect may be repeated: the runner saves the state first, then acts;
- the resume rule of a phase says what a device does when it wakes up in it (`Resume`);
- a missing connection is `unavailable`: tried again for ever, never counted, never a failed model;
- what breaks on this machine (`fault`) or may have crashed it (`Resume.RETRY`) is counted and capped per deployment;
- what was proven bad (`refused`) fails at once, and is not tried again unless a new assignment says so;
- nothing before `trial` touches the model that is running;
- a new assignment replaces one that is under way; on trial, the pointer goes back first.

Example: in `fetching`, the event `fetched` leads to `verified` with the effect `stage`; a power cut there wakes up in
`verified` and stages again. An event that a phase does not list raises `IllegalEvent` and changes nothing.
This module knows no disk, clock, network or model.
"""

from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType

from skerry.errors import Broken
from skerry.wire.manifest import NO_SAMPLES, SamplePolicy
from skerry.wire.messages import Content

MAX_ATTEMPTS = 3


class IllegalEvent(Broken):
    """The event does not belong into this phase; nothing was changed."""


class Phase(Enum):
    """Where a device stands, by the words of the glossary."""

    IDLE = "idle"  # nothing was ever assigned
    ASSIGNED = "assigned"  # director and image repository agree on a target
    FETCHING = "fetching"  # its manifest is here and fits; its files are on their way
    VERIFIED = "verified"  # every byte is here and true
    STAGED = "staged"  # in the inactive slot
    REPLAYING = "replaying"  # loads in a child; golden vectors are being replayed
    TRIAL = "trial"  # runs, not yet trusted
    COMMITTED = "committed"  # good
    ROLLING_BACK = "rolling_back"  # the pointer goes back to the last good slot
    FAILED = "failed"  # given up; the last good one, if any, runs on


class Effect(Enum):
    """What the runner does on entering a phase."""

    NONE = "none"
    DESCRIBE = "describe"  # fetch the manifest and see whether it fits this device
    FETCH = "fetch"
    STAGE = "stage"
    PROBE = "probe"  # first load, in a child with limits
    REPLAY = "replay"
    ACTIVATE = "activate"
    COMMIT = "commit"
    ROLL_BACK = "roll_back"
    CLEAN = "clean"  # drop what was fetched


class Kind(Enum):
    """What can happen."""

    ASSIGN = "assign"  # a trusted assignment of a deployment that is not the current one
    DENY = "deny"  # the director assigned what the image repository does not list
    DESCRIBED = "described"
    PRESENT = "present"  # the artifact assigned is the one that is committed already
    FETCHED = "fetched"
    STAGED = "staged"
    LOADED = "loaded"
    REPLAYED = "replayed"
    LIVED = "lived"  # what is on trial has run on for a while: ends are counted from nothing again
    PASSED = "passed"  # the trial's local evidence is complete
    ROLLED_BACK = "rolled_back"
    UNAVAILABLE = "unavailable"  # the network: try again later
    FAULT = "fault"  # this machine: try again, counted
    REFUSED = "refused"  # the artifact: proven bad
    CORRUPTED = "corrupted"  # the last good slot no longer has its digests
    CRASHED = "crashed"  # what is committed ends again and again, and the other slot is fit


class Resume(Enum):
    """What a device does when it wakes up in a phase."""

    CONTINUE = "continue"  # perform the effect again; nothing is counted
    RETRY = "retry"  # the same, counted: the phase may be what stopped the machine
    ROLL_BACK = "roll back"
    REPORT = "report"  # nothing to do but to say so


@dataclass(frozen=True, slots=True)
class Grant:
    """What both repositories agreed on: the terms that matter later, the target, and the other build to measure.

    `samples` is what the offline keys let leave the device of its inputs.
    """

    deployment: str
    release: str
    path: str = ""
    length: int = 0
    manifest: str = ""
    rollback: bool = False
    grace_s: int = 86400
    trial_inferences: int = 20
    measure: str = ""
    measure_length: int = 0
    measure_sha256: str = ""
    content: Content | None = None
    measure_content: Content | None = None
    samples: SamplePolicy = NO_SAMPLES


@dataclass(frozen=True, slots=True)
class Good:
    """The last artifact that was committed; `manifest` is empty before the first."""

    manifest: str = ""
    release: str = ""
    deployment: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """Everything that survives a power cut.

    While rolling back, `undo` is the manifest that is given up, and `following` the assignment that comes after it.
    `lived_s` is how long the trial has run, over restarts.
    """

    phase: str = Phase.IDLE.value
    grant: Grant | None = None
    good: Good = Good()
    attempts: int = 0
    reason: str = ""
    bytes_received: int = 0
    undo: str = ""
    following: Grant | None = None
    lived_s: int = 0
    v: int = 1


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened, with what it brings; with a `manifest` it is about that one as the last good one."""

    kind: Kind
    grant: Grant | None = None
    good: Good | None = None
    reason: str = ""
    received: int = 0
    lived_s: int = 0
    manifest: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """Where an event leads; `counted` rows lead to `spent` when the attempts are used up."""

    to: Phase
    counted: bool = False
    spent: Phase = Phase.FAILED


@dataclass(frozen=True, slots=True)
class PhaseRule:
    """One line of the table: the effect of entering a phase, its resume rule, and its events."""

    effect: Effect
    resume: Resume
    on: dict[Kind, Row]
    spent: Phase = Phase.FAILED


_REPLACE = {Kind.ASSIGN: Row(Phase.ASSIGNED), Kind.DENY: Row(Phase.FAILED)}
_SAME = {Kind.PRESENT: Row(Phase.COMMITTED)}
_LIVED = {Kind.LIVED: Row(Phase.TRIAL)}
_DAMAGED = {kind: Row(Phase.ROLLING_BACK) for kind in (Kind.CORRUPTED, Kind.CRASHED)}
_GIVE_UP = {Kind.REFUSED: Row(Phase.FAILED), **_DAMAGED, **_REPLACE}
_UNDO = {kind: Row(Phase.ROLLING_BACK) for kind in (Kind.ASSIGN, Kind.DENY, Kind.REFUSED)}


def _again(phase: Phase, spent: Phase = Phase.FAILED) -> dict[Kind, Row]:
    return {Kind.UNAVAILABLE: Row(phase), **_again_here(phase, spent)}


def _again_here(phase: Phase, spent: Phase) -> dict[Kind, Row]:
    return {Kind.FAULT: Row(phase, counted=True, spent=spent)}


_I, _A, _F, _V, _S, _R = Phase.IDLE, Phase.ASSIGNED, Phase.FETCHING, Phase.VERIFIED, Phase.STAGED, Phase.REPLAYING
_T, _C, _B, _X = Phase.TRIAL, Phase.COMMITTED, Phase.ROLLING_BACK, Phase.FAILED
_CONTINUE, _RETRY, _UNDOING, _REPORT = Resume.CONTINUE, Resume.RETRY, Resume.ROLL_BACK, Resume.REPORT

# fmt: off
TABLE = MappingProxyType({
    #             effect             woken up   events
    _I: PhaseRule(Effect.NONE,       _CONTINUE, _REPLACE),
    _A: PhaseRule(Effect.DESCRIBE,   _CONTINUE, {Kind.DESCRIBED: Row(_F), **_SAME, **_again(_A), **_GIVE_UP}),
    _F: PhaseRule(Effect.FETCH,      _CONTINUE, {Kind.FETCHED: Row(_V), **_again(_F), **_GIVE_UP}),
    _V: PhaseRule(Effect.STAGE,      _CONTINUE, {Kind.STAGED: Row(_S), **_again(_F), **_GIVE_UP}),
    _S: PhaseRule(Effect.PROBE,      _RETRY,    {Kind.LOADED: Row(_R), **_again(_S), **_GIVE_UP}),
    _R: PhaseRule(Effect.REPLAY,     _RETRY,    {Kind.REPLAYED: Row(_T), **_again(_R), **_GIVE_UP}),
    _T: PhaseRule(Effect.ACTIVATE,   _RETRY,    {Kind.PASSED: Row(_C), **_LIVED, **_again(_T, _B), **_UNDO}, spent=_B),
    _C: PhaseRule(Effect.COMMIT,     _CONTINUE, {**_DAMAGED, **_again_here(_C, _B), **_REPLACE}),
    _B: PhaseRule(Effect.ROLL_BACK,  _UNDOING,  {Kind.ROLLED_BACK: Row(_X), Kind.FAULT: Row(_B), **_UNDO}),
    _X: PhaseRule(Effect.CLEAN,      _REPORT,   {**_DAMAGED, **_REPLACE}),
})
# fmt: on


_SETTLED = frozenset({Phase.IDLE.value, Phase.COMMITTED.value, Phase.FAILED.value})


def step(state: State, event: Event) -> tuple[State, Effect]:
    """Return the next state and what to do; an event out of place raises `IllegalEvent` and changes nothing."""
    phase = Phase(state.phase)
    row = TABLE[phase].on.get(event.kind)
    if row is None:
        raise IllegalEvent(f"lifecycle: expected one of {_names(phase)} in {phase.value}, got {event.kind.value}")

    if event.kind is Kind.LIVED:
        # nothing is done: it runs
        return replace(state, attempts=0, lived_s=state.lived_s + event.lived_s), Effect.NONE
    if row.counted:
        return _counted(state, reason=event.reason, spent=row.spent, again=row.to)
    return _enter(state, row.to, event)


def settled(state: State) -> bool:
    """True when no deployment is under way."""
    return state.phase in _SETTLED


def resume(state: State) -> tuple[State, Effect]:
    """Return how a device that wakes up in `state` goes on, by the resume column."""
    rule = TABLE[Phase(state.phase)]
    if rule.resume is Resume.RETRY:
        reason = state.reason or f"the device restarted while {state.phase}"
        return _counted(state, reason=reason, spent=rule.spent, again=Phase(state.phase))
    return state, rule.effect


def _counted(state: State, *, reason: str, spent: Phase, again: Phase) -> tuple[State, Effect]:
    attempts = state.attempts + 1
    to = spent if attempts >= MAX_ATTEMPTS else again
    after = replace(state, phase=to.value, attempts=attempts, reason=reason)
    return _mark(after, to), TABLE[to].effect


def _enter(state: State, to: Phase, event: Event) -> tuple[State, Effect]:
    received = max(state.bytes_received, event.received)
    after = replace(state, phase=to.value, reason=event.reason, bytes_received=received)

    if event.kind in (Kind.ASSIGN, Kind.DENY):
        after = _take(state, to, event)
    elif event.kind is Kind.ROLLED_BACK:
        good = event.good or state.good
        after = replace(after, good=good, reason=event.reason or state.reason, undo="")
        if state.following is not None:
            to = Phase.ASSIGNED
            after = State(phase=to.value, grant=state.following, good=good)
    elif to is Phase.COMMITTED and state.grant is not None:
        grant = state.grant
        after = replace(after, good=Good(manifest=grant.manifest, release=grant.release, deployment=grant.deployment))
    elif event.kind in (Kind.CORRUPTED, Kind.CRASHED):
        # the deployment under way is not at fault, and may be what repairs this: it begins anew afterwards
        under_way = None if state.phase in _SETTLED else state.grant
        after = replace(after, undo=state.good.manifest, following=under_way)
    return _mark(after, to), TABLE[to].effect


def _mark(state: State, to: Phase) -> State:
    """Remember what a roll-back gives up, once: the grant's artifact, unless the event named another."""
    if to is Phase.ROLLING_BACK and not state.undo and state.grant is not None:
        return replace(state, undo=state.grant.manifest)
    return state


def _take(state: State, to: Phase, event: Event) -> State:
    """Begin with another grant: at once, or after the roll-back when the pointer has been switched."""
    if to is not Phase.ROLLING_BACK:
        return State(phase=to.value, grant=event.grant, good=state.good, reason=event.reason)
    reason = event.reason or "replaced by another assignment"
    following = event.grant if event.kind is Kind.ASSIGN else None
    return replace(state, phase=to.value, following=following, reason=reason)


def _names(phase: Phase) -> str:
    return ", ".join(kind.value for kind in TABLE[phase].on)
