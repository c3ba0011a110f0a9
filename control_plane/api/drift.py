"""Endpoint of drift: the findings, and the evidence of each device and of each version's fleet by now."""

import math
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from sqlalchemy import select

from control_plane import fleet_drift
from control_plane.api.context import PlaneDep, SessionDep
from control_plane.api.operator import require_operator
from control_plane.schema.telemetry import Finding

router = APIRouter(tags=["drift"], dependencies=[Depends(require_operator)])


@router.get("/v1/drift")
def get_drift(
    plane: PlaneDep, session: SessionDep, limit: Annotated[int, Query(ge=1, le=1000)] = 1000
) -> dict[str, Any]:
    """Return the newest findings, oldest of them first; `log_e` is a natural logarithm, `log10_e` one to base ten."""
    view = fleet_drift.view(plane)
    findings = list(session.scalars(select(Finding).order_by(Finding.id.desc()).limit(limit)))[::-1]
    return {
        "findings": [_finding_tree(finding) for finding in findings],
        "devices": [{**asdict(one), "log10_e": _log10(one.log_e)} for one in view.devices],
        "fleet": [{**asdict(one), "log10_e": _log10(one.log_e)} for one in view.fleets],
    }


def _finding_tree(finding: Finding) -> dict[str, Any]:
    return {
        "id": finding.id,
        "kind": finding.kind,
        "device": finding.device,
        "model": finding.model,
        "version": finding.version,
        "log_e": finding.log_e,
        "log10_e": _log10(finding.log_e),
        "severity": finding.severity,
        "event_time": finding.event_time,
        "window": finding.window,
        "detail": finding.detail,
        "found_at": finding.found_at.isoformat(),
    }


def _log10(log_e: float) -> float:
    return log_e / math.log(10)
