"""The fleet's drift, recomputed on the server from the counts that devices sent: findings, and the evidence by now.

A device is compared with its own first windows under an artifact, then `skerry.drift` decides over all devices that run
the same model version; of a device with several components, each speaks for its own model. `tick` is called once in a
while; it reads only windows that are new, and spends at most a fifth of one core on decisions. All that is kept in
memory can be rebuilt from the database, and is, after a restart.

Two rules keep a changing world from looking like many broken devices. A local flag becomes a finding only when at least
half of the other devices that are online have sent two more windows and the flag still stands: a change that comes to
all is seen on one of them first. And once the world has changed for a version, no more local findings are made on it:
its baselines are history, and a new version is the answer.
"""

import json
import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import components
from control_plane.builds import find_build
from control_plane.drift_tracks import Artifact, Counted, Track, Version, shared, worst_severity
from control_plane.events import record
from control_plane.schema.devices import Device
from control_plane.schema.telemetry import Finding, OutboxMark, Window
from skerry import drift
from skerry.errors import SkerryError

if TYPE_CHECKING:
    from control_plane.plane import Plane

BATCH = 500
READING_S = 0.5
CONFIRMING_WINDOWS = 2
SHARE_OF_A_CORE = 0.2
_log = logging.getLogger(__name__)


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
class _Decision:
    verdict: drift.FleetVerdict
    names: tuple[str, ...]
    severities: dict[str, float]


class _Fleet:
    """What one control plane knows of its fleet's drift; a new one rebuilds itself from the database."""

    def __init__(self) -> None:
        self.view = View()
        self._lock = threading.Lock()
        self._last = 0
        self._artifacts: dict[str, Artifact] = {}
        self._tracks: dict[tuple[str, str], Track] = {}
        # by device and component
        self._current: dict[tuple[str, str], Track] = {}
        self._beside: frozenset[tuple[str, str]] = frozenset()
        self._ahead: dict[tuple[str, str, str], tuple[int, int]] = {}
        self._decisions: dict[Version, _Decision] = {}
        self._stale: set[Version] = set()
        self._not_before = 0.0

    def tick(self, plane: "Plane") -> int:
        with self._lock:
            merged, caught_up = self._read(plane)
            # no decision on half of what is known: after a restart it would be one on the past
            if self._stale and caught_up and time.monotonic() >= self._not_before:
                began = time.monotonic()
                self._decide(plane)
                spent = time.monotonic() - began
                self._not_before = time.monotonic() + spent * (1 / SHARE_OF_A_CORE - 1)
            elif merged:
                self.view = self._look()
            return merged

    def _read(self, plane: "Plane") -> tuple[int, bool]:
        """Take in new windows for a while; return how many, and whether none is left.

        After a restart there may be millions: the other clocks and the server's end must not wait for all of them.
        """
        merged = 0
        until = time.monotonic() + READING_S
        while True:
            with plane.readers() as session:
                self._follow_components(session)
                query = select(Window).where(Window.id > self._last).order_by(Window.id).limit(BATCH)
                rows = session.scalars(query).all()
                for row in rows:
                    self._last = row.id
                    self._add(plane, session, row)
            merged += len(rows)
            if len(rows) < BATCH:
                self._join_what_was_ahead(plane)
                return merged, True
            if time.monotonic() >= until or plane.stopping.is_set():
                return merged, False

    def _follow_components(self, session: Session) -> None:
        """Know which models run beside a device's own; what was taken away speaks for its version no more."""
        self._beside = components.named(session)
        for key in [key for key in self._current if key[1] and key not in self._beside]:
            self._stale.add(self._current.pop(key).artifact.version)

    def _place(self, device: str, artifact: Artifact) -> tuple[str, str]:
        """Return the device and which of its components an artifact runs in."""
        named = (device, artifact.version[0])
        return named if named in self._beside else (device, "")

    def _add(self, plane: "Plane", session: Session, row: Window) -> None:
        artifact = self._artifact(plane, session, row.manifest)
        if artifact is None or row.monitor != artifact.digest[:16]:
            return
        key = (row.device, row.manifest)
        if _is_ahead(session, row):
            # after an outage the newest come first: no baseline is made, and nothing decided, on a tale with a hole
            hole = (*key, row.epoch)
            self._ahead[hole] = max(self._ahead.get(hole, (0, 0)), (row.sequence, row.id))
            return
        track = self._tracks.get(key)
        try:
            if track is None or row.number > track.number:
                track = track or Track(row.device, artifact)
                track.add(_counted(row))
            else:
                # it was late: the order of windows is that of their numbers, so the device is read again
                track = _from_database(session, row, artifact, until=row.id)
        except drift.Rejected as refusal:
            _log.warning("drift: window %s of %s is left out: %s", row.number, row.device, refusal)
            return
        self._tracks[key] = self._current[self._place(row.device, artifact)] = track
        self._stale.add(artifact.version)

    def _join_what_was_ahead(self, plane: "Plane") -> None:
        """Read a device again, once, when the hole before its newest windows is filled."""
        if not self._ahead:
            return
        with plane.readers() as session:
            for hole, (_, last) in list(self._ahead.items()):
                row = session.get_one(Window, last)
                artifact = self._artifact(plane, session, row.manifest)
                if artifact is None or _is_ahead(session, row):
                    continue
                del self._ahead[hole]
                track = _from_database(session, row, artifact, until=self._last)
                self._tracks[row.device, row.manifest] = self._current[self._place(row.device, artifact)] = track
                self._stale.add(artifact.version)

    def _artifact(self, plane: "Plane", session: Session, manifest: str) -> Artifact | None:
        if manifest not in self._artifacts:
            build = find_build(session, manifest)
            if build is None:
                return None
            try:
                whole = build.second if build.second.startswith(manifest) else build.manifest
                monitor = drift.Monitor.from_json(json.loads(plane.blobs.get(whole))["monitor"])
            except (SkerryError, drift.Rejected, ValueError, KeyError) as error:
                _log.warning("drift: the manifest %s of %s has no usable monitor: %s", manifest, build.model, error)
                return None
            self._artifacts[manifest] = Artifact((build.model, build.version), monitor, monitor.digest())
        return self._artifacts[manifest]

    def _decide(self, plane: "Plane") -> None:
        stale, self._stale = self._stale, set()
        for version in sorted(stale):
            tracks = self._running(version)
            if not tracks:
                self._decisions.pop(version, None)
                continue
            common = shared([track.artifact.monitor for track in tracks])
            windows = [told for track in tracks if (told := common.of(track)) is not None]
            if windows and common.names:
                verdict = drift.decide(windows, horizon=common.horizon, pairs=common.pairs)
                severities = {told.device: worst_severity(told) for told in windows}
                self._decisions[version] = _Decision(verdict, common.names, severities)
        self.view = self._look()
        for version in sorted(stale & set(self._decisions)):
            self._conclude(plane, version, self._decisions[version])

    def _running(self, version: Version) -> list[Track]:
        """The devices whose latest window is of that version: who has moved on speaks for another one."""
        tracks = [track for track in self._current.values() if track.artifact.version == version]
        return sorted(tracks, key=lambda track: track.device)

    def _conclude(self, plane: "Plane", version: Version, decision: _Decision) -> None:
        tracks = {track.device: track for track in self._running(version)}
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
        findings: list[Finding] = []
        now = plane.clock()
        if ("world", "") in found:
            return
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

    def _look(self) -> View:
        versions = sorted({track.artifact.version for track in self._current.values()})
        devices = [
            _device_drift(track, self._decisions.get(version))
            for version in versions
            for track in self._running(version)
        ]
        fleets = [_fleet_drift(version, self._decisions[version]) for version in versions if version in self._decisions]
        return View(tuple(sorted(devices, key=lambda one: (one.device, one.model))), tuple(fleets))


