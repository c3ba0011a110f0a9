"""Owns what the broker retains: TUF metadata, the index, chunks of sealed artifacts, and each device's assignment.

Nothing of an artifact is published but its sealed form (`sealing`), under the SHA-256 of that.
Every function may be called again at any time: it publishes what is current. The order matters to whoever reads at the
same moment: chunks before the metadata that names them, metadata files before the index, all before assignments.
"""

import logging

from sqlalchemy import delete, select, update

from control_plane import director, image_repository, releases, sealing
from control_plane.plane import Plane
from control_plane.refusals import Unknown
from control_plane.schema import Build, Publication, Release, SealedArtifact
from skerry.errors import SkerryError
from skerry.wire import codec, topics
from skerry.wire.manifest import CHUNK_BYTES, SEALED_CHUNK_BYTES

log = logging.getLogger(__name__)


def republish_current(plane: Plane) -> None:
    """Publish all that is current: after each connect, for a broker may have kept nothing."""
    with plane.readers() as session:
        live = list(session.scalars(select(Release.name).where(Release.state == "live").order_by(Release.live_at)))
        assigned = director.assigned(session)
    for name in live:
        try:
            publish_release(plane, name)
        except SkerryError as error:
            # a blob that is gone or damaged must not keep the others from the devices
            log.error("%s: %s", name, error)
    _withdraw_superseded(plane)
    publish_metadata(plane)
    for device in assigned:
        publish_assignment(plane, device)


def announce_release(plane: Plane, name: str) -> None:
    """Publish a release that has just become live: its chunks, then the metadata. Call it after the commit."""
    publish_release(plane, name)
    publish_metadata(plane)


def announce_revocation(plane: Plane) -> None:
    """Publish that a release is listed no more, and clear its chunks from the broker. Call it after the commit."""
    publish_metadata(plane)
    _withdraw_superseded(plane)


def publish_release(plane: Plane, name: str) -> None:
    """Publish the sealed chunks of a live release's artifacts, and count their bytes."""
    with plane.readers() as session:
        release = releases.get(session, name)
        if release.state != "live":
            return
        listed = releases.blobs(session, release)
        builds = select(Build.manifest, Build.second)
        builds = builds.where(Build.model == release.model, Build.version == release.version).order_by(Build.profile)
        manifests = [manifest for both in session.execute(builds) for manifest in both if manifest in listed]
    for manifest in manifests:
        # one short transaction each: others write in between
        with plane.sessions.begin() as session:
            files = dict(sealing.seal(plane, session, manifest).files)
        for sha256 in files.values():
            _publish_blob(plane, sha256, release=name)


def publish_metadata(plane: Plane) -> None:
    """Publish the image repository's metadata and the index; nothing before the ceremony."""
    with plane.readers() as session:
        try:
            files = image_repository.files(session)
            index = image_repository.index(session)
            superseded = image_repository.superseded(session)
        except Unknown:
            return
    project = plane.settings.project
    for name, body in files.items():
        plane.outgoing.publish(topics.tuf(project, name), body, retain=True)
    plane.outgoing.publish(topics.tuf(project, "index"), codec.encode(index), retain=True)
    for name in superseded:
        # an empty retained message deletes what was retained
        plane.outgoing.publish(topics.tuf(project, name), b"", retain=True)


def publish_assignment(plane: Plane, device: str) -> None:
    """Publish a device's present assignment, if it has one."""
    with plane.readers() as session:
        try:
            assign = director.current(session, device)
        except Unknown:
            return
    topic = topics.down(topics.identity(plane.settings.project, device), "assign")
    plane.outgoing.publish(topic, codec.encode(assign), retain=True)


def follow_roots(plane: Plane) -> None:
    """Sign anew what the newest roots ask for, and hand every device the roots that its assignment holds under."""
    renew(plane)
    with plane.readers() as session:
        assigned = director.assigned(session)
    for device in assigned:
        publish_assignment(plane, device)


def renew(plane: Plane) -> None:
    """Sign anew what is past half of its life, and publish that."""
    with plane.sessions.begin() as session:
        changed = image_repository.renew(session, plane.signers, now=plane.clock())
    if changed:
        publish_metadata(plane)
    with plane.readers() as session:
        due = director.due(session, plane.clock())
    for device in due:
        # one short transaction each: others write in between
        try:
            with plane.sessions.begin() as session:
                director.renew(plane, session, device)
        except SkerryError as error:
            # one device's trouble, such as no key to seal to, must not keep the others from their renewal
            log.error("%s: %s", device, error)
            continue
        publish_assignment(plane, device)


def _publish_blob(plane: Plane, sha256: str, *, release: str) -> None:
    data = plane.blobs.get(sha256)
    sent = 0
    for number, start in enumerate(range(0, len(data), SEALED_CHUNK_BYTES)):
        chunk = data[start : start + SEALED_CHUNK_BYTES]
        if plane.outgoing.publish(topics.blob(sha256, number), chunk, retain=True):
            sent += len(chunk)
    with plane.sessions.begin() as session:
        if session.get(Publication, sha256) is None:
            session.add(Publication(sha256=sha256, release=release, length=len(data), bytes_sent=sent))
            return
        counted = update(Publication).where(Publication.sha256 == sha256)
        session.execute(counted.values(bytes_sent=Publication.bytes_sent + sent))


def _withdraw_superseded(plane: Plane) -> None:
    """Clear from the broker what is published and current no more: revoked releases, and what an older Skerry left.

    That one published plaintext, so an upgrade ends what anybody could read.
    """
    with plane.readers() as session:
        sealed = {sha256 for files in session.scalars(select(SealedArtifact.files)) for sha256 in files.values()}
        live = set(session.scalars(select(Release.name).where(Release.state == "live")))
        superseded = {
            row.sha256: -(-row.length // (SEALED_CHUNK_BYTES if row.sha256 in sealed else CHUNK_BYTES))
            for row in session.scalars(select(Publication))
            if row.sha256 not in sealed or row.release not in live
        }
    for sha256, chunks in superseded.items():
        # an empty retained message deletes what was retained
        if all(plane.outgoing.publish(topics.blob(sha256, number), b"", retain=True) for number in range(chunks)):
            with plane.sessions.begin() as session:
                session.execute(delete(Publication).where(Publication.sha256 == sha256))
