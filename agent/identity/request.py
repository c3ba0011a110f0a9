"""The first half of an offline install: a key that stays here, and a request for a certificate that goes on a stick.

The hash of the anchor is pinned now, by whoever holds this device: the bundle that comes back is judged by it, as a
join string's is. The file holds nothing secret; `skerry bundle create --request` turns it into a bundle.
"""

import platform
from dataclasses import dataclass
from pathlib import Path

from agent.identity.enrol import make_key_and_request
from agent.identity.folder import StateFolder
from skerry import __version__
from skerry.delivery.durable import write_durably
from skerry.errors import Broken, Rejected
from skerry.runtimes import Found, find_runtime
from skerry.wire import codec
from skerry.wire.enrolment import EnrolRequest
from skerry.wire.profile import RUNTIMES

_FILE = "request.json"


@dataclass(frozen=True, slots=True)
class Requested:
    """What a device keeps until the bundle comes: what it trusts, what it is to be, and what it asked with."""

    anchor_sha256: str
    profile: str
    request: str
    simulated: bool = False
    refuse_automatic: bool = False
    v: int = 1


def make_request(
    folder: StateFolder,
    out: Path,
    *,
    anchor_sha256: str,
    profile: str,
    simulated: bool = False,
    refuse_automatic: bool = False,
) -> None:
    """Write the request of a device that has no network to `out`; asked again, it is the same key's.

    Raises:
        Rejected: a device lives here already.
        Broken: the file or the folder cannot be written.
    """
    folder.expect_new()
    key, csr = make_key_and_request()
    if (folder.path / _FILE).exists() and folder.credentials.key.exists():
        # a bundle for the first request may be on its way already
        csr = codec.decode(EnrolRequest, requested(folder).request.encode()).csr
        key = folder.credentials.key.read_bytes()
    request = EnrolRequest(
        token="",
        csr=csr,
        profile=profile,
        agent=__version__,
        architecture=platform.machine(),
        simulated=simulated,
        runtimes=tuple(each for each in RUNTIMES if isinstance(find_runtime(each), Found)),
    )
    body = codec.encode(request)
    kept = Requested(anchor_sha256, profile, body.decode(), simulated=simulated, refuse_automatic=refuse_automatic)
    try:
        folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Broken(f"{folder.path}: expected to make the state folder, got: {error.strerror}") from error
    write_durably(folder.credentials.key, key, mode=0o600)
    write_durably(folder.path / _FILE, codec.encode(kept), mode=0o600)
    write_durably(out, body)


def requested(folder: StateFolder) -> Requested:
    """Return what was asked for here; raises `Rejected` when nothing was."""
    try:
        return codec.decode(Requested, (folder.path / _FILE).read_bytes())
    except OSError as error:
        raise Rejected(
            f"{folder.path}: expected an enrolled device, or one that has asked for a bundle, got neither; run: "
            "skerry-agent request"
        ) from error


def forget_request(folder: StateFolder) -> None:
    """Delete what was asked for: the device has its identity."""
    (folder.path / _FILE).unlink(missing_ok=True)
