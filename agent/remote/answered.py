"""What was asked of this device and how it answered, on its disk: the last 64, a file each, in a ring.

A request is kept before the broker hears that it arrived, marked before it is acted upon, and its answer is kept before
it is said. So it is done at most once, whatever moment the power goes, and has one answer, however often it comes.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skerry.delivery.durable import write_durably
from skerry.errors import Rejected
from skerry.wire import codec
from skerry.wire.messages import Answer, Request

KEPT = 64
WAITING, BEGUN, ANSWERED, SAID = "waiting", "begun", "answered", "said"
_log = logging.getLogger("skerry.agent.requests")


@dataclass(frozen=True, slots=True)
class Kept:
    """One request: `number` is its place in the order of arrival, `step` how far it got."""

    number: int
    request: Request
    step: str = WAITING
    answer: Answer | None = None
    v: int = 1

    def answered(self, result: Mapping[str, Any], *, ok: bool) -> "Kept":
        """Return it with its answer."""
        return replace(self, step=ANSWERED, answer=Answer(id=self.request.id, ok=ok, result=dict(result)))


class AnsweredRing:
    """The last requests, by id; the oldest gives way to the newest. Not safe for several threads.

    Without a `folder`, as on a disk that refuses, they are known while the agent runs.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._kept: dict[str, Kept] = {}
        for file in sorted(folder.glob("[0-9][0-9].json")) if folder is not None else ():
            try:
                kept = codec.decode(Kept, file.read_bytes())
            except (Rejected, OSError) as error:
                # a request that came twice is then done twice: none of them does harm
                _log.warning("%s: expected a request, got: %s; it is forgotten", file, error)
                continue
            self._kept[kept.request.id] = _light(kept)
        self._next = max((each.number for each in self._kept.values()), default=0) + 1

    def find(self, request_id: str) -> Kept | None:
        """Return what is kept of a request, with its answer, or None."""
        kept = self._kept.get(request_id)
        if kept is None or kept.step != SAID or self._folder is None:
            return kept
        try:
            return codec.decode(Kept, _file(self._folder, kept.number).read_bytes())
        except (Rejected, OSError):
            return kept

    def new(self, request: Request) -> Kept:
        """Return the next one in order, which `keep` is to keep."""
        return Kept(number=self._next, request=request)

    def keep(self, kept: Kept) -> None:
        """Write it durably in the place of the oldest; raises `Broken` when the disk refuses, and nothing changed."""
        if self._folder is not None:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            write_durably(_file(self._folder, kept.number), codec.encode(kept), mode=0o600)
        self.hold(kept)

    def hold(self, kept: Kept) -> None:
        """Keep it in memory alone, where the disk refused."""
        self._next = max(self._next, kept.number + 1)
        self._kept[kept.request.id] = _light(kept) if self._folder is not None else kept
        for old in [key for key, each in self._kept.items() if each.number <= kept.number - KEPT]:
            del self._kept[old]

    def at(self, *steps: str) -> list[Kept]:
        """Return those that got so far and no further, in their order."""
        return sorted((each for each in self._kept.values() if each.step in steps), key=lambda each: each.number)


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number % KEPT:02d}.json"


def _light(kept: Kept) -> Kept:
    """What was said already stays on the disk: an answer may be as long as a log."""
    return replace(kept, answer=None) if kept.step == SAID else kept
