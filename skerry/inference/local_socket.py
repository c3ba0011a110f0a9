"""The address of a unix socket, also where its path is longer than the 107 bytes that `sockaddr_un` has room for."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from skerry.errors import Broken

MAX_ADDRESS_BYTES = 107


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
