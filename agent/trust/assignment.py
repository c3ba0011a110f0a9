"""Assignments on their way to a decision: kept durably before the broker hears that they arrived, then judged.

The judging itself happens in `agent.trust.trust_child`, which asks for every file of metadata that it needs; this
module keeps it company: it hands in what a source (`agent.trust.metadata`) has, within bounds, and reads the judgement.
"""

import contextlib
import hashlib
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO

from agent.trust.metadata import Bounded, Bounds, MetadataSource
from agent.trust.question import Given, Judgement, Question, Said, Status, Wanted, read_line, write_line
from skerry.delivery.durable import write_durably
from skerry.errors import Broken, SkerryError, Unavailable

# beside what fetching may take: a small board starts an interpreter with cryptography in some ten seconds
CHILD_TIMEOUT_S = 120.0


class Mailbox:
    """The last assignment that arrived for the device; it survives a power cut."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "assignment.json"
        self.payload = self._file.read_bytes() if self._file.exists() else b""
        self.digest = _digest(self.payload)

    def offer(self, payload: bytes) -> bool:
        """Keep an assignment durably; False when it is the one that is kept already, or a cleared topic."""
        if payload in (b"", self.payload):
            return False
        write_durably(self._file, payload)
        self.payload, self.digest = payload, _digest(payload)
        return True


class Inbox:
    """What of the mail one component has decided on, which survives a power cut too; `folder` is the component's.

    One thread offers and another decides, so a decision names the bytes that it is about.
    """

    def __init__(self, folder: Path, mailbox: Mailbox | None = None) -> None:
        self._mailbox = mailbox or Mailbox(folder)
        self._decided_file = folder / "assignment.decided"
        there = self._decided_file.exists()
        # what the disk has spoilt is no digest of anything: it is decided once more
        self._decided = self._decided_file.read_text(errors="replace") if there else _digest(b"")

    def offer(self, payload: bytes) -> bool:
        """Keep an assignment durably; False when it is the one that is kept already, or a cleared topic."""
        return self._mailbox.offer(payload)

    def pending(self) -> bytes | None:
        """Return the assignment that still needs a decision."""
        # no assignment is none to decide on, also where the disk has lost the one that was decided
        return self._mailbox.payload or None if self._mailbox.digest != self._decided else None

    def decided(self, payload: bytes) -> None:
        """Note that `payload` needs no further decision."""
        digest = _digest(payload)
        write_durably(self._decided_file, digest.encode())
        self._decided = digest


def ask_child(question: Question, source: MetadataSource, *, bounds: Bounds | None = None) -> Judgement:
    """Let a short-lived process judge, and fetch what it asks for; raises `Broken` when it gives no verdict."""
    bounds = bounds or Bounds()
    # -P: the working folder is not searched for modules
    command = [sys.executable, "-P", "-m", "agent.trust.trust_child"]
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


def _converse(child: "subprocess.Popen[bytes]", question: Question, source: Bounded) -> Judgement:
    assert child.stdin is not None  # noqa: S101 -- both are pipes
    assert child.stdout is not None  # noqa: S101
    write_line(child.stdin, question)
    while True:
        said = read_line(child.stdout, Said)
        if said.judgement is not None:
            return said.judgement
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
