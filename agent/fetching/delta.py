"""The resident side of a delta: a child with limits (`agent.fetching.delta_child`) makes the file, here every chunk is
judged.

What the child makes comes through a pipe and is kept like chunks from a network: a chunk that is not the one that the
manifest names is never written. So neither a damaged delta nor a bug of the codec can put wrong bytes into a slot.

Where the slots are sealed, the child is given the source in memory (a memfd), never in a file; sources above
`MAX_SOURCE_IN_MEMORY_BYTES` are left alone then, and the file is fetched packed or whole.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from skerry.delivery.partial import PartialFile
from skerry.errors import Rejected
from skerry.runtimes.confined import PASSED_ON
from skerry.wire.manifest import CHUNK_BYTES

MAX_DELTA_BYTES = 64 << 20
MAX_SOURCE_IN_MEMORY_BYTES = 64 << 20
NO_SOURCE = Path(os.devnull)
# a small board makes some hundred kilobytes a second
_LEAST_S, _BYTES_PER_S = 60.0, 50_000
# what a delta may say that it needs (`skerry.delivery.delta`, not imported: it needs NumPy), and as much again for what
# allocators map in passing
_MEMORY_BYTES = 2 * (64 << 20)


def make_from_delta(delta: PartialFile, source: Path | Iterable[bytes], target: PartialFile) -> None:
    """Fill `target` by applying the delta that was fetched to `source`: a file, or its pieces where it is sealed.

    Raises:
        Rejected: it did not make the target, whatever the reason: fetch it in another form.
        Broken: the disk refused.
    """
    length = delta.progress.entry.length
    wall_s = _LEAST_S + target.progress.entry.length / _BYTES_PER_S
    with ExitStack() as stack:
        descriptors: tuple[int, ...] = ()
        if not isinstance(source, Path):
            descriptors = (stack.enter_context(_in_memory(source)),)
            source = Path(f"/proc/self/fd/{descriptors[0]}")
        given = {
            "source": str(source.absolute()),  # the child need not share our working folder
            "length": length,
            "target_length": target.progress.entry.length,
            "memory_bytes": _MEMORY_BYTES,
            "cpu_s": int(wall_s),
        }
        child = stack.enter_context(_child(descriptors, wall_s))
        try:
            _feed(child, json.dumps(given).encode() + b"\n", delta)
            target.make(_read(child))
        except Rejected as error:
            raise Rejected(_reason(child) or str(error)) from error


@contextlib.contextmanager
def _in_memory(pieces: Iterable[bytes]) -> Iterator[int]:
    descriptor = os.memfd_create("source")
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.writelines(pieces)
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _child(descriptors: tuple[int, ...], wall_s: float) -> Iterator["subprocess.Popen[bytes]"]:
    """Run the child, and end it with the block or when its time is up."""
    # -P: the working folder is not searched for modules
    command = [sys.executable, "-P", "-m", "agent.fetching.delta_child"]
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    pipe = subprocess.PIPE
    try:
        child = subprocess.Popen(
            command,
            env={**passed, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            pass_fds=descriptors,
        )
    except OSError as error:
        raise Rejected(f"delta: expected a process to apply it, got: {error.strerror}") from error
    watchdog = threading.Timer(wall_s, child.kill)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield child
    finally:
        watchdog.cancel()
        child.kill()
        for each in (child.stdin, child.stdout, child.stderr):
            if each is not None:
                with contextlib.suppress(OSError):
                    each.close()
        child.wait()


def _feed(child: "subprocess.Popen[bytes]", line: bytes, delta: PartialFile) -> None:
    assert child.stdin is not None  # noqa: S101 -- it is a pipe
    # a child that has ended already says why, and that it made nothing
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(line)
        for piece in delta.pieces():
            child.stdin.write(piece)
        child.stdin.close()


def _read(child: "subprocess.Popen[bytes]") -> Iterator[bytes]:
    assert child.stdout is not None  # noqa: S101 -- it is a pipe
    while piece := child.stdout.read(CHUNK_BYTES):
        yield piece


def _reason(child: "subprocess.Popen[bytes]") -> str:
    """Return what the child said at last, where it ended by itself."""
    assert child.stderr is not None  # noqa: S101 -- it is a pipe
    child.kill()
    lines = child.stderr.read(1 << 16).decode(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else ""
