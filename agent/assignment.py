"""Assignments on their way to a decision: kept durably before the broker hears that they arrived, then judged.

The judging itself happens in `agent.trust_child`; this module gathers what it needs (the image repository's metadata
from the broker, the director's from the assignment) into a spool folder and reads its verdict.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.fetch import Retained
from skerry.delivery.durable import write_durably
from skerry.errors import Broken, Rejected, Unavailable
from skerry.wire import codec, topics
from skerry.wire.messages import Assign, Index, Terms

CHILD_TIMEOUT_S = 120.0
MAX_NEW_ROOTS = 6
DIRECTOR_ROLES = ("timestamp", "snapshot", "targets")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the child printed; the same fields as `agent.trust.Verdict`, which cannot be imported here."""

    ok: bool
    reason: str = ""
    later: bool = False
    terms: Terms | None = None
    path: str = ""
    length: int = 0
    sha256: str = ""
    measure_length: int = 0
    measure_sha256: str = ""


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


def deployment_of(payload: bytes) -> str:
    """Return the deployment that an assignment names, unverified: good for noticing a repetition, and nothing else."""
    try:
        targets = json.loads(codec.decode(Assign, payload).metadata["targets"])["signed"]["targets"]
        return str(next(iter(targets.values()))["custom"]["deployment"])
    except (Rejected, ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return ""


def gather(
    link: Retained, payload: bytes, *, project: str, spool: Path, trust: Path, anchor_root: str, timeout_s: float
) -> None:
    """Fill the spool folder with the metadata that a decision needs.

    Raises:
        Rejected: the assignment cannot be read.
        Unavailable: the broker did not hand out the image repository's index.
    """
    assign = codec.decode(Assign, payload)
    shutil.rmtree(spool, ignore_errors=True)
    for part in ("image", "director"):
        (spool / part).mkdir(parents=True)
    for role, text in assign.metadata.items():
        version, dot, name = role.rpartition(".")
        # a role becomes a file name, so only these pass
        if role in DIRECTOR_ROLES or (dot and name == "root" and version.isdecimal()):
            (spool / "director" / f"{role}.json").write_text(text)

    index = _index(link, project, timeout_s=timeout_s)
    trusted = _trusted_root(trust / "image" / "root.json", anchor_root)
    roots = range(trusted + 1, min(index.root, trusted + MAX_NEW_ROOTS) + 1)
    roles = ("timestamp", f"{index.snapshot}.snapshot", *(f"{number}.root" for number in roots))
    # targets last and alone: it is the one that can be long
    for wanted in (roles[:8], (f"{index.targets}.targets",)):
        names = {topics.tuf(project, role): role for role in wanted}
        found = link.fetch_retained(list(names), timeout_s=timeout_s)
        for topic, data in found.items():
            if data:  # an empty retained message is the notice that a superseded file was deleted
                (spool / "image" / f"{names[topic]}.json").write_bytes(data)


def ask_child(*, anchor: Path, trust: Path, spool: Path, device: str) -> Verdict:
    """Let a short-lived process judge the spool folder; raises `Broken` when it gives no verdict."""
    command = [
        # -P: the working folder is not searched for modules
        *(sys.executable, "-P", "-m", "agent.trust_child"),
        *("--anchor", str(anchor), "--metadata", str(trust), "--spool", str(spool), "--device", device),
    ]
    try:
        done = subprocess.run(command, capture_output=True, timeout=CHILD_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Broken(f"trust: expected a verdict, got: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise Broken(
            f"trust: expected a verdict, got exit status {done.returncode}: {lines[-1][:200] if lines else ''}"
        )
    return codec.decode(Verdict, done.stdout)


def _index(link: Retained, project: str, *, timeout_s: float) -> Index:
    topic = topics.tuf(project, "index")
    found = link.fetch_retained([topic], timeout_s=timeout_s)
    if topic not in found:
        raise Unavailable("image repository: expected its index on the broker, got no answer")
    try:
        return codec.decode(Index, found[topic])
    except Rejected as error:
        # it is not signed: what it says wrong is no reason to refuse what the director signed
        raise Unavailable(f"image repository: {error}") from error


def _trusted_root(path: Path, anchor_root: str) -> int:
    """Return the version of the root that is trusted now: our own file, or the anchor's."""
    text = path.read_text() if path.exists() else anchor_root
    try:
        tree: Any = json.loads(text)
        return int(tree["signed"]["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise Broken(f"{path}: expected a TUF root, got something else; enrol again") from error


def _digest(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()
