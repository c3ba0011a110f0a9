"""How one build came to be, as a value: what the bill of materials and the provenance are written from, and no clock.

The rows of the database say it all: the version its data, recipe and figures, the build its files, its gate report and
the tools that made it.
"""

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane.schema.models import Build, DatasetPart, ModelVersion
from skerry.wire.manifest import target_name

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the data that a version was trained on, or tried on when it was brought along."""

    name: str
    sha256: str
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Making:
    """One build with its lineage; `files` maps names to SHA-256 (the manifest among them), `created` is ISO 8601.

    `tools` are versions by name as they were when it was compiled, among them `skerry` and its `revision`; empty for a
    build that an older Skerry made. `report` is the gate's, `precision` names the candidate that became the build, and
    `chosen` has its figures. `second` is the build that stays beside the one that the gate chose.
    """

    model: str
    version: int
    profile: str
    created: str
    recipe: dict[str, Any]
    metrics: dict[str, Any]
    lineage: dict[str, str]
    bundle: str
    parts: tuple[Part, ...]
    files: dict[str, str]
    report: dict[str, Any]
    tools: dict[str, str]
    second: bool = False

    @property
    def precision(self) -> str:
        """The candidate that became this build."""
        kept = self.report.get("kept") or [self.report.get("chosen", "")]
        return str(kept[-1] if self.second else kept[0])

    @property
    def chosen(self) -> dict[str, Any]:
        """The measured figures of the candidate that became the artifact."""
        candidates = self.report.get("candidates", ())
        return next((dict(each) for each in candidates if each.get("name") == self.precision), {})

    def path(self, file: str) -> str:
        """Return the target path of a file."""
        return target_name(self.model, self.version, self.profile, file, second=self.second)


def makings_of(session: Session, version: ModelVersion, build: Build) -> tuple[Making, ...]:
    """Return how a build of a version came to be, and the second one beside it where the gate kept two."""
    first = _making(session, version, build)
    kept = build.report.get("second") or {}
    if not kept.get("manifest"):
        return (first,)
    return first, replace(first, second=True, files={**kept["files"], MANIFEST: str(kept["manifest"])})


def _making(session: Session, version: ModelVersion, build: Build) -> Making:
    known = select(DatasetPart).where(DatasetPart.sha256.in_(version.parts), DatasetPart.dataset == version.dataset)
    rows = {part.sha256: part.rows for part in session.scalars(known)}
    name = version.dataset or "samples"
    return Making(
        model=version.model,
        version=version.version,
        profile=build.profile,
        created=version.trained_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        recipe=version.recipe,
        metrics={key: value for key, value in version.metrics.items() if key != "lineage"},
        lineage={key: str(value) for key, value in version.metrics.get("lineage", {}).items()},
        bundle=version.bundle,
        parts=tuple(Part(name, sha256, rows.get(sha256)) for sha256 in sorted(version.parts)),
        files={**build.files, MANIFEST: build.manifest},
        report=build.report,
        tools={key: str(value) for key, value in build.report.get("toolchain", {}).items()},
    )
