"""Assignments on their way to a decision: kept durably before the broker hears that they arrived, then judged.

The judging itself happens in `agent.trust_child`, which asks for every file of metadata that it needs; this module
keeps it company: it hands in what a source (`agent.metadata`) has, within bounds, and reads the verdict.
"""

import contextlib
import hashlib
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO

from agent.metadata import Bounded, Bounds, MetadataSource
from agent.question import Given, Question, Said, Status, Verdict, Wanted, read_line, write_line
from skerry.delivery.durable import write_durably
from skerry.errors import Broken, SkerryError, Unavailable

# beside what fetching may take: a small board starts an interpreter with cryptography in some ten seconds
CHILD_TIMEOUT_S = 120.0


class Inbox:
    """The last assignment that arrived, and which one was decided last; both survive a power cut.

    One thread offers and another decides, so a decision names the bytes that it is about.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "assignment.json"
        self._decided_file = folder / "assignment.decided"
        self._payload = self._file.read_bytes() if self._file.exists() else b""
        self._decided = self._decided_file.read_text() if self._decided_file.exists() else _digest(b"")

    def offer(self, payload: bytes) -> bool:
        """Keep an assignment durably; False when it is the one that is kept already, or a cleared topic."""
        if payload in (b"", self._payload):
            return False
        write_durably(self._file, payload)
        self._payload = payload
        return True

    def pending(self) -> bytes | None:
        """Return the assignment that still needs a decision."""
        payload = self._payload
        return payload if _digest(payload) != self._decided else None

    def decided(self, payload: bytes) -> None:
        """Note that `payload` needs no further decision."""
        digest = _digest(payload)
        write_durably(self._decided_file, digest.encode())
        self._decided = digest


def ask_child(question: Question, source: MetadataSource, *, bounds: Bounds | None = None) -> Verdict:
    """Let a short-lived process judge, and fetch what it asks for; raises `Broken` when it gives no verdict."""
    bounds = bounds or Bounds()
    # -P: the working folder is not searched for modules
    command = [sys.executable, "-P", "-m", "agent.trust_child"]
    with tempfile.TemporaryFile() as complaints:
        try:
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints)
        except OSError as error:
            raise Broken(f"trust: expected to start a process, got: {error.strerror}") from error
        watchdog = threading.Timer(bounds.total_s + CHILD_TIMEOUT_S, child.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            return _converse(child, question, Bounded(source, bounds))
        except (SkerryError, OSError) as error:
            child.kill()
            child.wait()
            raise Broken(f"trust: expected a verdict, got {_last_line(complaints) or error}") from error
        finally:
            watchdog.cancel()
            # ends it where it still waits for us
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            child.wait()


def _converse(child: "subprocess.Popen[bytes]", question: Question, source: Bounded) -> Verdict:
    assert child.stdin is not None  # noqa: S101 -- both are pipes
    assert child.stdout is not None  # noqa: S101
    write_line(child.stdin, question)
    while True:
        said = read_line(child.stdout, Said)
        if said.verdict is not None:
            return said.verdict
        if said.wanted is None:
            raise Broken("a line that asks for nothing")
        given, data = _give(source, said.wanted)
        write_line(child.stdin, given, data)


def _give(source: Bounded, wanted: Wanted) -> tuple[Given, bytes]:
    try:
        data = source.fetch(wanted.repository, wanted.name, limit=wanted.limit)
    except Unavailable as error:
        return Given(Status.UNAVAILABLE.value, reason=str(error)), b""
    if data is None:
        return Given(Status.MISSING.value), b""
    return Given(Status.FOUND.value, length=len(data)), data


def _last_line(complaints: IO[bytes]) -> str:
    complaints.seek(0)
    lines = complaints.read(1 << 16).decode(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else ""


def _digest(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()
