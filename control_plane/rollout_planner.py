"""The rollout planner: from what is known to what to do next, as values; no database, no broker, no clock.

Two questions are answered here. `spread` says, once, which device goes into which wave. `plan` says, as often as it is
asked, which actions bring a rollout forward; when nothing has changed since its actions were done, it returns none.

    wave    waiting -> running     when all waves before it are done
            running -> done        when each attempt in it is committed or left out
            running -> failed      when one of its attempts failed; the rollout pauses with that reason
    attempt waiting -> assigned    when its wave runs
            waiting -> committed   when the device already runs what it would be given
            waiting -> left-out    when the device was revoked meanwhile

Where a release has two builds for a profile (a `Contest`), the first devices of that profile, three at most, measure
both, and the others of their wave wait for the choice; so does the next wave, as for everything in this one. Whoever
ran the build that lost gets the other one by a further attempt in the same wave, and a failure of the lost build fails
no wave: until the choice is made nobody knows which that is.

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
ENDED = SETTLED | {"failed"}
MAX_WITNESSES = 3


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
    """A deployment as it stands; `manifest` is what it would bring, `measures` whether it measures two builds."""

    id: str
    wave: int
    device: str
    manifest: str
    state: str
    reason: str = ""
    profile: str = ""
    measures: bool = False


@dataclass(frozen=True, slots=True)
class Contest:
    """The manifests of a profile's two builds; `chosen` is one of them, or empty while nothing was chosen."""

    first: str
    second: str
    chosen: str = ""

    def lost(self, manifest: str) -> bool:
        """Say whether a build was measured and not chosen."""
        return self.chosen != "" and manifest in (self.first, self.second) and manifest != self.chosen


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
    """Tell the device, through the director, to run what the attempt brings, and to `measure` the other build too."""

    attempt: str
    measure: bool = False


@dataclass(frozen=True, slots=True)
class Choose:
    """Let the evidence choose between the two builds of a profile."""

    profile: str


@dataclass(frozen=True, slots=True)
class Replace:
    """Add an attempt, in the same wave, that brings the chosen build to the device of this one."""

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


Action = StartWave | EndWave | Assign | Settle | EndRollout | Choose | Replace
NO_CONTESTS: Mapping[str, Contest] = {}


def plan(
    state: str,
    waves: Sequence[Wave],
    attempts: Sequence[Attempt],
    devices: Mapping[str, DeviceNow],
    contests: Mapping[str, Contest] = NO_CONTESTS,
) -> tuple[Action, ...]:
    """Return what brings a rollout in `state` forward by one step: nothing unless it is running.

    `contests` are the profiles for which the release has two builds.
    """
    if state != "running":
        return ()
    wave = next((wave for wave in waves if wave.state != "done"), None)
    if wave is None:
        return (EndRollout("done"),)

    mine = [attempt for attempt in attempts if attempt.wave == wave.number]
    failed = [attempt for attempt in mine if attempt.state == "failed" and not _excused(attempt, contests)]
    if failed:
        return (EndWave(wave.number, "failed"), EndRollout("paused", _reason(failed)))
    chosen = _choose(mine, contests) or _replace(mine, contests)
    if chosen:
        return chosen
    if all(attempt.state in ENDED for attempt in mine):
        last = wave.number == waves[-1].number
        return (EndWave(wave.number, "done"), *((EndRollout("done"),) if last else ()))

    start = (StartWave(wave.number),) if wave.state == "waiting" else ()
    return (*start, *_assign(mine, devices, contests))


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


def _excused(attempt: Attempt, contests: Mapping[str, Contest]) -> bool:
    """Say whether a failure is one of the build that lost, or may turn out to be."""
    contest = contests.get(attempt.profile)
    if contest is None:
        return False
    return contest.lost(attempt.manifest) if contest.chosen else attempt.measures


def _choose(mine: Sequence[Attempt], contests: Mapping[str, Contest]) -> tuple[Action, ...]:
    """Choose for each profile whose witnesses have all ended; no more evidence can come then."""
    witnesses: dict[str, list[Attempt]] = {}
    for attempt in mine:
        if attempt.measures and attempt.profile in contests and not contests[attempt.profile].chosen:
            witnesses.setdefault(attempt.profile, []).append(attempt)
    return tuple(
        Choose(profile)
        for profile, asked in sorted(witnesses.items())
        if all(attempt.state in ENDED for attempt in asked)
    )


def _replace(mine: Sequence[Attempt], contests: Mapping[str, Contest]) -> tuple[Action, ...]:
    """Bring the chosen build to the devices that ran the other one."""
    brought = {(attempt.device, attempt.manifest) for attempt in mine}
    return tuple(
        Replace(attempt.id)
        for attempt in mine
        if attempt.state in ("committed", "failed")
        and attempt.profile in contests
        and contests[attempt.profile].lost(attempt.manifest)
        and (attempt.device, contests[attempt.profile].chosen) not in brought
    )


def _assign(mine: Sequence[Attempt], devices: Mapping[str, DeviceNow], contests: Mapping[str, Contest]) -> list[Action]:
    """Assign what waits; of a profile with two builds, while none is chosen, to the first devices alone."""
    witnesses = Counter(attempt.profile for attempt in mine if attempt.measures)
    actions = []
    for attempt in mine:
        if attempt.state != "waiting":
            continue
        action = _next(attempt, devices.get(attempt.device))
        contest = contests.get(attempt.profile)
        if isinstance(action, Assign) and contest is not None and not contest.chosen:
            if witnesses[attempt.profile] >= MAX_WITNESSES:
                continue
            witnesses[attempt.profile] += 1
            action = Assign(attempt.id, measure=True)
        actions.append(action)
    return actions


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