_fleets: dict[str, _Fleet] = {}
_fleets_lock = threading.Lock()


def tick(plane: "Plane") -> int:
    """Take in what windows are new, decide if it is time to, write findings; return the number of new windows."""
    return _fleet(plane).tick(plane)


def view(plane: "Plane") -> View:
    """Return the evidence as of the last tick."""
    return _fleet(plane).view


def _fleet(plane: "Plane") -> _Fleet:
    with _fleets_lock:
        return _fleets.setdefault(str(plane.home.path), _Fleet())


def _is_confirmed(track: Track, tracks: Mapping[str, Track], online: set[str]) -> bool:
    """Say whether enough of the other devices have reported since the flag came up, while it stood."""
    others = {device: other.windows for device, other in tracks.items() if device != track.device}
    if track.others_at_flag is None:
        track.others_at_flag = others
    asked = [device for device in others if device in online] or list(others)
    heard = [device for device in asked if others[device] - track.others_at_flag.get(device, 0) >= CONFIRMING_WINDOWS]
    return 2 * len(heard) >= len(asked)


def _is_ahead(session: Session, row: Window) -> bool:
    """Say whether the device has still to say what came before: not so, if it has begun another epoch since."""
    mark = session.get(OutboxMark, (row.device, row.epoch))
    if mark is None or row.sequence <= mark.up_to:
        return False
    later = select(OutboxMark.epoch).where(OutboxMark.device == row.device, OutboxMark.first_seen > mark.first_seen)
    return session.scalar(later.limit(1)) is None


def _from_database(session: Session, row: Window, artifact: Artifact, *, until: int) -> Track:
    track = Track(row.device, artifact)
    query = select(Window).where(
        Window.manifest == row.manifest, Window.device == row.device, Window.id <= until, Window.monitor == row.monitor
    )
    for window in session.scalars(query.order_by(Window.number, Window.id)):
        track.add(_counted(window))
    return track


def _counted(row: Window) -> Counted:
    return Counted(row.number, row.end, tuple(tuple(table) for table in row.tables))


def _device_drift(track: Track, decision: _Decision | None) -> DeviceDrift:
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


def _fleet_drift(version: Version, decision: _Decision) -> FleetDrift:
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


def _local_finding(version: Version, decision: _Decision, track: Track, now: datetime) -> Finding:
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
