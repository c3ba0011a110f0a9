"""Reading models and builds: what was trained, what it became for each profile, as JSON for the API."""

from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from control_plane.refusals import Unknown
from control_plane.schema.models import Build, ModelVersion


def list_models(session: Session) -> list[dict[str, Any]]:
    """Return all versions of all models, with each build's gate by profile."""
    gates: dict[tuple[str, int], dict[str, str]] = {}
    for build in session.scalars(select(Build).order_by(Build.profile)):
        gates.setdefault((build.model, build.version), {})[build.profile] = build.gate
    rows = session.scalars(select(ModelVersion).order_by(ModelVersion.model, ModelVersion.version))
    return [{**_version_tree(row), "gates": gates.get((row.model, row.version), {})} for row in rows]


def show_model(session: Session, model: str, version: int) -> dict[str, Any]:
    """Return one version with its builds and their reports; raises `Unknown`."""
    row = session.get(ModelVersion, (model, version))
    if row is None:
        raise Unknown(f"model: expected a trained version, got {model} {version}")
    builds = select(Build).where(Build.model == model, Build.version == version).order_by(Build.profile)
    return {**_version_tree(row), "builds": [_build_tree(build) for build in session.scalars(builds)]}


def find_build(session: Session, manifest: str) -> Build | None:
    """Return the build one of whose two manifests has this SHA-256, or one that begins so."""
    if not manifest:
        return None
    begins = (column.startswith(manifest, autoescape=True) for column in (Build.manifest, Build.second))
    return session.scalars(select(Build).where(or_(*begins)).limit(1)).first()


def _version_tree(row: ModelVersion) -> dict[str, Any]:
    return {
        "model": row.model,
        "version": row.version,
        "dataset": row.dataset,
        "parts": row.parts,
        "recipe": row.recipe,
        "metrics": row.metrics,
        "bundle": row.bundle,
        "trained_at": row.trained_at.isoformat(),
    }


def _build_tree(build: Build) -> dict[str, Any]:
    return {
        "profile": build.profile,
        "runtime": build.report.get("runtime", ""),
        "gate": build.gate,
        "manifest": build.manifest,
        "second": build.second,
        "files": build.files,
        "report": build.report,
        "built_at": build.built_at.isoformat(),
    }
