"""What the page of one device shows, read into frozen values: how it is, what it holds, and what was asked of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from control_plane import alarms, requests, trust_status
from control_plane.pages.views import ago, components_of
from control_plane.schema.devices import Device, DeviceRequest
from skerry.errors import Rejected
from skerry.wire.requests import unpack_text

RECENT_REQUESTS = 20
SHOWN_CHARACTERS = 32_000
_TONES = {"ok": "good", "degraded": "watch", "failing": "alarm"}
_REQUEST_TONES = {"done": "good", "waiting": "moving", "refused": "alarm", "expired": "away"}


@dataclass(frozen=True, slots=True)
class SlotView:
    """One slot; `runs` says that the pointer names it."""

    name: str
    mark: str
    release: str
    manifest: str
    runs: bool


@dataclass(frozen=True, slots=True)
class ComponentView:
    """One model beside the device's own, or the agent itself, as the device last said."""

    name: str
    release: str
    state: str
    note: str


@dataclass(frozen=True, slots=True)
class CheckView:
    """One line of a self-test."""

    check: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class RequestView:
    """One request with what came of it: a text, or a table of checks, or neither."""

    id: str
    verb: str
    args: str
    state: str
    tone: str
    late: bool
    asked_by: str
    asked_at: datetime
    ago: str
    reason: str
    text: str
    checks: tuple[CheckView, ...]


@dataclass(frozen=True, slots=True)
class AlarmView:
    """One alarm: `number` is what it is acknowledged by, 0 for one of the keys, which ends with its cause."""

    number: int
    tone: str
    text: str
    raised_at: datetime | None
    ago: str


@dataclass(frozen=True, slots=True)
class DevicePage:
    """One device. `facts` are (label, value) pairs of what is known, nothing for what is not.

    `alarms` are its own, then those of the keys, which hold for every device.
    """

    name: str
    alarms: tuple[AlarmView, ...]
    headline: str
    tone: str
    health: str
    reasons: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    vitals: tuple[tuple[str, str], ...]
    slots: tuple[SlotView, ...]
    components: tuple[ComponentView, ...]
    requests: tuple[RequestView, ...]


def device_page(session: Session, name: str, *, now: datetime) -> DevicePage | None:
    """Return the page of a device, or None when there is none of that name."""
    device = session.get(Device, name)
    if device is None:
        return None
    said = device.reported
    reach = "in reach" if device.online else f"last heard {ago(device.last_seen, now=now)}"
    runs = str(said.get("release") or "nothing yet")
    health = str(said.get("health") or "")
    return DevicePage(
        name=name,
        alarms=_alarms(session, name, now=now),
        headline=f"{name}, {reach}. It runs {runs}.",
        tone=_TONES.get(health, "plain") if device.online else "away",
        health=health or "it does not say how it is",
        reasons=tuple(str(each) for each in _list(said.get("reasons"))),
        facts=_facts(device, said),
        vitals=_vitals(said),
        slots=_slots(said),
        components=_components(said),
        requests=tuple(_request(row, now=now) for row in requests.listed(session, name, limit=RECENT_REQUESTS)),
    )


def _alarms(session: Session, name: str, *, now: datetime) -> tuple[AlarmView, ...]:
    own = (
        AlarmView(number=row.id, tone="alarm", text=row.text, raised_at=row.raised_at, ago=ago(row.raised_at, now=now))
        for row in alarms.listed(session, device=name)
    )
    keys = (
        AlarmView(number=0, tone="alarm" if each.expired else "watch", text=each.text, raised_at=None, ago="")
        for each in trust_status.alarms(session, now)
    )
    return (*own, *keys)


