"""What the pages show of drift: the findings, which of them are still open, and the evidence of each device now."""

import math
from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane.fleet_drift import DeviceDrift, FleetDrift, View
from control_plane.pages.charts import ALARM_LOG10, WATCH_LOG10
from control_plane.pages.views import ago, running_on
from control_plane.schema.devices import Device
from control_plane.schema.telemetry import Finding

RECENT_FINDINGS = 12


@dataclass(frozen=True, slots=True)
class EvidenceView:
    """One bar, of a device or of all that run a version: evidence as log10, and its tone (good, watch, alarm, plain).

    `note`, where given, is said instead of the figure.
    """

    name: str
    log10_e: float
    tone: str
    note: str


@dataclass(frozen=True, slots=True)
class FindingView:
    """One conclusion of the statistics. It is open while what it speaks of still runs."""

    kind: str
    device: str
    release: str
    log10_e: float
    severity: float
    window: int
    ago: str
    found_at: datetime
    open: bool


@dataclass(frozen=True, slots=True)
class DriftView:
    """The drift panel: `tone` (plain, good, watch, alarm) and `headline` sum it up."""

    tone: str
    headline: str
    advice: str
    evidence: tuple[EvidenceView, ...]
    findings: tuple[FindingView, ...]


def drift(session: Session, seen: View, *, now: datetime) -> DriftView:
    """Return the newest findings, newest first, beside the evidence that `seen` holds."""
    running = _running(session)
    rows = session.scalars(select(Finding).order_by(Finding.id.desc()).limit(RECENT_FINDINGS))
    findings = tuple(_finding(row, running, now=now) for row in rows)
    several = Counter(one.device for one in seen.devices)
    devices = (_of_device(one, beside=several[one.device] > 1) for one in seen.devices)
    evidence = (*(_of_fleet(one) for one in seen.fleets), *devices)
    tone, headline, advice = _summary(findings, evidence)
    return DriftView(tone=tone, headline=headline, advice=advice, evidence=evidence, findings=findings)


def _of_fleet(one: FleetDrift) -> EvidenceView:
    log10_e = one.log_e / math.log(10)
    # evidence alone does not change the world: the change must also be large enough to matter
    tone = "alarm" if one.world_changed else "watch" if log10_e >= WATCH_LOG10 else "good"
    return EvidenceView(name=f"all on {one.model}-{one.version}", log10_e=log10_e, tone=tone, note="")


def _of_device(one: DeviceDrift, *, beside: bool) -> EvidenceView:
    name = f"{one.device}, {one.model}" if beside else one.device
    if one.state == "commissioning":
        return EvidenceView(name=name, log10_e=0.0, tone="plain", note="learning")
    log10_e = one.log_e / math.log(10)
    tone = "alarm" if log10_e >= ALARM_LOG10 else "watch" if log10_e >= WATCH_LOG10 else "good"
    return EvidenceView(name=name, log10_e=log10_e, tone=tone, note="")


def _running(session: Session) -> dict[str, tuple[str, ...]]:
    rows = session.execute(select(Device.name, Device.reported))
    return {name: running_on(reported) for name, reported in rows}


def _finding(row: Finding, running: dict[str, tuple[str, ...]], *, now: datetime) -> FindingView:
    release = f"{row.model}-{row.version}"
    asked = [running.get(row.device, ())] if row.kind == "local" else running.values()
    return FindingView(
        kind=row.kind,
        device=row.device,
        release=release,
        log10_e=row.log_e / math.log(10),
        severity=row.severity,
        window=row.window,
        ago=ago(row.found_at, now=now),
        found_at=row.found_at,
        open=any(release in each for each in asked),
    )


def _summary(findings: tuple[FindingView, ...], bars: tuple[EvidenceView, ...]) -> tuple[str, str, str]:
    """Say in one sentence what the statistics say, and in another what follows from it."""
    still = [finding for finding in findings if finding.open]
    if any(finding.kind == "world" for finding in still):
        advice = "Add data from the new world and retrain; label a few windows per device to gate the next version."
        return "alarm", "The world has changed.", advice
    local = sorted({finding.device for finding in still if finding.kind == "local"})
    if len(local) == 1:
        return (
            "watch",
            f"{local[0]} has drifted on its own.",
            "Look at that device; the fleet as a whole has not moved.",
        )
    if local:
        advice = "Look at those devices; the fleet as a whole has not moved."
        return "watch", f"{len(local)} devices have drifted on their own.", advice
    if not bars and not findings:
        return "plain", "Nothing observed yet.", "A device first learns its own baseline from its first windows."
    if any(bar.tone in ("watch", "alarm") for bar in bars):
        return "watch", "Evidence is rising.", "Nothing to decide yet: an alarm needs E of 100 or more."
    return "good", "The world is as it was.", "Each device is compared with its own first windows."
