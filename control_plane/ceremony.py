"""Takes the result of the key ceremony: both repositories founded and the anchor written, or nothing."""

from sqlalchemy.orm import Session

from control_plane import director, events, image_repository
from control_plane.authority import load_authority
from control_plane.plane import Plane
from skerry.delivery.durable import write_durably
from skerry.wire import codec
from skerry.wire.enrolment import Anchor


def take(plane: Plane, session: Session, *, image_root: str, director_root: str, targets: str) -> bytes:
    """Found both repositories and return the anchor's bytes.

    Raises:
        Conflict: a ceremony was taken before.
        Rejected: what came is not signed as it must be, or not for this server's keys.
    """
    now = plane.clock()
    image_repository.found(session, plane.signers, root=image_root.encode(), targets=targets.encode(), now=now)
    director.found(session, plane.signers, root=director_root.encode(), now=now)
    anchor = codec.encode(
        Anchor(
            project=plane.settings.project,
            image_root=image_root,
            director_root=director_root,
            server_ca=load_authority(plane.home.ca, "server").pem,
        )
    )
    # before the commit: an anchor without a repository is replaced by the next ceremony, the reverse would be for good
    write_durably(plane.home.anchor, anchor)
    events.record(session, "trust", plane.settings.project, "the key ceremony was held: both repositories are founded")
    return anchor
