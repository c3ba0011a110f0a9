"""The evidence of drift by now, as pages, scripts and findings read it: of each device, of all that run a version."""

from dataclasses import dataclass, replace

from control_plane.drift_tracks import Track, Version
from skerry import drift


@dataclass(frozen=True, slots=True)
class DeviceDrift:
    """One device's evidence under what it runs. `state`: commissioning, quiet, watch or alarm, by its latest windows.

    `log_e` is a natural logarithm, `severity` PSI_adj of the most changed scalar over the last windows against the
    device's own baseline, `loudest` the names of the scalars that speak loudest, `unlike_training` those which
    never looked like the training data.
    """

    device: str
    model: str
    version: int
    state: str
    windows: int
    last_window: int
    event_time: float
    log_e: float = 0.0
    severity: float = 0.0
    flagged: bool = False
    loudest: tuple[str, ...] = ()
    unlike_training: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FleetDrift:
    """The decision over all devices of one model version; `log_e` is a natural logarithm."""

    model: str
    version: int
    devices: int
    world_changed: bool
    log_e: float
    severity: float
    route: str
    local_flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class View:
    """The evidence by now, devices by name."""

    devices: tuple[DeviceDrift, ...] = ()
    fleets: tuple[FleetDrift, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided of a version: on which scalars, and how severe it is on each device."""

    verdict: drift.FleetVerdict
    names: tuple[str, ...]
    severities: dict[str, float]


def of_device(track: Track, decision: Decision | None) -> DeviceDrift:
    """Return the evidence of a device, as far as anything was decided of it."""
    verdicts = {one.device: one for one in decision.verdict.devices} if decision else {}
    verdict = verdicts.get(track.device)
    seen = DeviceDrift(
        device=track.device,
        model=track.artifact.version[0],
        version=track.artifact.version[1],
        state="commissioning" if track.commissioned is None else "quiet",
        windows=track.windows,
        last_window=track.number,
        event_time=track.event_time,
        unlike_training=track.unlike_training,
    )
    if decision is None or verdict is None:
        return seen
    order = sorted(range(len(decision.names)), key=lambda index: -verdict.per_scalar[index])
    status = "alarm" if verdict.own >= drift.ALARM else "watch" if verdict.own >= drift.WATCH else "quiet"
    return replace(
        seen,
        state=status,
        log_e=verdict.own,
        severity=decision.severities[track.device],
        flagged=verdict.flagged,
        loudest=tuple(decision.names[index] for index in order[:3]) if status != "quiet" else (),
    )


def of_version(version: Version, decision: Decision) -> FleetDrift:
    """Return the evidence of all devices that run a version."""
    verdict = decision.verdict
    return FleetDrift(
        model=version[0],
        version=version[1],
        devices=len(verdict.devices),
        world_changed=verdict.world_changed,
        log_e=verdict.log_e_world,
        severity=verdict.severity,
        route=str(verdict.route or ""),
        local_flags=verdict.local_flags,
    )
