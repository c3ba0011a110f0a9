"""Findings: what of a decision is said to people, once, in the database and in the timeline.

Two rules keep a changing world from looking like many broken devices. A local flag becomes a finding only when at least
half of the other devices that are online have sent two more windows and the flag still stands: a change that comes to
all is seen on one of them first. And once the world has changed for a version, no more local findings are made on it:
its baselines are history, and a new version is the answer.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane.drift_evidence import Decision
from control_plane.drift_tracks import Track, Version
from control_plane.events import record
from control_plane.schema.devices import Device
from control_plane.schema.telemetry import Finding
from skerry import drift

if TYPE_CHECKING:
    from control_plane.plane import Plane

CONFIRMING_WINDOWS = 2


def conclude(plane: "Plane", version: Version, decision: Decision, running: Sequence[Track]) -> None:
    """Write what is new in a decision over the tracks that run the version; nothing after the world has changed."""
    tracks = {track.device: track for track in running}
    flags = decision.verdict.local_flags
    for device, track in tracks.items():
        if device not in flags:
            track.others_at_flag = None
    if not flags and not decision.verdict.world_changed:
        return
    with plane.readers() as session:
        known = select(Finding).where(Finding.model == version[0], Finding.version == version[1])
        found = {(row.kind, row.device) for row in session.scalars(known)}
        online = set(session.scalars(select(Device.name).where(Device.online, Device.name.in_(tracks))))
    if ("world", "") in found:
        return
    now = plane.clock()
    findings: list[Finding] = []
    if decision.verdict.world_changed:
        findings.append(_world_finding(version, decision.verdict, list(tracks.values()), now))
    else:
        findings += [
            _local_finding(version, decision, tracks[device], now)
            for device in flags
            if ("local", device) not in found and _is_confirmed(tracks[device], tracks, online)
        ]
    if findings:
        with plane.sessions.begin() as session:
            for finding in findings:
                _write(session, finding)


def _is_confirmed(track: Track, tracks: Mapping[str, Track], online: set[str]) -> bool:
    """Say whether enough of the other devices have reported since the flag came up, while it stood."""
    others = {device: other.windows for device, other in tracks.items() if device != track.device}
    if track.others_at_flag is None:
        track.others_at_flag = others
    asked = [device for device in others if device in online] or list(others)
    heard = [device for device in asked if others[device] - track.others_at_flag.get(device, 0) >= CONFIRMING_WINDOWS]
    return 2 * len(heard) >= len(asked)


def _local_finding(version: Version, decision: Decision, track: Track, now: datetime) -> Finding:
    own = next(one for one in decision.verdict.devices if one.device == track.device)
    return Finding(
        kind="local",
        device=track.device,
        model=version[0],
        version=version[1],
        log_e=own.own,
        severity=decision.severities[track.device],
        event_time=track.event_time,
        window=track.number,
        detail={"local_log_e": own.local, "windows": {track.device: track.number}},
        found_at=now,
    )


def _world_finding(version: Version, verdict: drift.FleetVerdict, tracks: Sequence[Track], now: datetime) -> Finding:
    return Finding(
        kind="world",
        device="",
        model=version[0],
        version=version[1],
        log_e=verdict.log_e_world,
        severity=verdict.severity,
        event_time=max(track.event_time for track in tracks),
        window=max(track.number for track in tracks),
        detail={
            "route": str(verdict.route),
            "severity_lower": verdict.severity_lower,
            "changed": [one.device for one in verdict.devices if one.changed],
            "windows": {track.device: track.number for track in tracks},
        },
        found_at=now,
    )


def _write(session: Session, finding: Finding) -> None:
    session.add(finding)
    what = f"{finding.model} {finding.version}, evidence 10^{finding.log_e / math.log(10):.0f}"
    what += f", severity {finding.severity:.2f}"
    local = f"{finding.device} has changed and the others have not ({what}): look at this device"
    world = f"the world has changed ({what}): collect labels and retrain"
    record(
        session,
        "drift",
        finding.device or finding.model,
        local if finding.kind == "local" else world,
        finding=finding.kind,
        model=finding.model,
        version=finding.version,
        log_e=finding.log_e,
        severity=finding.severity,
        window=finding.window,
    )
