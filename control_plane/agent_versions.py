"""Owns versions of the agent itself: sets of wheels that are released, signed and rolled out as models are.

A version is one of the model `agent`, with one artifact for each profile that it was added for: the wheels, under a
manifest of the runtime `python`. One of them is skerry's own; the others are what it needs anew, such as a runtime.
Nothing is built or gated here: the devices try each version, and the offline keys alone sign it.
"""

import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from control_plane.events import record
from control_plane.plane import Plane
from control_plane.refusals import Conflict
from control_plane.schema.models import Build, ModelVersion
from control_plane.schema.releases import Release
from control_plane.toolchain import toolchain
from firmware_profiles.loader import load_profile
from skerry.errors import Rejected
from skerry.wire import codec
from skerry.wire.manifest import CHUNK_BYTES, MAX_FILES, PYTHON, Manifest, describe_file
from skerry.wire.messages import AGENT

OWN = "skerry.whl"
# no device takes more (`agent.deployment.fit`)
MAX_WHEELS_BYTES = 256 << 20
_WHEEL = re.compile(r"([A-Za-z0-9._]+)-([A-Za-z0-9._+!]+)(-[0-9][^-]*)?-[^-]+-[^-]+-[^-]+\.whl")


class Wheel(NamedTuple):
    """A wheel, and the version that its name says."""

    version: str
    data: bytes


def add(plane: Plane, session: Session, *, upload: bytes, profiles: Sequence[str], version: int = 0) -> ModelVersion:
    """Keep the wheels in a zip file as the next version of the agent, or as what more profiles get of `version`.

    Raises:
        Rejected: a profile is none that an agent runs on, or the upload no set of wheels with skerry's among them.
        Conflict: that version is not one yet, or has a release.
    """
    wheels = read_wheels(upload)
    if not profiles:
        raise Rejected("agent: expected a profile to add it for, got none")
    for name in profiles:
        if not load_profile(name).agent:
            raise Rejected(f"profile {name}: expected one that an agent runs on, got a microcontroller's")
    now = plane.clock()
    files = {name: plane.blobs.put(wheel.data) for name, wheel in wheels.items()}
    row = _version(session, wheels, files[OWN], version=version, now=now)
    for profile in profiles:
        manifest = _manifest(row, profile, wheels, now=now)
        known = select(Build).where(Build.model == AGENT, Build.version == row.version, Build.profile == profile)
        build = session.scalar(known) or Build(model=AGENT, version=row.version, profile=profile)
        build.gate, build.manifest, build.files = "passed", plane.blobs.put(manifest), files
        build.report, build.built_at = {"runtime": PYTHON, "toolchain": toolchain()}, now
        session.add(build)
    session.flush()
    brings = ", ".join(f"{name.removesuffix('.whl')} {wheel.version}" for name, wheel in sorted(wheels.items()))
    text = f"{AGENT} {row.version} for {', '.join(profiles)}: {brings}"
    record(session, "model", f"{AGENT} {row.version}", text, model=AGENT, version=row.version)
    return row


def read_wheels(upload: bytes) -> dict[str, Wheel]:
    """Return the wheels in a zip file by `name.whl`; raises `Rejected`."""
    try:
        with zipfile.ZipFile(io.BytesIO(upload)) as archive:
            members = [each for each in archive.infolist() if not each.is_dir()]
            if not 1 <= len(members) < MAX_FILES or sum(each.file_size for each in members) > MAX_WHEELS_BYTES:
                raise Rejected(
                    f"agent: expected 1 to {MAX_FILES - 1} wheels of {MAX_WHEELS_BYTES} bytes, got {len(members)} files"
                )
            read = [_read(each.filename, archive.read(each)) for each in members]
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise Rejected(f"agent: expected a zip file of wheels, got: {error}") from error
    found = dict(read)
    if len(found) < len(members):
        raise Rejected("agent: expected wheels of different packages, got one twice")
    if OWN not in found:
        raise Rejected(f"agent: expected a wheel of skerry among them, got {', '.join(sorted(found))}")
    return found


def _read(filename: str, data: bytes) -> tuple[str, Wheel]:
    parts = _WHEEL.fullmatch(filename)
    if parts is None:
        raise Rejected(f"agent: expected wheels such as skerry-1.0-py3-none-any.whl, got {filename!r:.120}")
    _check_wheel(filename, data)
    # without its version: a device makes what it can from the file of that name that it has. Which platform it is for,
    # the profile says, and what it is, its digest
    return f"{parts[1].lower()}.whl", Wheel(version=parts[2], data=data)


def _check_wheel(name: str, data: bytes) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as wheel:
            described = any(each.endswith(".dist-info/WHEEL") for each in wheel.namelist())
    except zipfile.BadZipFile as error:
        raise Rejected(f"{name}: expected a wheel, got: {error}") from error
    if not described:
        raise Rejected(f"{name}: expected a wheel, got a zip file without dist-info")


def _version(session: Session, wheels: Mapping[str, Wheel], own: str, *, version: int, now: datetime) -> ModelVersion:
    newest = session.scalar(select(func.max(ModelVersion.version)).where(ModelVersion.model == AGENT)) or 0
    if version:
        row = session.get(ModelVersion, (AGENT, version))
        released = select(Release.name).where(Release.model == AGENT, Release.version == version)
        if row is None or session.scalar(released) is not None:
            raise Conflict(f"agent {version}: expected a version that is there and not released, got another")
        return row
    brings = {name.removesuffix(".whl"): wheel.version for name, wheel in sorted(wheels.items())}
    row = ModelVersion(
        model=AGENT,
        version=newest + 1,
        dataset="",
        recipe={"kind": AGENT},
        metrics={"lineage": brings},
        bundle=own,
        trained_at=now,
    )
    session.add(row)
    session.flush()
    return row


def _manifest(row: ModelVersion, profile: str, wheels: Mapping[str, Wheel], *, now: datetime) -> bytes:
    manifest = Manifest(
        model=AGENT,
        version=row.version,
        profile=profile,
        runtime=PYTHON,
        model_file=OWN,
        golden_file="",
        gate_file="",
        inputs=(),
        outputs=(),
        labels=(),
        tolerances={},
        observe={},
        monitor={},
        files=tuple(describe_file(name, wheel.data) for name, wheel in sorted(wheels.items())),
        latency_budget_ms=0.0,
        created=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        lineage={key: str(value) for key, value in row.metrics["lineage"].items()},
    )
    data = codec.encode(manifest)
    if len(data) > CHUNK_BYTES:
        raise Rejected(f"agent: expected a manifest of at most {CHUNK_BYTES} bytes, got {len(data)}: smaller wheels")
    return data
