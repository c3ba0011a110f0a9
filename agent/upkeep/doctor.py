"""`skerry-agent doctor`: what is wrong with this device, in plain words, and who should act. Changes nothing.

    ok    certificate  good until 2026-03-01 12:00 UTC
    fail  broker       expected mqtts://plant.example:8883 to listen, got: connection refused; check that it runs

Works while the agent runs and while it does not. All checks are made at once, each in a thread: one that hangs, on a
name server or on a dying disk, holds up no other, and after `MOST_S` is itself what was found.
"""

import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from agent.identity.folder import StateFolder
from agent.upkeep import checks, holding, reach
from agent.upkeep.checks import Check, Doubt
from skerry import __version__
from skerry.errors import Broken, Rejected, SkerryError, Unavailable

OK, WARN, FAIL = "ok", "warn", "fail"
MOST_S = 12.0
MAX_SAID = 800
EXIT_CODES = {Broken: 4, Rejected: 2, Unavailable: 3}
"""By who must act, who comes first first: with this machine's owner at work, the network may turn out to be well."""

CHECKS: Mapping[str, Check] = {
    "state": checks.state,
    "config": checks.config,
    "clock": checks.clock,
    "certificate": checks.certificate,
    "disk": checks.disk,
    "runtime": checks.runtime,
    "lifecycle": checks.lifecycle,
    "model": checks.digests,
    "outbox": holding.outbox,
    "socket": holding.local_socket,
    "broker": reach.broker,
    "server": reach.server,
}
_OF_NO_DEVICE = ("state",)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, what was found; who must act is an exit status, 0 for nobody."""

    check: str
    level: str
    said: str
    exit_status: int = 0

    def line(self, width: int) -> str:
        """Return it for people."""
        return f"{self.level:<4}  {self.check:<{width}}  {self.said}"


def diagnose(path: Path, *, table: Mapping[str, Check] = CHECKS, most_s: float = MOST_S) -> list[Finding]:
    """Make all checks on a state folder, in the order of the table."""
    try:
        folder = StateFolder(path)
        enrolled = folder.is_enrolled
    except (SkerryError, OSError) as error:
        return [_failed("state", error)]
    wanted = {name: check for name, check in table.items() if enrolled or name in _OF_NO_DEVICE}
    found: dict[str, Finding] = {}

    def make(name: str, check: Check) -> None:
        found[name] = _made(name, check, folder)

    threads = [threading.Thread(target=make, args=each, name=each[0], daemon=True) for each in wanted.items()]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + most_s
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0.0))
    # a copy: one that is late must not change what was said
    made = dict(found)
    return [made.get(name) or _failed(name, _late(name, most_s)) for name in wanted]


def exit_status(findings: Sequence[Finding]) -> int:
    """Return 0 when nothing failed, else the status of who must act first."""
    failed = {each.exit_status for each in findings if each.level == FAIL}
    return next((status for status in (*EXIT_CODES.values(), 1) if status in failed), 0)


def show(findings: Sequence[Finding]) -> str:
    """Return the findings for people."""
    width = max(len(each.check) for each in findings)
    return "\n".join(each.line(width) for each in findings)


def to_json(findings: Sequence[Finding]) -> str:
    """Return the findings for programs."""
    status = exit_status(findings)
    tree = {
        "agent": __version__,
        "ok": status == 0,
        "exit_status": status,
        "checks": [asdict(each) for each in findings],
    }
    return json.dumps(tree, indent=2)


def _made(name: str, check: Check, folder: StateFolder) -> Finding:
    try:
        said = check(folder)
    except (SkerryError, OSError) as error:
        return _failed(name, error)
    except Exception as error:  # noqa: BLE001 -- one check that fails itself must not hide the others
        return Finding(name, FAIL, f"{type(error).__name__}: {error}; please report this"[:MAX_SAID], 1)
    return Finding(name, WARN if isinstance(said, Doubt) else OK, said[:MAX_SAID])


def _failed(name: str, error: SkerryError | OSError) -> Finding:
    if isinstance(error, OSError):
        error = Broken(f"{error.filename or name}: {error.strerror or error}; check its permissions and the disk")
    status = next((status for kind, status in EXIT_CODES.items() if isinstance(error, kind)), 1)
    return Finding(name, FAIL, " ".join(str(error).split())[:MAX_SAID], status)


def _late(name: str, most_s: float) -> SkerryError:
    kind = Unavailable if name in ("broker", "server") else Broken
    return kind(f"expected this to be known within {most_s:g} s, got nothing; is the network, or the disk, that slow?")
