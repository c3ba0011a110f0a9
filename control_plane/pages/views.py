"""What the pages show of the fleet, read into frozen values: no HTML here, no clock, no request.

Each function takes a read-only session and `now`, and returns what one fragment of the page needs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import exists, func, or_, select
from sqlalchemy.orm import Session

from control_plane import alarms
from control_plane.schema.devices import Device, DeviceComponent
from control_plane.schema.models import Build
from control_plane.schema.releases import Deployment, Rollout, Wave
from control_plane.schema.telemetry import Finding, Window
from control_plane.schema.work import Event

RECENT_WINDOWS = 24
WINDOWS_READ = 20_000
RECENT_EVENTS = 40
RECENT_ROLLOUTS = 4
MOST_ROCKS = 24
_URGENCY = ("failed", "drifting", "away", "moving", "revoked", "good")
_SETTLED = ("idle", "committed", "")


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One row of the device table. `health` is one of good, moving, drifting, away, failed, revoked; `word` says why.

    `note` is the last error that the device told of, which may be over; `beside` are the releases that its further
    components run.

    `accuracy` are shares of correct among labelled rows of the last windows, oldest first; empty without labels.
    """

    name: str
    profile: str
    runtime: str
    group: str
    release: str
    health: str
    word: str
    note: str
    online: bool
    last_seen: datetime | None
    ago: str
    outbox_depth: int
    inferences: int
    accuracy: tuple[float, ...]
    beside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FleetView:
    """The fleet at a glance. `releases` are (release, how many devices run it), the most frequent first.

    `rocks` are the devices to draw: all of a small fleet, of a large one those that need a look first. `accuracy_low`
    is the foot of every device's sparkline, so that they can be compared.
    """

    devices: tuple[DeviceView, ...]
    rocks: tuple[DeviceView, ...]
    online: int
    buffered: int
    accuracy_low: float
    releases: tuple[tuple[str, int], ...]
    headline: str


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """One device's attempt; the times are None before they happen."""

    device: str
    state: str
    reason: str
    assigned_at: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class WaveView:
    """One wave of a rollout with its deployments."""

    number: int
    name: str
    state: str
    deployments: tuple[DeploymentView, ...]
    committed: int


@dataclass(frozen=True, slots=True)
class RolloutView:
    """One rollout with its waves in order."""

    id: int
    release: str
    state: str
    reason: str
    ago: str
    created_at: datetime
    waves: tuple[WaveView, ...]
    devices: int
    committed: int


@dataclass(frozen=True, slots=True)
class EventView:
    """One line of the timeline."""

    id: int
    at: datetime
    ago: str
    kind: str
    subject: str
    text: str


def fleet(session: Session, *, now: datetime) -> FleetView:
    """Return all devices by name, with the sentence that sums them up."""
    devices = tuple(session.scalars(select(Device).order_by(Device.name)))
    accuracy = _recent_accuracy(session)
    drifting = _drifting(session)
    alarmed = {row.device: alarms.WORDS.get(row.kind, "it has an alarm") for row in alarms.listed(session)}
    views = tuple(
        _device(
            device,
            accuracy.get(device.name, ()),
            alarm=alarmed.get(device.name, ""),
            drifting=device.name in drifting,
            now=now,
        )
        for device in devices
    )
    online = sum(view.online for view in views)
    running: dict[str, int] = {}
    for view in views:
        if view.release:
            running[view.release] = running.get(view.release, 0) + 1
    releases = tuple(sorted(running.items(), key=lambda item: (-item[1], item[0])))
    return FleetView(
        devices=views,
        rocks=views if len(views) <= MOST_ROCKS else tuple(sorted(views, key=_urgency)[:MOST_ROCKS]),
        online=online,
        buffered=sum(view.outbox_depth for view in views),
        accuracy_low=max(0.0, min((value for view in views for value in view.accuracy), default=0.0) - 0.1),
        releases=releases,
        headline=_headline(total=len(views), online=online, releases=releases),
    )


