"""Why the link is down, kept in the state folder for `status` and `doctor`, which are other processes.

It is written where an attempt failed for another reason than the last one, and once more when that is over: a link that
merely flaps costs the disk nothing.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from skerry.delivery.durable import write_durably
from skerry.errors import Rejected
from skerry.wire import codec

FILE = "link.json"


@dataclass(frozen=True, slots=True)
class Noted:
    """What kept the device from its broker, since when by its clock; nothing is wrong where `problem` is empty."""

    problem: str = ""
    since: float = 0.0
    v: int = 1


class LinkNote:
    """Keeps the note of one state folder."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE

    def keep(self, problem: str) -> None:
        """Keep a problem, or that there is none any more; raises `Broken` when the disk refuses."""
        if problem != read_note(self._file.parent).problem:
            write_durably(self._file, codec.encode(Noted(problem=problem[:400], since=time.time())), mode=0o600)


def read_note(folder: Path) -> Noted:
    """Return what is noted; nothing where nothing is, or where it cannot be read."""
    try:
        return codec.decode(Noted, (folder / FILE).read_bytes())
    except (OSError, Rejected):
        return Noted()
