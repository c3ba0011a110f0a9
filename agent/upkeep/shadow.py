"""A state folder's shadow: links, in memory, to what is on a disk that refuses, for the agent to work on instead.

What the disk has spoilt is put right there (`agent.upkeep.recovery`): a link that is replaced or removed leaves what
it named as it was. The shadow lies beside the socket that such an agent listens on, and goes with the agent.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from skerry.inference.local_socket import socket_places

# folders in which files are replaced; all others are links themselves
_FOLDERS = ("slots", "trust", "components")


@contextlib.contextmanager
def shadow_of(state: Path) -> Iterator[Path | None]:
    """Yield the shadow of a state folder while the context lasts; None where the system has no place for one."""
    made: Path | None = None
    for place in socket_places(state)[1:]:
        shadow = place.with_suffix(".state")
        # of one that was killed
        shutil.rmtree(shadow, ignore_errors=True)
        with contextlib.suppress(OSError):
            shadow.parent.mkdir(mode=0o710, exist_ok=True)
            _mirror(state.absolute(), shadow)
            made = shadow
            break
    try:
        yield made
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


def _mirror(folder: Path, shadow: Path) -> None:
    shadow.mkdir(mode=0o700)
    for path in folder.iterdir():
        # each component is a folder like the state folder itself
        if path.is_dir() and (path.name in _FOLDERS or folder.name == "components"):
            _mirror(path, shadow / path.name)
        else:
            (shadow / path.name).symlink_to(path)
