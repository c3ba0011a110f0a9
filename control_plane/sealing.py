"""Owns the sealed form of artifacts: a content key each, the ciphertext as blobs, and the key sealed to a device.

An artifact is sealed once, so that what is published again are the same bytes under the same topics, and a device
that was interrupted finds the chunks it lacks. The content key stays in the database, beside the blob store that holds
the plaintext anyway; it leaves the server only sealed to the public key of a device that the artifact is assigned to.
"""

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from control_plane import image_repository
from control_plane.builds import find_build
from control_plane.plane import Plane
from control_plane.refusals import Conflict, Unknown
from control_plane.schema import Device, SealedArtifact
from skerry.delivery.sealed import make_key, seal_file, seal_key
from skerry.delivery.slots import MANIFEST
from skerry.wire import topics
from skerry.wire.messages import Content

NO_KEY = "it has no key to seal to: renew its certificate"


def content_for(plane: Plane, session: Session, device: Device, manifest_path: str) -> Content:
    """Return how a device comes by the artifact whose manifest is the target `manifest_path`.

    Raises:
        Conflict: the device enrolled before keys were kept, and has not renewed its certificate since.
        Unknown: the image repository does not list the target, or no build made it.
    """
    if not device.public_key:
        raise Conflict(f"device {device.name}: expected its public key, got none; {NO_KEY}")
    listed = image_repository.target(session, manifest_path)
    sealed = seal(plane, session, listed.hashes["sha256"])
    who = topics.identity(plane.settings.project, device.name)
    return Content(key=seal_key(sealed.key, device.public_key, who=who), files=dict(sealed.files))


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
