"""The local face's unix socket: where it lies, and its address where a path is longer than `sockaddr_un` has room for.

It is `serve.sock` in the state folder. Where that takes no socket, because its disk is read-only or knows none, it is
in a folder of the running system, under a name that tells one state folder from another; who asks tries the same places
in the same order.
"""

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from skerry.errors import Broken

SOCKET = "serve.sock"
MAX_ADDRESS_BYTES = 107
# the unit's RuntimeDirectory=; root makes it where there is no unit
RUNTIME = Path("/run/skerry-agent")


def socket_places(state: Path) -> tuple[Path, ...]:
    """Return where the socket of a state folder's agent may be, the usual place first.

    All others are below folders of root or of whoever runs the agent: nobody else can put a socket there.
    """
    name = f"{hashlib.sha256(os.fsencode(state.resolve())).hexdigest()[:16]}.sock"
    own = os.environ.get("XDG_RUNTIME_DIR", "")
    folders = (RUNTIME, *((Path(own) / "skerry-agent",) if own else ()))
    return (state / SOCKET, *(folder / name for folder in folders))


def connect_first(state: Path, *, timeout_s: float) -> socket.socket:
    """Connect to the agent of a state folder, wherever it listens; raises what the last of these places said."""
    *most, last = socket_places(state)
    for place in most:
        with contextlib.suppress(OSError, Broken):
            return connect(place, timeout_s=timeout_s)
    return connect(last, timeout_s=timeout_s)


def connect(path: Path, *, timeout_s: float) -> socket.socket:
    """Connect to a unix socket, whatever the length of its path; raises `OSError`, or `Broken` without its folder."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        with address_of(path) as address:
            connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def address_of(path: Path) -> Iterator[str]:
    """Yield an address to bind or connect to while the context lasts; of a long path, one through its folder's handle.

    Raises:
        Broken: the folder is not there, or the file's name alone is too long.
    """
    if len(os.fsencode(path)) <= MAX_ADDRESS_BYTES:
        yield str(path)
        return
    try:
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    except OSError as error:
        raise Broken(f"{path}: expected a folder for the socket, got: {error.strerror}") from error
    try:
        address = f"/proc/self/fd/{folder}/{path.name}"
        if len(os.fsencode(address)) > MAX_ADDRESS_BYTES:
            raise Broken(f"{path}: expected a shorter name for the socket, got {len(os.fsencode(path.name))} bytes")
        yield address
    finally:
        os.close(folder)
