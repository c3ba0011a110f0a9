"""Owns the sealed form of artifacts: a content key each, the ciphertext as blobs, and the key sealed to a device.

An artifact is sealed once, so that what is published again are the same bytes under the same topics, and a device
that was interrupted finds the chunks it lacks. The content key stays in the database, beside the blob store that holds
the plaintext anyway; it leaves the server only sealed to the public key of a device that the artifact is assigned to.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from control_plane import deltas, image_repository, retention, transport
from control_plane.builds import find_build
from control_plane.plane import Plane
from control_plane.refusals import Conflict, Unknown
from control_plane.schema.delivery import MadeDelta, SealedArtifact, SealedDelta
from control_plane.schema.devices import Device
from control_plane.schema.releases import Deployment, Release
from firmware_profiles.loader import load_profile
from skerry.delivery.sealed import make_key, seal_file, seal_key
from skerry.delivery.slots import MANIFEST
from skerry.wire import topics
from skerry.wire.manifest import sealed_length
from skerry.wire.messages import Content

NO_KEY = "it has no key to seal to: renew its certificate"


def content_for(
    plane: Plane,
    session: Session,
    device: Device,
    manifest_path: str,
    *,
    deployment: str = "",
    component: str = "",
) -> Content:
    """Return how a device comes by the artifact whose manifest is the target `manifest_path`.

    The rollout of the `deployment` says for how many devices it is, and so which road is the better one; what the
    `component` has is what deltas are offered from.

    Raises:
        Conflict: the device enrolled before keys were kept, and has not renewed its certificate since.
        Unknown: the image repository does not list the target, or no build made it.
    """
    if not device.public_key:
        raise Conflict(f"device {device.name}: expected its public key, got none; {NO_KEY}")
    listed = image_repository.target(session, manifest_path)
    artifact = seal(plane, session, listed.hashes["sha256"])
    who = topics.identity(plane.settings.project, device.name)
    return Content(
        key=seal_key(artifact.key, device.public_key, who=who),
        files=dict(artifact.files),
        deltas=deltas.offered(session, device, artifact.manifest, component=component),
        roads=_roads(plane, session, device, artifact, deployment=deployment),
    )


def for_a_file(content: Content) -> Content:
    """Return the same content for an offline bundle, which carries the files themselves."""
    return replace(content, deltas=(), roads=(transport.MQTT,))


@dataclass(frozen=True, slots=True)
class Sealed:
    """The blobs of an artifact: its files by name, and what is `shorter` than those, SHA-256 to sealed length.

    `packed` says by name under which SHA-256 of those a file is to be had packed by itself.
    """

    files: dict[str, str]
    shorter: dict[str, int]
    packed: dict[str, str]


def sealed(session: Session, manifest: str, sources: Iterable[str]) -> Sealed | None:
    """Return the sealed form of an artifact and of its deltas; None where something is still to be sealed.

    `sources` are the SHA-256 of the files that devices have; what is packed by itself is among it always.
    """
    artifact, build = session.get(SealedArtifact, manifest), find_build(session, manifest)
    if artifact is None or build is None:
        return None
    under = deltas.sealed_names(session, manifest)
    made = deltas.made_for(session, deltas.files_of(build, manifest), sources)
    if any(row.sha256 not in under for _, row in made):
        return None
    return _sealed(artifact, made, under)


def seal_all(plane: Plane, session: Session, manifest: str, sources: Iterable[str]) -> Sealed:
    """Seal an artifact and what is worth sending instead of its files; raises as `seal` does."""
    artifact, build = seal(plane, session, manifest), find_build(session, manifest)
    files = deltas.files_of(build, manifest) if build is not None else {}
    under = deltas.sealed_names(session, manifest)
    made = deltas.made_for(session, files, sources)
    for sha256 in {row.sha256 for _, row in made} - set(under):
        data = b"".join(seal_file(artifact.key, plane.blobs.get(sha256), sha256=sha256))
        row = SealedDelta(manifest=manifest, sha256=sha256, sealed=plane.blobs.put(data))
        try:
            with session.begin_nested():
                session.add(row)
            under[sha256] = row.sealed
        except IntegrityError:
            # as in `seal`
            under[sha256] = session.get_one(SealedDelta, (manifest, sha256)).sealed
    return _sealed(artifact, made, under)


def seal(plane: Plane, session: Session, manifest: str) -> SealedArtifact:
    """Return the sealed form of the artifact whose manifest has this SHA-256, making it the first time.

    Raises:
        Unknown: no build made it.
    """
    there = session.get(SealedArtifact, manifest)
    if there is not None:
        return there
    build = find_build(session, manifest)
    if build is None:
        raise Unknown(f"artifact: expected one that was built, got the manifest {manifest!r:.80}")
    key = make_key()
    made = SealedArtifact(manifest=manifest, key=key, files={})
    files = build.files if build.manifest == manifest else build.report["second"]["files"]
    for name, sha256 in {**files, MANIFEST: manifest}.items():
        made.files[name] = plane.blobs.put(b"".join(seal_file(key, plane.blobs.get(sha256), sha256=sha256)))
    try:
        with session.begin_nested():
            session.add(made)
    except IntegrityError:
        # another control plane on the same database was faster: its key it is
        return session.get_one(SealedArtifact, manifest)
    return made


def _sealed(artifact: SealedArtifact, made: Iterable[tuple[str, MadeDelta]], under: Mapping[str, str]) -> Sealed:
    return Sealed(
        files=dict(artifact.files),
        shorter={under[row.sha256]: sealed_length(row.length) for _, row in made},
        packed={name: under[row.sha256] for name, row in made if not row.source},
    )


# read once: profiles change with the program alone
_profile = functools.cache(load_profile)


def _roads(
    plane: Plane, session: Session, device: Device, artifact: SealedArtifact, *, deployment: str
) -> tuple[str, ...]:
    build = find_build(session, artifact.manifest)
    release = None
    if build is not None:
        named = select(Release).where(Release.model == build.model, Release.version == build.version)
        release = session.scalar(named)
    row = session.get(Deployment, deployment)
    devices = 1
    if row is not None and row.rollout is not None:
        devices = session.scalar(select(func.count()).where(Deployment.rollout == row.rollout)) or 1
    return transport.roads(
        _profile(device.profile),
        held=release is None or retention.holds(plane, session, release),
        length=sum(plane.blobs.size(sha256) for sha256 in artifact.files.values()),
        devices=devices,
        settings=plane.settings,
    )