def _facts(device: Device, said: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    told, refused = said.get("desired_version", 0), str(said.get("desired_refused") or "")
    ahead = said.get("clock_ahead_s")
    rows = (
        ("profile", device.profile),
        ("group", device.group),
        ("state", str(said.get("state") or device.state)),
        ("agent", str(said.get("agent") or "")),
        ("runtime", str(said.get("runtime") or "")),
        ("certificate", _until(said, device)),
        ("outbox", f"{_whole(said.get('outbox_depth'))} waiting, {_bytes(said.get('outbox_bytes'))}"),
        (
            "clock",
            "" if ahead is None else f"{abs(ahead):,.0f} s {'ahead' if ahead > 0 else 'behind'}" if ahead else "right",
        ),
        (
            "configuration",
            f"version {told}" + (f", not followed: {refused}" if refused else "") if told or refused else "",
        ),
        ("last error", str(said.get("last_error") or "")),
    )
    return tuple((label, value) for label, value in rows if value)


def _vitals(said: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    vitals, runs = _mapping(said.get("vitals")), _mapping(said.get("runs"))
    heat = vitals.get("temperature_c")
    available, total = vitals.get("memory_available_bytes"), vitals.get("memory_total_bytes")
    crashes = _whole(runs.get("crashes"))
    rows = (
        ("temperature", f"{heat:.1f} °C" if isinstance(heat, int | float) else ""),
        ("memory", f"{_bytes(available)} of {_bytes(total)} available" if available is not None else ""),
        ("disk", f"{_bytes(vitals['disk_free_bytes'])} free" if vitals.get("disk_free_bytes") is not None else ""),
        ("up", _span(said.get("uptime_s")) if said.get("health") else ""),
        ("restarts", f"{_whole(said.get('restarts'))}" if said.get("health") else ""),
        (
            "model",
            f"{runs.get('word')} for {_span(runs.get('since_s'))}, {crashes} crashes" if runs.get("word") else "",
        ),
    )
    return tuple((label, value) for label, value in rows if value)


def _slots(said: Mapping[str, Any]) -> tuple[SlotView, ...]:
    return tuple(
        SlotView(
            name=str(name),
            mark=str(slot.get("mark", "")) + (", revoked" if slot.get("revoked") else ""),
            release=str(slot.get("release", "")),
            manifest=str(slot.get("manifest", ""))[:16],
            runs=said.get("active") == name,
        )
        for name, slot in sorted(_mapping(said.get("slots")).items())
        if isinstance(slot, dict)
    )


def _components(said: Mapping[str, Any]) -> tuple[ComponentView, ...]:
    return tuple(
        ComponentView(
            name=name,
            release=str(each.get("release") or ""),
            state=_word(each),
            note=str(each.get("last_error") or ""),
        )
        for name, each in components_of(said).items()
    )


def _word(said: Mapping[str, Any]) -> str:
    state, runs = str(said.get("state") or "").replace("_", " "), str(said.get("runs") or "")
    return f"{state}, {runs}" if runs and runs != "none" else state


def _request(row: DeviceRequest, *, now: datetime) -> RequestView:
    state = requests.state_of(row, now=now)
    try:
        text = unpack_text(row.result)
    except Rejected:
        text = ""
    checks = (each for each in _list(row.result.get("checks")) if isinstance(each, dict))
    return RequestView(
        id=row.id,
        verb=row.verb,
        args=" ".join(f"{key}={value}" for key, value in sorted(row.args.items())),
        state=state,
        tone=_REQUEST_TONES[state],
        late=row.answered_at is not None and row.answered_at > row.expires,
        asked_by=row.asked_by,
        asked_at=row.asked_at,
        ago=ago(row.asked_at, now=now),
        reason=str(row.result.get("reason", "")),
        text=text[-SHOWN_CHARACTERS:],
        checks=tuple(
            CheckView(check=str(each.get("check", "")), ok=each.get("ok") is True, detail=str(each.get("detail", "")))
            for each in checks
        ),
    )


def _until(said: Mapping[str, Any], device: Device) -> str:
    told = str(said.get("certificate_expires") or "")
    return f"until {told[:10]}" if told else f"until {device.certificate_expires:%Y-%m-%d} by our books"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _whole(value: object) -> int:
    return int(value) if isinstance(value, int | float) else 0


def _bytes(value: object) -> str:
    size = float(_whole(value))
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _span(value: object) -> str:
    seconds = _whole(value)
    for length, unit in ((86_400 * 2, "d"), (3_600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds // (86_400 if unit == 'd' else length)} {unit}"
    return f"{seconds} s"
