"""The fleet's decision: which devices have changed on their own, and whether the world has.

`decide` takes what every device has reported and returns a verdict; it keeps nothing. In order:

1. Every device is tested against its own commissioning, exactly as it tests itself.
2. Have more than half of the reporting devices changed? The evidence for it is the mean of the smallest e-values that
   must contain an unchanged device if at most half have changed (a partial conjunction, `_majority_log_e`).
3. Every changed device is tested again, against its own baseline shifted by the fleet's median change: what is left is
   its own affair, and raises a local flag (e-BH over devices).
4. The devices without a flag are pooled and tested against the same devices' pooled baselines.

The world has changed if 2 or 4 says so *and* the change is surely larger than the smallest effect that matters. Step 4
alone sees a small change that no device can see; step 2 alone sees a large one to which each device responds in its own
way, so that each looks local beside the others. Why both: `docs/adr/0202-fleet-majority.md`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from skerry.drift.evidence import (
    ALARM,
    SPANS,
    Result,
    evidence,
    evidence_by_span,
    log_mean_exp,
    totals_by_span,
)
from skerry.drift.monitor import Counts
from skerry.drift.pooling import Reported, Shifts, median_shifts, pool, shifted_evidence
from skerry.drift.severity import severity


class Route(StrEnum):
    """Which test said that the world has changed."""

    POOLED = "pooled"  # a shared change in the pooled counts of the devices without a flag
    MAJORITY = "majority"  # more than half of the devices have changed, each against itself


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceWindows:
    """What one device has reported: its commissioning, and its latest windows since then, oldest first.

    `seen` is the number of windows since commissioning, when `windows` holds only the last of them (16 are enough).
    """

    device: str
    baseline: Counts
    windows: tuple[Counts, ...]
    design_effects: tuple[float, ...]
    seen: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceVerdict:
    """One device in the fleet's decision; evidence as natural logarithms.

    `own` is against its own baseline, `local` against that baseline with the fleet's median change in it (0 for a
    device that has not changed, which is not tested for it). `per_scalar`
    is the evidence against its own baseline, in the order of counts.
    """

    device: str
    own: float
    local: float
    changed: bool
    flagged: bool
    per_scalar: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetVerdict:
    """The decision. Only `world_changed` proposes retraining; a local flag opens a ticket for that device.

    `severity` is PSI_adj of the most changed scalar, `severity_lower` its 95 % lower bound over all scalars: pooled,
    or, by the route of the majority, the value that more than half of the devices reach. `excluded` holds (device,
    reason). Flags that were raised before are the caller's history; a verdict speaks of now.
    """

    local_flags: tuple[str, ...]
    world_changed: bool
    route: Route | None
    log_e_world: float
    severity: float
    severity_lower: float
    devices: tuple[DeviceVerdict, ...]
    excluded: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _World:
    log_e: float
    severity: float
    lower: float


_UNCHANGED = _World(0.0, 0.0, -math.inf)


def decide(
    devices: Sequence[DeviceWindows],
    *,
    q: float = 0.05,
    smallest_effect: float = 0.02,
    alpha: float = 0.01,
    horizon: int = 30,
    pairs: int = 0,
) -> FleetVerdict:
    """Decide from every reporting device's counts; all devices must share one monitor.

    `q` is the false discovery rate among local flags, `smallest_effect` the PSI_adj below which a change of the world
    is of no interest. `alpha`, `horizon` (in windows) and `pairs`, the number of pairs at the end of the counts, are
    the monitor's.
    """
    reported, excluded = _reporting(devices)
    own = [evidence(d.baseline, d.windows, d.design_effects, horizon, seen=d.seen) for d in reported]
    alarm = -math.log(alpha)
    changed = e_bh([result.log_e for result in own], q=q, alarm=alarm)
    most_changed = len(reported) >= 2 and 2 * len(changed) > len(reported)

    # Where a minority has changed, the others say what is usual; where most have, the usual is their change.
    peers = [device for index, device in enumerate(reported) if most_changed == (index in changed)]
    shifts = median_shifts(peers)
    local = [
        _local(device, result, shifts, horizon) if index in changed else 0.0
        for index, (device, result) in enumerate(zip(reported, own, strict=True))
    ]
    # Changed by itself *and* otherwise than the fleet: who stays the same while the world moves needs no ticket.
    flagged = e_bh([min(result.log_e, log_e) for result, log_e in zip(own, local, strict=True)], q=q, alarm=alarm)

    rest = [device for index, device in enumerate(reported) if index not in flagged]
    worlds = {Route.POOLED: _pooled(rest, of=len(reported), horizon=horizon, pairs=pairs)}
    if most_changed:
        worlds[Route.MAJORITY] = _majority(reported, own)
    route = next(
        (route for route, world in worlds.items() if world.log_e >= alarm and world.lower > smallest_effect), None
    )
    world = worlds[route] if route else max(worlds.values(), key=lambda world: world.log_e)
    return FleetVerdict(
        local_flags=tuple(device.device for index, device in enumerate(reported) if index in flagged),
        world_changed=route is not None,
        route=route,
        log_e_world=world.log_e,
        severity=world.severity,
        severity_lower=world.lower,
        devices=tuple(
            DeviceVerdict(
                device=device.device,
                own=result.log_e,
                local=log_e,
                changed=index in changed,
                flagged=index in flagged,
                per_scalar=result.per_scalar,
            )
            for index, (device, result, log_e) in enumerate(zip(reported, own, local, strict=True))
        ),
        excluded=excluded,
    )


def e_bh(log_e: Sequence[float], *, q: float, alarm: float = ALARM) -> frozenset[int]:
    """Return the indexes that e-BH rejects (Wang & Ramdas 2022): the k largest, where the k-th reaches m / (q k).

    Any dependence between devices is allowed. In a small fleet that threshold lies below a device's own alarm, which is
    therefore asked for too: the server does not flag what the device itself calls quiet.
    """
    order = sorted(range(len(log_e)), key=lambda index: -log_e[index])
    m = len(order)
    rejected = 0
    for k, index in enumerate(order, start=1):
        if log_e[index] >= max(alarm, math.log(m / (q * k))):
            rejected = k
    return frozenset(order[:rejected])


def _reporting(devices: Sequence[DeviceWindows]) -> tuple[list[Reported], tuple[tuple[str, str], ...]]:
    reported: list[Reported] = []
    excluded: list[tuple[str, str]] = []
    shape: tuple[int, ...] | None = None
    for device in devices:
        own = tuple(map(len, device.baseline))
        shape = shape or own
        if any(tuple(map(len, counts)) != shape for counts in (device.baseline, *device.windows)):
            excluded.append((device.device, "counts of another monitor"))
        elif len(device.design_effects) != len(shape):
            excluded.append((device.device, "design effects of another monitor"))
        elif not sum(device.baseline[0]):
            excluded.append((device.device, "not commissioned"))
        elif not any(sum(window[0]) for window in device.windows):
            excluded.append((device.device, "nothing reported since commissioning"))
        else:
            windows = device.windows[-SPANS[-1] :]
            reported.append(
                Reported(
                    device=device.device,
                    baseline=device.baseline,
                    windows=windows,
                    totals=tuple(totals_by_span(windows)),
                    design_effects=device.design_effects,
                    seen=len(device.windows) if device.seen is None else device.seen,
                )
            )
    return reported, tuple(excluded)


def _local(device: Reported, own: Result, shifts: Sequence[Shifts], horizon: int) -> float:
    usual = all(shift.is_neutral for shift in shifts[: len(device.totals)])
    return own.log_e if usual else shifted_evidence(device, shifts, horizon=horizon).log_e


def _majority(reported: Sequence[Reported], own: Sequence[Result]) -> _World:
    worst = sorted((_own_severity(device, result) for device, result in zip(reported, own, strict=True)), reverse=True)
    lowers = sorted((lower for _, lower in worst), reverse=True)
    half = len(reported) // 2  # the element at this index is reached by more than half
    return _World(_majority_log_e([result.log_e for result in own]), worst[half][0], lowers[half])


def _majority_log_e(log_e: Sequence[float]) -> float:
    """Return the evidence against "at most half of the devices have changed".

    If at most h = m // 2 have changed, at least m - h have not, and the mean of their e-values is an e-value under any
    dependence. The mean of the m - h smallest is no larger, whichever devices those are (Benjamini & Heller's partial
    conjunction 2008, with Vovk & Wang's merging of e-values 2021).
    """
    return log_mean_exp(sorted(log_e)[: len(log_e) - len(log_e) // 2])


def _own_severity(device: Reported, own: Result) -> tuple[float, float]:
    total = device.totals[SPANS.index(own.span)]
    return _worst(device.baseline, total, device.design_effects, device.design_effects)


def _worst(
    reference: Sequence[Sequence[float]],
    counts: Sequence[Sequence[float]],
    reference_effects: Sequence[float],
    counts_effects: Sequence[float],
) -> tuple[float, float]:
    """Return the largest PSI_adj and the largest lower bound, which holds for all scalars together (Bonferroni)."""
    share = 1.0 - 0.05 / len(counts)
    found = [
        severity(r, c, reference_effect=before, counts_effect=now, confidence=share)
        for r, c, before, now in zip(reference, counts, reference_effects, counts_effects, strict=True)
    ]
    return max(one.psi_adj for one in found), max(one.lower for one in found)


def _pooled(rest: Sequence[Reported], *, of: int, horizon: int, pairs: int) -> _World:
    # One device is not a world, and neither is a remainder of less than half of the fleet.
    if len(rest) < 2 or 2 * len(rest) < of:
        return _UNCHANGED
    pools = [pool(members, index, pairs=pairs) for index, members in enumerate(_started(rest))]
    result = evidence_by_span(
        [one.reference for one in pools],
        [one.counts for one in pools],
        [one.design_effects for one in pools],
        horizon=horizon,
        seen=max(device.seen for device in rest),
    )
    loudest = pools[SPANS.index(result.span)]
    worst, lower = _worst(loudest.reference, loudest.counts, loudest.design_effects, loudest.design_effects)
    return _World(result.log_e, worst, lower)


def _started(rest: Sequence[Reported]) -> list[list[Reported]]:
    """List, for each span, the devices that have that many windows, while they are at least half of all."""
    by_span = [[device for device in rest if len(device.totals) > index] for index in range(len(SPANS))]
    return [members for members in by_span if len(members) >= 2 and 2 * len(members) >= len(rest)]