def rollouts(session: Session, *, now: datetime, limit: int = RECENT_ROLLOUTS) -> tuple[RolloutView, ...]:
    """Return the newest rollouts, newest first, each with its waves and deployments."""
    rows = tuple(session.scalars(select(Rollout).order_by(Rollout.id.desc()).limit(limit)))
    ids = [row.id for row in rows]
    waves = tuple(session.scalars(select(Wave).where(Wave.rollout.in_(ids)).order_by(Wave.number)))
    deployments = tuple(
        session.scalars(
            select(Deployment).where(Deployment.rollout.in_(ids)).order_by(Deployment.device, Deployment.id)
        )
    )
    views = []
    for row in rows:
        own = tuple(_wave(wave, deployments) for wave in waves if wave.rollout == row.id)
        views.append(
            RolloutView(
                id=row.id,
                release=row.release,
                state=row.state,
                reason=row.reason,
                ago=ago(row.created_at, now=now),
                created_at=row.created_at,
                waves=own,
                devices=sum(len(wave.deployments) for wave in own),
                committed=sum(wave.committed for wave in own),
            )
        )
    return tuple(views)


def timeline(session: Session, *, now: datetime, limit: int = RECENT_EVENTS) -> tuple[EventView, ...]:
    """Return the newest events, newest first."""
    rows = session.scalars(select(Event).order_by(Event.id.desc()).limit(limit))
    return tuple(
        EventView(id=row.id, at=row.at, ago=ago(row.at, now=now), kind=row.kind, subject=row.subject, text=row.text)
        for row in rows
    )


