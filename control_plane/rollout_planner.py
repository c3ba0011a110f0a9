"""The rollout planner: from what is known to what to do next, as values; no database, no broker, no clock.

Two questions are answered here. `spread` says, once, which device goes into which wave. `plan` says, as often as it is
asked, which actions bring a rollout forward; when nothing has changed since its actions were done, it returns none.

    wave    waiting -> running     when all waves before it are done
            running -> done        when each attempt in it is committed or left out
            running -> failed      when one of its attempts failed; the rollout pauses with that reason
    attempt waiting -> assigned    when its wave runs
            waiting -> committed   when the device already runs what it would be given
            waiting -> left-out    when the device was revoked meanwhile

Drift is not among the inputs: it never promotes a release, and the operator starts and cancels rollouts.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from skerry.errors import Rejected

MAX_WAVES = 64
SETTLED = frozenset({"committed", "left-out"})


@dataclass(frozen=True, slots=True)
class WaveRequest:
    """A wave as it was asked for: by names, or as a share of all eligible devices, or as the rest."""

    name: str
    devices: tuple[str, ...] = ()
    share: float | None = None
    rest: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """A device as the planner sees it when a rollout is made; `obstacle` says why it cannot take part, if so."""

    name: str
    profile: str
    obstacle: str = ""


@dataclass(frozen=True, slots=True)
class Wave:
    """A wave as it stands: waiting, running, done or failed."""

    number: int
    state: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """A deployment as it stands; `manifest` is what it would bring to the device."""

    id: str
    wave: int
    device: str
    manifest: str
    state: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class DeviceNow:
    """What a device last said it has committed (a manifest's digest), and whether it is still enrolled."""

    manifest: str
    enrolled: bool = True


@dataclass(frozen=True, slots=True)
class StartWave:
    """Set the wave running."""

    number: int


@dataclass(frozen=True, slots=True)
class EndWave:
    """Set the wave `done` or `failed`."""

    number: int
    state: str


@dataclass(frozen=True, slots=True)
class Assign:
    """Tell the device, through the director, to run what the attempt brings."""

    attempt: str


@dataclass(frozen=True, slots=True)
class Settle:
    """End an attempt without telling the device anything."""

    attempt: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class EndRollout:
    """Set the rollout `done` or `paused`, with the reason."""

    state: str
    reason: str = ""


Action = StartWave | EndWave | Assign | Settle | EndRollout


def plan(
    state: str, waves: Sequence[Wave], attempts: Sequence[Attempt], devices: Mapping[str, DeviceNow]
) -> tuple[Action, ...]:
    """Return what brings a rollout in `state` forward by one step: nothing unless it is running."""
    if state != "running":
        return ()
    wave = next((wave for wave in waves if wave.state != "done"), None)
    if wave is None:
        return (EndRollout("done"),)

    mine = [attempt for attempt in attempts if attempt.wave == wave.number]
    failed = [attempt for attempt in mine if attempt.state == "failed"]
    if failed:
        return (EndWave(wave.number, "failed"), EndRollout("paused", _reason(failed)))
    if all(attempt.state in SETTLED for attempt in mine):
        last = wave.number == waves[-1].number
        return (EndWave(wave.number, "done"), *((EndRollout("done"),) if last else ()))

    start = (StartWave(wave.number),) if wave.state == "waiting" else ()
    waiting = [attempt for attempt in mine if attempt.state == "waiting"]
    return (*start, *(_next(attempt, devices.get(attempt.device)) for attempt in waiting))


def spread(
    requests: Sequence[WaveRequest], candidates: Collection[Candidate], *, seed: str
) -> tuple[tuple[Candidate, ...], ...]:
    """Put devices into waves, each at most once; the same arguments give the same waves.

    A share counts of all eligible devices, takes at least one, and takes the profiles in turn, so that a canary wave
    sees each kind of device as early as its size allows. A device named explicitly keeps its obstacle, if it has one:
    it is listed and left out.

    Raises:
        Rejected: a wave is not one of the three forms, names an unknown device or one twice, or no device is left.
    """
    _check_requests(requests)
    by_name = {candidate.name: candidate for candidate in candidates}
    named = {name for request in requests for name in request.devices}
    unknown = sorted(named - set(by_name))
    if unknown:
        raise Rejected(f"waves: expected enrolled devices, got {', '.join(unknown[:5])}")

    eligible = [candidate for candidate in candidates if not candidate.obstacle]
    free = [candidate for candidate in _in_turn(eligible, seed) if candidate.name not in named]
    waves: list[tuple[Candidate, ...]] = []
    for request in requests:
        if request.devices:
            waves.append(tuple(by_name[name] for name in request.devices))
            continue
        size = len(free) if request.share is None else max(1, math.ceil(request.share * len(eligible)))
        waves.append(tuple(sorted(free[:size], key=lambda candidate: candidate.name)))
        free = free[size:]
    if not any(not candidate.obstacle for wave in waves for candidate in wave):
        obstacles = sorted({candidate.obstacle for candidate in candidates if candidate.obstacle})
        why = f" ({'; '.join(obstacles[:3])})" if obstacles else ""
        raise Rejected(f"rollout: expected at least one device that can take the release, got none{why}")
    return tuple(waves)


def _next(attempt: Attempt, device: DeviceNow | None) -> Action:
    if device is None or not device.enrolled:
        return Settle(attempt.id, "left-out", "the device is no longer enrolled")
    if device.manifest == attempt.manifest:
        return Settle(attempt.id, "committed", "the device already runs it")
    return Assign(attempt.id)


def _reason(failed: Sequence[Attempt]) -> str:
    first = failed[0]
    more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
    return f"{first.device}{more} failed: {first.reason or 'no reason given'}"


def _check_requests(requests: Sequence[WaveRequest]) -> None:
    if not 1 <= len(requests) <= MAX_WAVES:
        raise Rejected(f"waves: expected 1 to {MAX_WAVES}, got {len(requests)}")
    names = [request.name for request in requests]
    if len(set(names)) != len(names):
        raise Rejected(f"waves: expected different names, got {', '.join(names)}")
    listed = Counter(name for request in requests for name in request.devices)
    twice = sorted(name for name, times in listed.items() if times > 1)
    if twice:
        raise Rejected(f"waves: expected each device once, got {twice[0]} twice")
    for request in requests:
        if sum((bool(request.devices), request.share is not None, request.rest)) != 1:
            raise Rejected(f"wave {request.name!r}: expected one of devices, share or rest")
        if request.share is not None and not 0 < request.share <= 1:
            raise Rejected(f"wave {request.name!r}: expected a share above 0 and at most 1, got {request.share}")


def _in_turn(candidates: Sequence[Candidate], seed: str) -> list[Candidate]:
    by_profile: dict[str, list[Candidate]] = {}
    for candidate in sorted(candidates, key=lambda candidate: _draw(candidate.name, seed)):
        by_profile.setdefault(candidate.profile, []).append(candidate)
    columns = (by_profile[profile] for profile in sorted(by_profile))
    return [candidate for row in zip_longest(*columns) for candidate in row if candidate is not None]


def _draw(name: str, seed: str) -> str:
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()
