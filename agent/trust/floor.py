"""Owns the floor: the latest moment that a verified assignment proves to have passed, for a device whose clock may lie.

Expiry is judged at `max(clock, floor)`: a clock in 1970 makes nothing that has expired look fresh again. The floor
grows only by what `agent.trust.decision` has verified in both repositories, so never beyond the expiry of the offline
targets, and never by the clock itself: a clock that was ahead leaves nothing behind.

The floor names its witness, the director's keys that signed the moment. Once the director's root names others, the
moment may have been chosen by whoever made that rotation necessary, and counts no longer (TUF specification 5.3.11
treats versions the same way). Stdlib only: the resident agent reads it too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from skerry.delivery.checked import add_sum, check_sum
from skerry.delivery.durable import write_durably
from skerry.errors import Rejected
from skerry.wire import codec

_NAME = "floor.json"


@dataclass(frozen=True, slots=True)
class Floor:
    """What `floor.json` holds: seconds since 1970, and the key ids of the director that vouched for them."""

    issued: float = 0.0
    witness: tuple[str, ...] = ()
    v: int = 1


def read_floor(folder: Path, *, witness: Sequence[str] | None = None) -> float:
    """Return the floor in seconds since 1970 kept in `folder` (a state folder's `trust`); 0 when there is none.

    With `witness` (the key ids that the director's root names now) it counts only if one of them vouched for it.
    """
    try:
        floor = codec.decode(Floor, check_sum((folder / _NAME).read_bytes()))
    except (OSError, Rejected):
        # a damaged floor is none: it guards devices whose clock is wrong as well, and must never lock one out
        return 0.0
    if witness is not None and not set(witness) & set(floor.witness):
        return 0.0
    return floor.issued


def advance(folder: Path, issued: float, *, witness: Sequence[str] = ()) -> float:
    """Raise the floor in `folder` to `issued`, durably; return the floor, which never sinks under one witness."""
    known = read_floor(folder, witness=witness)
    if issued > known:
        folder.mkdir(parents=True, exist_ok=True)
        floor = Floor(issued=issued, witness=tuple(sorted(witness)))
        write_durably(folder / _NAME, add_sum(codec.encode(floor)))
    return max(issued, known)


def parse_moment(text: str) -> float:
    """Return the seconds since 1970 of a moment as the wire writes it (`2026-01-31T12:00:00Z`); raises `Rejected`."""
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError as error:
        raise Rejected(f"issued: expected a moment like 2026-01-31T12:00:00Z, got {text[:40]!r}") from error


def show_moment(seconds: float) -> str:
    """Return a moment for people, to the minute."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, OSError, ValueError):
        return f"{seconds:.0f} s after 1970"
