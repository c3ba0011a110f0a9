"""The build matrix: for each model version and profile the artifact that won, its figures, and why the others lost."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane.schema.models import Build, ModelVersion
from control_plane.schema.releases import Release
from converters.gate_report import sticky_line

RECENT_VERSIONS = 6


@dataclass(frozen=True, slots=True)
class CandidateView:
    """One converted form: its figures where measured, whether it won, and why not.

    `sticky` says what keeping the grids of the version before came to; empty without one.
    """

    name: str
    won: bool
    reason: str
    size: str
    agreement: str
    accuracy: str
    sticky: str


@dataclass(frozen=True, slots=True)
class BuildView:
    """One cell: the gate's verdict for one version on one profile. Figures that were not measured are a dash.

    `choice` says which of two builds the first devices chose, and why; empty where there was nothing to choose.
    """

    profile: str
    gate: str
    runtime: str
    size: str
    accuracy: str
    agreement: str
    reason: str
    choice: str
    candidates: tuple[CandidateView, ...]


@dataclass(frozen=True, slots=True)
class VersionView:
    """One row: a trained model version with its cells in the order of `MatrixView.profiles` (None: not compiled)."""

    model: str
    version: int
    dataset: str
    metrics: tuple[tuple[str, str], ...]
    builds: tuple[BuildView | None, ...]


@dataclass(frozen=True, slots=True)
class MatrixView:
    """The whole matrix, newest version first."""

    profiles: tuple[str, ...]
    versions: tuple[VersionView, ...]


def build_matrix(session: Session, *, limit: int = RECENT_VERSIONS) -> MatrixView:
    """Return the newest versions of all models with their builds."""
    rows = tuple(session.scalars(select(ModelVersion).order_by(ModelVersion.trained_at.desc()).limit(limit)))
    builds = {(build.model, build.version, build.profile): build for build in session.scalars(select(Build))}
    choices = {
        (model, version): chosen
        for model, version, chosen in session.execute(select(Release.model, Release.version, Release.choices))
    }
    shown = {(row.model, row.version) for row in rows}
    profiles = tuple(sorted({profile for model, version, profile in builds if (model, version) in shown}))
    return MatrixView(
        profiles=profiles,
        versions=tuple(
            VersionView(
                model=row.model,
                version=row.version,
                dataset="" if row.recipe.get("kind") == "import" else row.dataset,
                metrics=_figures(row.metrics),
                builds=tuple(
                    _build(
                        builds.get((row.model, row.version, profile)),
                        choice=choices.get((row.model, row.version), {}).get(profile, {}).get("reason", ""),
                    )
                    for profile in profiles
                ),
            )
            for row in rows
        ),
    )


def size(value: object) -> str:
    """Write a number of bytes in the unit that reads best; a dash for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–"
    if value < 1000:
        return f"{value:.0f} B"
    return f"{value / 1000:.1f} kB" if value < 1e6 else f"{value / 1e6:.1f} MB"


def share(value: object) -> str:
    """Write a share of 1 with three decimals; a dash for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–"
    return f"{value:.3f}"


def _build(build: Build | None, *, choice: str) -> BuildView | None:
    if build is None:
        return None
    if build.second and not choice:
        choice = "a second build is kept; the first devices of a rollout choose"
    report = build.report
    candidates = tuple(one for one in report.get("candidates", ()) if isinstance(one, Mapping))
    chosen = str(report.get("chosen", ""))
    winner: Mapping[str, Any] = next((one for one in candidates if chosen and one.get("name") == chosen), {})
    return BuildView(
        profile=build.profile,
        gate=build.gate,
        runtime=f"{report.get('runtime', '')} {report.get('runtime_version', '')}".strip(),
        size=size(winner.get("size_bytes")),
        accuracy=share(winner.get("accuracy")),
        agreement=share(winner.get("agreement")),
        reason=str(report.get("reason", "")),
        choice=str(choice),
        candidates=tuple(_candidate(one, chosen=chosen) for one in candidates),
    )


def _candidate(candidate: Mapping[str, Any], *, chosen: str) -> CandidateView:
    name = str(candidate.get("name", ""))
    return CandidateView(
        name=name,
        won=bool(name) and name == chosen,
        reason="" if name == chosen else _why_lost(candidate, chosen=chosen),
        size=size(candidate.get("size_bytes")),
        agreement=share(candidate.get("agreement")),
        accuracy=share(candidate.get("accuracy")),
        sticky=sticky_line(candidate.get("sticky")),
    )


def _why_lost(candidate: Mapping[str, Any], *, chosen: str) -> str:
    """Say what refused a candidate, or that it passed and the profile prefers another."""
    refused = [
        f"{check['name']}: expected {check['expected']}, got {check['got']}"
        for check in candidate.get("checks", ())
        if check["outcome"] == "refused"
    ]
    if refused:
        return "; ".join(refused)
    return f"passed; the profile prefers {chosen}" if chosen else "lost"


def _figures(metrics: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    """Return the metrics that are single numbers, by their names in words."""
    return tuple(
        (name.replace("_", " "), share(value))
        for name, value in sorted(metrics.items())
        if isinstance(value, float) and 0 <= value <= 1
    )
