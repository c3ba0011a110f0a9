"""Owns what the broker retains: TUF metadata, the index, chunks of released blobs, and each device's assignment.

Every function may be called again at any time: it publishes what is current. The order matters to whoever reads at the
same moment: chunks before the metadata that names them, metadata files before the index, all before assignments.
"""

import logging

from sqlalchemy import select, update

from control_plane import director, image_repository, releases
from control_plane.plane import Plane
from control_plane.refusals import Unknown
from control_plane.schema import Publication, Release
from skerry.errors import SkerryError
from skerry.wire import codec, topics
from skerry.wire.manifest import CHUNK_BYTES, chunk_count

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
    publish_metadata(plane)
    for device in assigned:
        publish_assignment(plane, device)


def announce_release(plane: Plane, name: str) -> None:
    """Publish a release that has just become live: its chunks, then the metadata. Call it after the commit."""
    publish_release(plane, name)
    publish_metadata(plane)


def publish_release(plane: Plane, name: str) -> None:
    """Publish the chunks of a live release's files, and count their bytes; a file that two releases share goes once."""
    with plane.readers() as session:
        release = releases.get(session, name)
        if release.state != "live":
            return
        files = releases.blobs(session, release)
        elsewhere = set(session.scalars(select(Publication.sha256).where(Publication.release != name)))
    for sha256, length in files.items():
        if sha256 not in elsewhere:
            _publish_blob(plane, sha256, release=name, length=length)


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
        with plane.sessions.begin() as session:
            director.renew(plane, session, device)
        publish_assignment(plane, device)


def _publish_blob(plane: Plane, sha256: str, *, release: str, length: int) -> None:
    data = plane.blobs.get(sha256)
    sent = 0
    for number in range(chunk_count(length)):
        chunk = data[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
        if plane.outgoing.publish(topics.blob(sha256, number), chunk, retain=True):
            sent += len(chunk)
    with plane.sessions.begin() as session:
        if session.get(Publication, sha256) is None:
            session.add(Publication(sha256=sha256, release=release, length=length, bytes_sent=sent))
            return
        counted = update(Publication).where(Publication.sha256 == sha256)
        session.execute(counted.values(bytes_sent=Publication.bytes_sent + sent))