def ago(then: datetime | None, *, now: datetime) -> str:
    """Say how long ago `then` was, coarsely: "just now", "40 s ago", "3 h ago"; "never" for None."""
    if then is None:
        return "never"
    seconds = (now - then).total_seconds()
    if seconds < 5:
        return "just now"
    for length, unit in ((86_400 * 2, "d"), (3_600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds // (86_400 if unit == 'd' else length):.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _device(device: Device, accuracy: tuple[float, ...], *, alarm: str, drifting: bool, now: datetime) -> DeviceView:
    reported = device.reported
    health, word = _health(device, alarm=alarm, drifting=drifting)
    return DeviceView(
        name=device.name,
        profile=device.profile,
        runtime=_text(reported, "runtime"),
        group=device.group,
        release=_text(reported, "release"),
        health=health,
        word=word,
        note=_text(reported, "last_error"),
        online=device.online and device.state != "revoked",
        last_seen=device.last_seen,
        ago=ago(device.last_seen, now=now),
        outbox_depth=int(reported.get("outbox_depth", 0)),
        inferences=int(reported.get("inferences", 0)),
        accuracy=accuracy,
        beside=_beside(reported),
    )


def components_of(reported: Mapping[str, object]) -> dict[str, Mapping[str, object]]:
    """Return what a device said of its named components, by name."""
    said = reported.get("components")
    found = said.items() if isinstance(said, dict) else ()
    return {str(name): each for name, each in sorted(found) if isinstance(each, dict)}


def running_on(reported: Mapping[str, object]) -> tuple[str, ...]:
    """Return the releases that a device said it runs, that of its own model first."""
    return tuple(filter(None, (_text(reported, "release"), *_beside(reported))))


def _beside(reported: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(sorted(filter(None, (_text(each, "release") for each in components_of(reported).values()))))


def _health(device: Device, *, alarm: str, drifting: bool) -> tuple[str, str]:
    """Judge one device: what needs a person first wins."""
    if device.state == "revoked":
        return "revoked", "revoked"
    # its own model has no name among them
    phases = {"": _text(device.reported, "state")}
    phases |= {name: _text(each, "state") for name, each in components_of(device.reported).items()}
    if trouble := alarm or next(filter(None, map(_failed, phases, phases.values())), ""):
        return "failed", trouble
    if not device.online:
        return "away", "out of reach; it goes on inferring" if _text(device.reported, "release") else "out of reach"
    if _text(device.reported, "health") == "failing":
        reasons = device.reported.get("reasons")
        return "failed", str(reasons[0]) if isinstance(reasons, list) and reasons else "failing, by its own word"
    if moving := next((each for each in phases.values() if each not in _SETTLED), ""):
        return "moving", moving.replace("_", " ")
    if drifting:
        return "drifting", "its data left its baseline"
    return "good", "running" if _text(device.reported, "release") else "enrolled, nothing assigned yet"


def _failed(component: str, phase: str) -> str:
    said = {"failed": "the last deployment failed", "rolling_back": "rolling back"}.get(phase, "")
    return f"{component}: {said}" if component and said else said


def _drifting(session: Session) -> set[str]:
    """Return the devices with a local finding on a model version that they still run."""
    rows = session.execute(select(Finding.device, Finding.model, Finding.version).where(Finding.kind == "local"))
    found = {(device, f"{model}-{version}") for device, model, version in rows}
    running = session.execute(select(Device.name, Device.reported))
    return {name for name, reported in running if any((name, each) in found for each in running_on(reported))}


def _recent_accuracy(session: Session) -> dict[str, tuple[float, ...]]:
    """Return per device the accuracy of its own model's last windows that had labels, oldest first.

    Only the newest `WINDOWS_READ` windows of the fleet are looked at, so that the page costs the same in every year.
    """
    newest = session.scalar(select(func.max(Window.id))) or 0
    place = func.row_number().over(partition_by=Window.device, order_by=(Window.end.desc(), Window.sequence.desc()))
    starts = [func.substr(manifest, 1, 16) == Window.manifest for manifest in (Build.manifest, Build.second)]
    beside = exists().where(DeviceComponent.device == Window.device, Build.model == DeviceComponent.name, or_(*starts))
    recent = (
        select(Window.device, Window.labelled, Window.correct, place.label("place"))
        .where(Window.labelled > 0, Window.id > newest - WINDOWS_READ, ~beside)
        .subquery()
    )
    rows = session.execute(
        select(recent.c.device, recent.c.labelled, recent.c.correct)
        .where(recent.c.place <= RECENT_WINDOWS)
        .order_by(recent.c.device, recent.c.place.desc())
    )
    found: dict[str, tuple[float, ...]] = {}
    for device, labelled, correct in rows:
        found[device] = (*found.get(device, ()), correct / labelled)
    return found


def _wave(wave: Wave, deployments: tuple[Deployment, ...]) -> WaveView:
    # the last attempt of each device: one that measured two builds may have had both
    last = {row.device: row for row in deployments if (row.rollout, row.wave) == (wave.rollout, wave.number)}
    own = tuple(
        DeploymentView(
            device=row.device,
            state=row.state,
            reason=row.reason,
            assigned_at=row.assigned_at,
            ended_at=row.ended_at,
        )
        for row in last.values()
    )
    committed = sum(deployment.state == "committed" for deployment in own)
    return WaveView(number=wave.number, name=wave.name, state=wave.state, deployments=own, committed=committed)


def _headline(*, total: int, online: int, releases: tuple[tuple[str, int], ...]) -> str:
    """Sum the fleet up in one sentence."""
    if not total:
        return "No device has enrolled yet."
    devices = "One device" if total == 1 else f"{total} devices"
    reach = "in reach" if online == total else f"{online} in reach"
    if not releases:
        return f"{devices}, {reach}. Nothing is running yet."
    if len(releases) == 1 and releases[0][1] == total:
        return f"{devices}, {reach}. {'It runs' if total == 1 else 'All run'} {releases[0][0]}."
    parts = [f"{count} run{'s' if count == 1 else ''} {release}" for release, count in releases]
    idle = total - sum(count for _, count in releases)
    if idle:
        parts.append(f"{idle} run{'s' if idle == 1 else ''} nothing yet")
    return f"{devices}, {reach}: " + ", ".join(parts) + "."


def _urgency(view: DeviceView) -> tuple[int, str]:
    return _URGENCY.index(view.health), view.name


def _text(values: Mapping[str, object], key: str) -> str:
    """Read a text that a device reported; anything else counts as none."""
    value = values.get(key, "")
    return value if isinstance(value, str) else ""
