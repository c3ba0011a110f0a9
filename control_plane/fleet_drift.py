"""The fleet's drift, recomputed on the server from the counts that devices sent: read, decided, and looked at by now.

A device is compared with its own first windows under an artifact, then `skerry.drift` decides over all devices that run
the same model version; of a device with several components, each speaks for its own model. `tick` is called once in a
while; it reads only windows that are new, and spends at most a fifth of one core on decisions. All that is kept in
memory can be rebuilt from the database, and is, after a restart.
"""

import json
import logging
import threading
import time
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import components, drift_evidence, drift_findings
from control_plane.builds import find_build
from control_plane.drift_evidence import Decision, View
from control_plane.drift_tracks import Artifact, Counted, Track, Version, shared, worst_severity
from control_plane.schema.telemetry import OutboxMark, Window
from skerry import drift
from skerry.errors import SkerryError

if TYPE_CHECKING:
    from control_plane.plane import Plane

BATCH = 500
READING_S = 0.5
SHARE_OF_A_CORE = 0.2
_log = logging.getLogger(__name__)


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
        self._decisions: dict[Version, Decision] = {}
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

    def _speaks(self, session: Session, track: Track) -> None:
        """Let a track speak for the component that it is of; one of a component that was taken away speaks for none."""
        model = track.artifact.version[0]
        own = (track.device, "")
        place = (track.device, model) if (track.device, model) in self._beside else own
        known = place != own or (own in self._current and self._current[own].artifact.version[0] == model)
        if known or not components.was_beside_alone(session, track.device, model):
            self._current[place] = track
            self._stale.add(track.artifact.version)

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
        self._tracks[key] = track
        self._speaks(session, track)

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
                self._tracks[row.device, row.manifest] = track
                self._speaks(session, track)

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
                self._decisions[version] = Decision(verdict, common.names, severities)
        self.view = self._look()
        for version in sorted(stale & set(self._decisions)):
            drift_findings.conclude(plane, version, self._decisions[version], self._running(version))

    def _running(self, version: Version) -> list[Track]:
        """The devices whose latest window is of that version: who has moved on speaks for another one."""
        tracks = [track for track in self._current.values() if track.artifact.version == version]
        return sorted(tracks, key=lambda track: track.device)

    def _look(self) -> View:
        versions = sorted({track.artifact.version for track in self._current.values()})
        devices = [
            drift_evidence.of_device(track, self._decisions.get(version))
            for version in versions
            for track in self._running(version)
        ]
        fleets = [
            drift_evidence.of_version(version, self._decisions[version])
            for version in versions
            if version in self._decisions
        ]
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
