"""Owns what tells a file that the disk has spoilt from a sound one: a checksum in it, or a second copy beside it.

A checksum is for JSON objects that are written again and again; it is a field more, which readers of other versions
leave out. A copy is for what exists once and nobody could make anew. Neither guards against somebody who writes here:
who may do so may do anything on this device.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skerry.delivery.durable import write_durably
from skerry.errors import Rejected

_SUM = "sum"
# what rot leaves of a text that still reads like one; a person who edits it changes more
_ROTTEN_BITS = 2


def add_sum(payload: bytes) -> bytes:
    """Return a JSON object with its checksum."""
    tree = json.loads(payload)
    return _dump({**tree, _SUM: _sum_of(tree)})


def check_sum(data: bytes) -> bytes:
    """Return a JSON object as it is; raises `Rejected` when its checksum does not hold. Older agents wrote none."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Rejected(f"expected JSON, got {data[:40]!r}") from error
    if not isinstance(tree, dict):
        raise Rejected(f"expected an object, got {data[:40]!r}")
    if _SUM in tree and tree[_SUM] != _sum_of(tree):
        raise Rejected("expected what its checksum says, got other bytes")
    return data


def copy_of(path: Path) -> Path:
    """Return where the second copy of a file lies."""
    return path.with_name(f"{path.name}.copy")


def write_copy(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Keep `data` as the second copy of the file `path`, durably; raises as `write_durably`."""
    write_durably(copy_of(path), hashlib.sha256(data).hexdigest().encode() + b"\n" + data, mode=mode)


def read_copy(path: Path) -> bytes | None:
    """Return the second copy of a file if it is whole."""
    try:
        digest, _, data = copy_of(path).read_bytes().partition(b"\n")
    except OSError:
        return None
    return data if digest == hashlib.sha256(data).hexdigest().encode() else None


def read_either(path: Path, *, is_sound: Callable[[bytes], bool]) -> bytes | None:
    """Return what a file with a second copy holds: the file's own bytes, unless the disk has spoilt them.

    Without a whole copy they are returned however they are; None when there is nothing at all.
    """
    try:
        first = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return read_copy(path)
    copy = read_copy(path)
    if copy is None or (is_sound(first) and not _rotten(first, copy)):
        return first
    return copy


def _rotten(data: bytes, copy: bytes) -> bool:
    if len(data) != len(copy):
        return False
    bits = int.from_bytes(data) ^ int.from_bytes(copy)
    return 0 < bits.bit_count() <= _ROTTEN_BITS


def _sum_of(tree: dict[str, Any]) -> str:
    return hashlib.sha256(_dump({name: value for name, value in tree.items() if name != _SUM})).hexdigest()


def _dump(tree: dict[str, Any]) -> bytes:
    # as `skerry.wire.codec` does; half of a surrogate pair, which only rot makes, is no reason to fail
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(errors="surrogatepass")
