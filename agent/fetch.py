"""Fetching files over MQTT: windows of explicit chunk topics, until every file is whole or nothing comes any more.

What comes is sealed: it is opened by a child (`agent.unseal`), and written once the plaintext is what was signed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.unseal import Opener
from skerry.delivery.chunks import Arrival, Outcome, Stall, Wanted, next_window
from skerry.delivery.partial import PartialFile
from skerry.delivery.vault import Vault
from skerry.errors import Broken, Rejected, Unavailable
from skerry.wire.manifest import FileEntry

MAX_STALL = 3


class Retained(Protocol):
    """Whoever can fetch retained messages; `agent.link.Link` does."""

    def fetch_retained(self, wanted: Sequence[str], *, timeout_s: float) -> dict[str, bytes]:
        """Return what is retained on the given topics, as far as it came in time."""


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
) -> Fetched:
    """Fetch the files into `folder`, going on where an earlier attempt stopped.

    `sealed` says under which SHA-256 the sealed form of each file is published, by name. With a `vault`, what is kept
    here is sealed again.

    Raises:
        Rejected: a file has no sealed form, or the opener's key is not for this device.
        Unavailable: no connection, or three windows without an answer.
        Broken: three windows in which chunks came that are not what the manifest names; or nothing can be opened here.
    """
    missing = next((entry.name for entry in entries if entry.name not in sealed), None)
    if missing is not None:
        raise Rejected(f"assignment: expected where {missing} is to be had sealed, got nothing; assign it again")
    published = {entry.sha256: sealed[entry.name] for entry in entries}
    files = {entry.sha256: PartialFile(folder, entry, vault) for entry in entries}
    stall = Stall()
    while wanted := next_window([file.progress for file in files.values()], published=published):
        if interrupted():
            return Fetched(complete=False, received=_received(files))
        found = link.fetch_retained([each.topic for each in wanted], timeout_s=timeout_s)
        stall = stall.after(_keep(files, wanted, found, opener))
        if stall.corrupt >= MAX_STALL:
            raise Broken(
                f"{_name(files, wanted[0])}: expected the chunks that were signed, got other bytes, repeatedly"
            )
        if stall.silent >= MAX_STALL:
            raise Unavailable(f"{_name(files, wanted[0])}: expected chunk {wanted[0].number}, got no answer")
    return Fetched(complete=True, received=_received(files))


def _keep(
    files: dict[str, PartialFile], wanted: Sequence[Wanted], found: dict[str, bytes], opener: Opener
) -> dict[Wanted, Outcome]:
    outcomes: dict[Wanted, Outcome] = {}
    for digest, file in files.items():
        here = {each.number: each for each in wanted if each.sha256 == digest and each.topic in found}
        if here:
            judged = file.add({number: _open(each, found[each.topic], opener) for number, each in here.items()})
            outcomes.update({here[number]: outcome for number, outcome in judged.items()})
    return outcomes


def _open(wanted: Wanted, payload: bytes, opener: Opener) -> Arrival:
    data = opener.open(payload, sha256=wanted.sha256, number=wanted.number) if payload else None
    return Arrival(received=len(payload), data=data)


def _received(files: dict[str, PartialFile]) -> int:
    return sum(file.progress.received for file in files.values())


def _name(files: dict[str, PartialFile], wanted: Wanted) -> str:
    return files[wanted.sha256].progress.entry.name
