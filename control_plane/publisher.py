"""Owns what the broker is told at each connect: TUF metadata, the index, assignments, configurations, open requests.

Chunks of artifacts are `publication`'s.
Every function may be called again at any time: it publishes what is current. The order matters to whoever reads at the
same moment: chunks before the metadata that names them, metadata files before the index, all before assignments.
"""

import logging

from control_plane import deltas, desired, director, image_repository, publication, requests
from control_plane.plane import Plane
from control_plane.refusals import Unknown
from control_plane.schema.releases import Release
from skerry.errors import SkerryError
from skerry.wire import codec, topics

log = logging.getLogger(__name__)


def republish_current(plane: Plane) -> None:
    """Publish all that is current: after each connect, for a broker may have kept nothing."""
    publication.look_again(plane)
    publication.converge(plane)
    publish_metadata(plane)
    with plane.readers() as session:
        assigned = director.assigned(session)
        configured = desired.messages(plane, session)
        asked = requests.waiting(plane, session)
    for device in assigned:
        publish_assignment(plane, device)
    for topic, payload in configured:
        plane.outgoing.publish(topic, payload, retain=True)
    for request in asked:
        plane.outgoing.publish(request.topic, request.payload, retain=False, expiry_s=request.expiry_s)


def announce_release(plane: Plane, name: str) -> None:
    """Publish a release that has just become live: its chunks, then the metadata. Call it after the commit.

    What is to be made of the versions that the fleet has, is asked for here, and published once it is there.
    """
    with plane.sessions.begin() as session:
        deltas.ask(session, session.get_one(Release, name), now=plane.clock())
    publication.publish_release(plane, name)
    publish_metadata(plane)


def announce_revocation(plane: Plane) -> None:
    """Publish that a release is listed no more, and clear its chunks from the broker. Call it after the commit."""
    publish_metadata(plane)
    publication.converge(plane)


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
