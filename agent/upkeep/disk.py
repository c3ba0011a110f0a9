"""The disk under the state folder: whether it takes writes. It is decided here, once, when the agent starts.

Whoever must not take on what could not be kept asks `problem`: while there is one, the agent runs what is committed,
answers and tells how it is, and nothing more (docs/device.md). `is_mended` says when it may start anew, in full.
"""

import errno
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from agent.telling.outbox_file import free_ballast

TRIED_BYTES = 64 * 1024
# a disk on which somebody makes a little room and takes it again must not have the agent start anew all the time
ROOM_BYTES = 1 << 20
LOOK_S = 2.0
_RUNS_ON = "what is committed runs on, nothing is kept"
# what a disk says of itself; anything else that it refuses is for whoever set this device up (its permissions, ...)
_SAYS = {
    errno.EROFS: f"the disk is read-only: {_RUNS_ON}; see dmesg, mount it rw",
    errno.ENOSPC: f"the disk is full: {_RUNS_ON}; make room",
    errno.EDQUOT: f"the disk's quota is used up: {_RUNS_ON}; make room",
    errno.EIO: f"the disk fails: {_RUNS_ON}; see dmesg, replace it",
}
_log = logging.getLogger("skerry.agent.disk")


class Disk:
    """Whether the disk of a state folder takes writes; `problem` is why it does not, in words, and empty if it does.

    `folder` is the state folder itself, also where the agent works on its shadow (`agent.upkeep.shadow`). With an
    `outbox`, its ballast is given up before the disk is called full.
    """

    def __init__(
        self, folder: Path, *, outbox: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.folder = folder
        self._clock = clock
        self._due = clock() + LOOK_S
        self.problem = _look(folder)
        if self.problem and outbox is not None:
            free_ballast(outbox)
            self.problem = _look(folder)
        if self.problem:
            _log.error("%s: %s", folder, self.problem)

    @property
    def is_mended(self) -> bool:
        """True when a disk that refused takes writes again; it is tried every few seconds at most."""
        if not self.problem or self._clock() < self._due:
            return False
        self._due = self._clock() + LOOK_S
        try:
            room = os.statvfs(self.folder)
        except OSError:
            # it is gone, or fails
            return False
        return room.f_bavail * room.f_frsize >= ROOM_BYTES and not _look(self.folder)


def try_to_write(folder: Path) -> None:
    """Find what only a write finds: a quota, a worn-out card. Raises `OSError`; what is written has no name."""
    try:
        handle = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        # FAT and some network file systems have no such files, and a name would be a change
        room = os.statvfs(folder)
        if room.f_bavail * room.f_frsize < TRIED_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from None
        return
    try:
        os.write(handle, bytes(TRIED_BYTES))
        # only now does a disk with delayed allocation say that there is no room
        os.fsync(handle)
    finally:
        os.close(handle)


def _look(folder: Path) -> str:
    """Return why the disk refuses, or nothing; what somebody's setting refuses is for the first write to say."""
    try:
        try_to_write(folder)
    except OSError as error:
        return _SAYS.get(error.errno or 0, "")
    return ""
