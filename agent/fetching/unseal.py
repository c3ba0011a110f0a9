"""The resident side of opening and sealing chunks: a child (`agent.fetching.unseal_child`), started when there is a
chunk.

One chunk is in the child at a time, so both need memory for a chunk and not for a file.
"""

import contextlib
import json
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from skerry.errors import Broken, Rejected
from skerry.wire.manifest import SEALED_CHUNK_BYTES

ANSWER_S = 30.0
# the same as in `agent.fetching.unseal_child`, which cannot be imported here: it imports `cryptography`
_HEAD = struct.Struct(">B64sII")
_TAIL = struct.Struct(">BI")
_OPENED, _REFUSED = range(2)
OPEN, SEAL = range(2)


class Opener(Protocol):
    """Whoever can open chunks; a fake in tests."""

    def open(self, sealed: bytes, *, sha256: str, number: int) -> bytes | None:
        """Return what was sealed as chunk `number` of the file with this SHA-256; None when that is not it."""


class Chunks:
    """The child and its key; it starts when it is first asked, and again after `close`."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self._given = dict(given)
        self._child: subprocess.Popen[bytes] | None = None
        self._key_id = ""

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()

    @property
    def key_id(self) -> str:
        """What tells the key from another one, and nothing more about it; raises as `ask` does."""
        if not self._key_id:
            self._start()
        return self._key_id

    def ask(self, what: int, data: bytes, *, sha256: str, number: int) -> bytes | None:
        """Return the chunk opened or sealed, or None when it does not open.

        Raises:
            Rejected: the key is not for this device, or is none: no chunk will ever open.
            Broken: the child does not run, or a key cannot be read.
        """
        child = self._child or self._start()
        done, body = _ask(child, _HEAD.pack(what, sha256.encode(), number, len(data)) + data)
        return body if done == _OPENED else None

    def _start(self) -> subprocess.Popen[bytes]:
        # -P: the working folder is not searched for modules
        command = [sys.executable, "-P", "-m", "agent.fetching.unseal_child"]
        pipe = subprocess.PIPE
        try:
            self._child = subprocess.Popen(command, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe)
        except OSError as error:
            raise Broken(f"chunks: expected a process to open them, got: {error.strerror}") from error
        what, body = _ask(self._child, json.dumps(self._given).encode() + b"\n")
        if what == _REFUSED:
            raise Rejected(body.decode(errors="replace"))
        if what != _OPENED:
            raise Broken(body.decode(errors="replace"))
        self._key_id = body.decode()
        return self._child


class Unsealer:
    """Opens the chunks of one artifact; the child ends with the `with` block."""

    def __init__(self, content_key: str, *, who: str, key_file: Path) -> None:
        # absolute: the child need not share our working folder
        self._chunks = Chunks({"key": content_key, "who": who, "key_file": str(key_file.absolute())})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._chunks.close()

    def open(self, sealed: bytes, *, sha256: str, number: int) -> bytes | None:
        """Return the opened chunk, or None when it is not what was sealed there; raises as `Chunks.ask` does."""
        if len(sealed) > SEALED_CHUNK_BYTES:
            return None
        return self._chunks.ask(OPEN, sealed, sha256=sha256, number=number)


def _ask(child: subprocess.Popen[bytes], request: bytes) -> tuple[int, bytes]:
    assert child.stdin is not None  # noqa: S101 -- both are pipes
    assert child.stdout is not None  # noqa: S101 -- as above
    deadline = time.monotonic() + ANSWER_S
    try:
        _write(child.stdin.fileno(), request, deadline)
        what, length = _TAIL.unpack(_read(child.stdout.fileno(), _TAIL.size, deadline))
        return int(what), _read(child.stdout.fileno(), length, deadline)
    except OSError as error:
        child.kill()
        _, said = child.communicate()
        lines = said.decode(errors="replace").strip().splitlines()
        got = lines[-1][:200] if lines else str(error)
        raise Broken(f"chunks: expected an answer of the process that opens them, got: {got}") from error


def _write(descriptor: int, data: bytes, deadline: float) -> None:
    os.set_blocking(descriptor, False)
    left = memoryview(data)
    while left:
        _wait(select.select([], [descriptor], [], max(deadline - time.monotonic(), 0))[1])
        with contextlib.suppress(BlockingIOError):
            left = left[os.write(descriptor, left) :]


def _read(descriptor: int, length: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < length:
        _wait(select.select([descriptor], [], [], max(deadline - time.monotonic(), 0))[0])
        piece = os.read(descriptor, length - len(data))
        if not piece:
            raise BrokenPipeError("its end")
        data += piece
    return bytes(data)


def _wait(ready: list[int]) -> None:
    if not ready:
        raise TimeoutError(f"no answer within {ANSWER_S:g} s")
