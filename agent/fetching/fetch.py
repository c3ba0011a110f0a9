"""Fetching files by chunks: window after window, road after road, until every file is whole or nothing comes.

What comes is sealed: it is opened by a child (`agent.fetching.unseal`), and written once the plaintext is what was
signed. A road is a `Chunks`: retained messages of the broker (`RetainedChunks`), or ranges over HTTPS
(`agent.fetching.ranges`). When one brings nothing more, the next one is tried; what is held by then stays held, over
restarts too.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.fetching.unseal import Opener
from skerry.delivery.chunks import Arrival, Flow, Outcome, Progress, Stall, Wanted, next_window
from skerry.delivery.partial import PartialFile
from skerry.delivery.vault import Vault
from skerry.errors import Broken, Rejected, SkerryError, Unavailable
from skerry.wire.manifest import FileEntry

MAX_STALL = 3
MQTT, HTTPS = "mqtt", "https"


class Stalled(Unavailable):
    """The road is there, and the chunk `published` (SHA-256 of a sealed file) has no answer on it."""

    def __init__(self, message: str, *, published: str) -> None:
        super().__init__(message)
        self.published = published


class Falsified(Broken):
    """What comes is, again and again, not what was signed."""


class Retained(Protocol):
    """Whoever can fetch retained messages; `agent.link.session.Link` does."""

    def fetch_retained(self, wanted: Sequence[str], *, timeout_s: float) -> dict[str, bytes]:
        """Return what is retained on the given topics, as far as it came; `timeout_s` is how long a silence may be."""


class Chunks(Protocol):
    """A road to sealed chunks."""

    def fetch(self, wanted: Sequence[Wanted], *, timeout_s: float) -> dict[Wanted, bytes]:
        """Return what came of a window, any of it or nothing; raises `Unavailable` where the road itself is closed."""

    def close(self) -> None:
        """Let go of what is held, until the next window."""


class Pace(Protocol):
    """Whoever says when how much may be fetched; `agent.fetching.pace` does."""

    @property
    def most_chunks(self) -> int:
        """How many chunks may be asked for at once."""

    def admit(self, interrupted: Callable[[], bool]) -> bool:
        """Wait until the next window may begin; False when it may not for now."""

    def spent(self, size_bytes: int) -> None:
        """Note what came."""


@dataclass(frozen=True, slots=True)
class RetainedChunks:
    """The road over the broker."""

    link: Retained

    def fetch(self, wanted: Sequence[Wanted], *, timeout_s: float) -> dict[Wanted, bytes]:
        """Return the retained messages on the chunks' topics."""
        found = self.link.fetch_retained([each.topic for each in wanted], timeout_s=timeout_s)
        return {each: found[each.topic] for each in wanted if each.topic in found}

    def close(self) -> None:
        """The link stays: it is not ours."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """How a fetch ended: `complete`, or interrupted; `received` counts payload bytes, all attempts together."""

    complete: bool
    received: int


def fetch_files(
    link: Retained,
    folder: Path,
    entries: Sequence[FileEntry],
    *,
    sealed: Mapping[str, str],
    opener: Opener,
    vault: Vault | None = None,
    timeout_s: float,
    interrupted: Callable[[], bool] = lambda: False,
    https: Chunks | None = None,
    roads: Sequence[str] = (MQTT,),
    pace: Pace | None = None,
    watch: Callable[[Sequence[Progress]], None] = lambda _: None,
) -> Fetched:
    """Fetch the files into `folder`, going on where an earlier attempt stopped.

    Args:
        link: the broker; asked where `roads` names `mqtt`.
        folder: what comes is kept here, as `PartialFile`.
        entries: the files, as the signed manifest describes them.
        sealed: under which SHA-256 the sealed form of each file is published, by name.
        opener: opens chunks.
        vault: with one, what is kept here is sealed again.
        timeout_s: how long a road may be silent before a window ends.
        interrupted: asked between windows; True ends the fetch, incomplete.
        https: the road over HTTPS; without one, `roads` that name it are left out.
        roads: `Content.roads`, the preferred one first: the next one is taken where one brings nothing more.
        pace: the owner's limits; without one, as fast as it comes.
        watch: told how far each file is, after every window.

    Raises:
        Rejected: a file has no sealed form, or the opener's key is not for this device.
        Stalled: three windows without an answer, on a road that is there.
        Unavailable: no road is there.
        Falsified: three windows in which chunks came that are not what the manifest names.
        Broken: nothing can be opened or kept here.
    """
    missing = next((entry.name for entry in entries if entry.name not in sealed), None)
    if missing is not None:
        raise Rejected(f"assignment: expected where {missing} is to be had sealed, got nothing; assign it again")
    published = {entry.sha256: sealed[entry.name] for entry in entries}
    fetch = _Fetch(
        files={entry.sha256: PartialFile(folder, entry, vault) for entry in entries},
        published=published,
        opener=opener,
        timeout_s=timeout_s,
        interrupted=interrupted,
        pace=pace,
        watch=watch,
    )
    failures: list[SkerryError] = []
    for road in _roads(link, https, roads):
        try:
            return Fetched(complete=fetch.run(road), received=fetch.received)
        except (Unavailable, Falsified) as error:
            failures.append(error)
        finally:
            road.close()
    raise max(failures, key=_weight)


def _roads(link: Retained, https: Chunks | None, names: Sequence[str]) -> list[Chunks]:
    known: dict[str, Chunks | None] = {MQTT: RetainedChunks(link), HTTPS: https}
    roads = [road for name in names if (road := known.get(name)) is not None]
    return roads or [RetainedChunks(link)]


def _weight(error: SkerryError) -> int:
    """Of several roads' ends, the one counts that says most about the file."""
    return 2 if isinstance(error, Falsified) else int(isinstance(error, Stalled))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fetch:
    """One fetch, over whichever road."""

    files: dict[str, PartialFile]
    published: Mapping[str, str]
    opener: Opener
    timeout_s: float
    interrupted: Callable[[], bool]
    pace: Pace | None
    watch: Callable[[Sequence[Progress]], None]

    @property
    def received(self) -> int:
        """Payload bytes, all attempts together."""
        return sum(file.progress.received for file in self.files.values())

    def run(self, road: Chunks) -> bool:
        """Fetch all that is missing; False when interrupted, raises when the road brings nothing more."""
        stall, flow = Stall(), Flow()
        unanswered: set[tuple[str, int]] = set()
        while wanted := self._window(flow, unanswered):
            if self.interrupted() or (self.pace is not None and not self.pace.admit(self.interrupted)):
                return False
            began = time.monotonic()
            found = road.fetch(wanted, timeout_s=self.timeout_s)
            flow = flow.after(time.monotonic() - began)
            if self.pace is not None:
                self.pace.spent(sum(len(payload) for payload in found.values()))
            outcomes = self._keep(found)
            unanswered |= {(each.sha256, each.number) for each in wanted if outcomes.get(each) is not Outcome.STORED}
            stall = stall.after(outcomes)
            self._check(stall, wanted[0])
            self.watch([file.progress for file in self.files.values()])
        return True

    def _window(self, flow: Flow, unanswered: set[tuple[str, int]]) -> tuple[Wanted, ...]:
        size = flow.size if self.pace is None else min(flow.size, self.pace.most_chunks)
        progress = (file.progress for file in self.files.values())
        return next_window(progress, published=self.published, size=size, unanswered=unanswered)

    def _keep(self, found: Mapping[Wanted, bytes]) -> dict[Wanted, Outcome]:
        outcomes: dict[Wanted, Outcome] = {}
        for digest, file in self.files.items():
            here = {each.number: each for each in found if each.sha256 == digest}
            if here:
                judged = file.add({number: _open(each, found[each], self.opener) for number, each in here.items()})
                outcomes.update({here[number]: outcome for number, outcome in judged.items()})
        return outcomes

    def _check(self, stall: Stall, first: Wanted) -> None:
        name = self.files[first.sha256].progress.entry.name
        if stall.corrupt >= MAX_STALL:
            raise Falsified(f"{name}: expected the chunks that were signed, got other bytes, repeatedly")
        if stall.silent >= MAX_STALL:
            raise Stalled(f"{name}: expected chunk {first.number}, got no answer", published=first.published)


def _open(wanted: Wanted, payload: bytes, opener: Opener) -> Arrival:
    data = opener.open(payload, sha256=wanted.sha256, number=wanted.number) if payload else None
    return Arrival(received=len(payload), data=data)
