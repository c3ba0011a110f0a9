"""Owns what deltas are wanted, and which of them are offered: between files that the fleet has and files it shall have.

They are made by a job (`delta_job`) when a release goes live and when a rollout of it is made, for the versions that
devices of each profile report, and are kept by source and target: the same pair is made once. An assignment waits for
the job, but never longer than `WAIT`: without a delta the device fetches the file itself.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from control_plane import components, jobs
from control_plane.builds import find_build
from control_plane.schema.delivery import MadeDelta, SealedDelta
from control_plane.schema.devices import Device
from control_plane.schema.models import Build
from control_plane.schema.releases import Release
from control_plane.schema.work import Job
from skerry.wire.messages import Delta

KIND = "delta"
WAIT = timedelta(minutes=10)
MAX_SOURCES = 8
"""Of one profile: the versions that most devices have."""


def ask(session: Session, release: Release, *, now: datetime) -> Job | None:
    """Ask for the deltas of a live release that are not made yet; None when there is nothing to make."""
    if release.state != "live":
        return None
    known = {(source, target) for source, target in session.execute(select(MadeDelta.source, MadeDelta.target))}
    pairs = sorted({*_wanted(session, release)} - known)
    if not pairs:
        return None
    digest = hashlib.sha256(repr(pairs).encode()).hexdigest()
    parameters = {"release": release.name, "pairs": [list(pair) for pair in pairs]}
    return jobs.ask(session, kind=KIND, parameters=parameters, key=f"{KIND} {release.name} {digest[:32]}", now=now)


def awaited(session: Session, release: str, *, now: datetime) -> bool:
    """Say whether deltas of a release are being made, and are worth waiting for."""
    making = select(Job.parameters).where(
        Job.kind == KIND, Job.state.in_(("queued", "running")), Job.created_at > now - WAIT
    )
    return any(parameters.get("release") == release for parameters in session.scalars(making))


def made_for(session: Session, files: Mapping[str, str], sources: Iterable[str]) -> list[tuple[str, MadeDelta]]:
    """Return (file name, delta) for what is worth sending of `files` (names to SHA-256), made from `sources` or none.

    Shortest first.
    """
    names = {sha256: name for name, sha256 in files.items()}
    found = select(MadeDelta).where(MadeDelta.target.in_(names), MadeDelta.sha256 != "")
    rows = session.scalars(found.where(MadeDelta.source.in_({"", *sources})).order_by(MadeDelta.length))
    return [(names[row.target], row) for row in rows]


def offered(session: Session, device: Device, manifest: str, *, component: str = "") -> tuple[Delta, ...]:
    """Return the deltas that a component can use on its way to an artifact, of those sealed; shortest first."""
    build = find_build(session, manifest)
    if build is None:
        return ()
    present = components.running(session, device, component)
    has = find_build(session, present)
    sources = files_of(has, present).values() if has is not None else ()
    under = sealed_names(session, manifest)
    return tuple(
        Delta(
            file=name,
            source=row.source,
            length=row.length,
            sha256=row.sha256,
            chunks=tuple(row.chunks),
            sealed=under[row.sha256],
        )
        for name, row in made_for(session, files_of(build, manifest), sources)
        if row.sha256 in under
    )


def sealed_names(session: Session, manifest: str) -> dict[str, str]:
    """Return the SHA-256 of the sealed form of each delta that is sealed for an artifact, by its own."""
    rows = select(SealedDelta.sha256, SealedDelta.sealed).where(SealedDelta.manifest == manifest)
    return {row.sha256: row.sealed for row in session.execute(rows)}


def files_of(build: Build, manifest: str) -> dict[str, str]:
    """Return the files, by name, of that one of a build's two artifacts whose manifest this is."""
    files = build.files if build.manifest.startswith(manifest) else (build.report.get("second") or {}).get("files", {})
    return {str(name): str(sha256) for name, sha256 in files.items()}


def in_the_field(session: Session, profile: str) -> list[str]:
    """Return the manifests that enrolled devices of a profile report, the most frequent first."""
    here = (Device.profile == profile, Device.state == "enrolled")
    rows: Counter[str] = Counter()
    for reported, counted in components.reporting(func.count()):
        for manifest, count in session.execute(counted.where(*here).group_by(reported)):
            if manifest:
                rows[str(manifest)] += int(count)
    return [manifest for manifest, _ in sorted(rows.items(), key=lambda each: (-each[1], each[0]))]


def _wanted(session: Session, release: Release) -> Iterable[tuple[str, str]]:
    builds = select(Build).where(Build.model == release.model, Build.version == release.version, Build.manifest != "")
    for build in session.scalars(builds):
        sources = []
        for manifest in in_the_field(session, build.profile)[:MAX_SOURCES]:
            there = find_build(session, manifest)
            # whoever runs it already fetches nothing of it
            if there is not None and there.id != build.id:
                sources.append(files_of(there, manifest))
        for manifest in filter(None, (build.manifest, build.second)):
            for name, target in files_of(build, manifest).items():
                yield "", target
                yield from ((files[name], target) for files in sources if name in files)
