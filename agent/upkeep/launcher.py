"""The program that starts the agent: the version in the active slot of the component `agent`, or the one installed.

    skerry-agent run     no version was ever delivered: the installed one, in this very process
                         else: the active one, as a child whose end is looked at

A version on trial is counted a start before it is started, durably, and one that was committed when its end was seen;
it says itself when it is well (`note_healthy`). One that ended three times before that is given up: the pointer goes
back to the last good version, or to the installed one, which is always there. So an agent that cannot even begin to
roll itself back does not take the device with it. On a disk that refuses nothing can be counted: a version that was
committed runs on, and for one that was not, the installed one does.

Standard library alone, and as little of it as can be: this stays in memory beside the agent, and runs whatever version
is installed, which may be much older than what it starts.
"""

import argparse
import errno
import fcntl
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from agent.upkeep.logs import TEXT, log_to_stderr
from agent.upkeep.wheels import BadWheel, is_whole, make_environment, python_of

RESTART = 86
"""The exit status of an agent that asks for another start: the pointer names another version now."""
MANIFEST_VARIABLE = "SKERRY_AGENT_MANIFEST"
"""Names, to the agent that was started, the manifest of the version that it is; unset for the installed one."""
INSTALLED = ""
"""Names no manifest: the installed version runs, whatever the pointer names."""
DEFAULT_STATE = Path("skerry-agent")
MAX_STARTS = 3
PAUSE_S = 1.0
_REJECTED = 2
_BROKEN = 4
# what a disk says that takes no writes
_REFUSED = (errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_log = logging.getLogger("skerry.agent.launcher")


class Parser(argparse.ArgumentParser):
    """Asks how wide the terminal is for help alone; by default that is each argument's business, and loads `shutil`."""

    def __init__(self, **given: Any) -> None:
        width = None if {"-h", "--help"} & {*sys.argv} else 78
        super().__init__(formatter_class=lambda prog: argparse.HelpFormatter(prog, width=width), **given)


@dataclass(frozen=True, slots=True)
class Home:
    """The folder of the component `agent` in a state folder."""

    folder: Path

    @property
    def pointer_file(self) -> Path:
        """What `skerry.delivery.slots` keeps."""
        return self.folder / "slots" / "pointer.json"

    @property
    def launch_file(self) -> Path:
        """How often the active version was started, and why others were given up."""
        return self.folder / "launch.json"

    def slot(self, name: str) -> Path:
        """Return the folder of slot "a" or "b"."""
        return self.folder / "slots" / name

    def environment(self, name: str) -> Path:
        """Return where the wheels of a slot are unpacked."""
        return self.folder / "environments" / name


def home_of(state: Path) -> Home:
    """Return the home of the component in a state folder."""
    return Home(state / "components" / "agent")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `skerry-agent`: `run` by way of the launcher, every other verb as it is."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["run"] and os.environ.get(MANIFEST_VARIABLE) == INSTALLED:
        return _stand_in(arguments)
    if arguments[:1] != ["run"] or MANIFEST_VARIABLE in os.environ or "-h" in arguments or "--help" in arguments:
        return _program(arguments)
    parser = Parser(add_help=False)
    parser.add_argument("--state", type=Path, default=DEFAULT_STATE)
    parser.add_argument("--log-format", default=TEXT)
    options = parser.parse_known_args(arguments[1:])[0]
    state = options.state
    if not _active(home_of(state)):
        status = _program(arguments)
        if status != RESTART:
            return status
        # a version was activated: from here on it is watched from outside, by a process that has nothing else in memory
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 -- this very program, by the same Python
    log_to_stderr(verbose=False, form=options.log_format, environment=os.environ)
    return _launch(state, arguments)


def _stand_in(arguments: Sequence[str]) -> int:
    """Run the installed version while the disk refuses to count the start of another one; then begin anew."""
    status = _program(arguments)
    if status == RESTART:
        del os.environ[MANIFEST_VARIABLE]
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 -- as above
    return status


def _launch(state: Path, arguments: Sequence[str]) -> int:
    home = home_of(state)
    try:
        with _alone(state, "launcher.lock"):
            return _Launch(home, state, arguments).run()
    except _NotAloneError as error:
        print(f"skerry-agent: {error}", file=sys.stderr)
        return _BROKEN
    except FileNotFoundError:
        # no launcher has ever run here, and on a disk that refuses none can begin
        os.environ[MANIFEST_VARIABLE] = INSTALLED
        return _stand_in(arguments)


class _NotAloneError(Exception):
    """Another agent lives in the state folder."""


class _Launch:
    """Starts versions until one ends for good; signals go to whichever runs."""

    def __init__(self, home: Home, state: Path, arguments: Sequence[str]) -> None:
        self._home = home
        self._state = state
        self._arguments = list(arguments)
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping = False

    def run(self) -> int:
        """Return the exit status of the last one."""
        for number in _SIGNALS:
            signal.signal(number, self._pass_on)
        try:
            while True:
                status = self._turn()
                if status is not None:
                    return status
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            _log.error("agent: expected to write to %s, got: %s; the installed version runs", self._home.folder, error)
            os.environ[MANIFEST_VARIABLE] = INSTALLED
            os.execv(sys.executable, sys.orig_argv)  # noqa: S606

    def _turn(self) -> int | None:
        """Run one version to its end; return the exit status, or None where another is to be started."""
        name = _active(self._home)
        if not name:
            # the installed version, as a process that never had another one
            os.execv(sys.executable, sys.orig_argv)  # noqa: S606
        before = _kept(self._home)
        status = self._start(name)
        if self._stopping or status == 0:
            # it ended because somebody wanted it to, which says nothing about it; a device that left has no home
            if self._home.folder.is_dir():
                with suppress(OSError):
                    _keep(self._home, {**_kept(self._home), "starts": before.get("starts", 0)})
            return status
        if status == RESTART and (_active(self._home) != name or _is_good(self._home, name)):
            return None
        if status == _REJECTED and _is_good(self._home, name):
            # it ran before: what it refuses is its configuration, and that is for whoever wrote it
            return status
        self._after_failure(name, status)
        return None

    def _start(self, name: str) -> int:
        """Run the version in a slot to its end."""
        manifest = str(_pointer(self._home)[name].get("manifest", ""))
        starts = _starts(self._home, manifest)
        if not _is_good(self._home, name):
            # the power may go because of what it does; of one that was committed nobody believes that
            _count(self._home, manifest, starts + 1)
        try:
            python = _prepare(self._home, name, manifest, anew=starts > 0)
        except (BadWheel, OSError, ValueError) as error:
            _log.error("agent: expected the version in slot %s to be whole, got: %s", name, error)
            return _BROKEN
        with _alone(self._state, "lock"):
            # whoever holds it now is not ours: that is no fault of the version
            pass
        environment = {
            key: value
            for key, value in os.environ.items()
            # what lies beneath is in the environment already, behind it; the watchdog hears from the child, not us
            if key not in ("PYTHONPATH", "PYTHONHOME", "WATCHDOG_PID")
        }
        environment[MANIFEST_VARIABLE] = manifest
        command = [str(python), "-P", "-m", "agent", *self._arguments]
        if self._told_to_stop():
            return 0
        self._child = subprocess.Popen(command, env=environment)
        if self._told_to_stop():
            # while it was being started, and nobody was there to pass it on to
            self._child.terminate()
        return self._child.wait()

    def _told_to_stop(self) -> bool:
        return self._stopping

    def _after_failure(self, name: str, status: int) -> None:
        manifest = str(_pointer(self._home)[name].get("manifest", ""))
        starts = _starts(self._home, manifest)
        if _is_good(self._home, name):
            starts += 1
            _count(self._home, manifest, starts)
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        if starts < MAX_STARTS:
            _log.warning("agent: the version in slot %s ended by %s; starting it again", name, how)
            time.sleep(PAUSE_S)
            return
        reason = f"expected the agent to run, got {starts} ends before it was well, the last by {how}"
        _log.error("agent: %s; going back", reason)
        _give_up(self._home, name, reason)

    def _pass_on(self, number: int, _frame: object) -> None:
        self._stopping = True
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)


def note_healthy(home: Home, manifest: str) -> None:
    """Note durably that a version runs well: its starts are counted from nothing again."""
    kept = _kept(home)
    if kept.get("manifest") == manifest and kept.get("starts"):
        _keep(home, {**kept, "starts": 0})


def given_up(home: Home, manifest: str) -> str:
    """Return why the launcher gave a version up; empty when it did not."""
    found = _kept(home).get("given_up", {})
    return str(found.get(manifest, "")) if isinstance(found, dict) else ""


def forget_given_up(home: Home, manifest: str) -> None:
    """Let a version be tried that was given up before: it was assigned anew."""
    kept = _kept(home)
    if manifest in kept.get("given_up", {}):
        _keep(home, {**kept, "given_up": {}, "starts": 0})


def _prepare(home: Home, name: str, manifest: str, *, anew: bool) -> Path:
    """Return the Python of a slot's environment, made again where it is not what was signed, or might be at fault."""
    slot = home.slot(name)
    described = (slot / "manifest.json").read_bytes()
    if hashlib.sha256(described).hexdigest() != manifest:
        raise ValueError("other bytes in manifest.json than were signed")
    wheels = []
    for entry in json.loads(described)["files"]:
        file = slot / str(entry["name"])
        with file.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != entry["sha256"]:
                raise ValueError(f"other bytes in {file.name} than were signed")
        wheels.append(file)
    environment = home.environment(name)
    if anew or not is_whole(wheels, environment):
        make_environment(wheels, environment)
    return python_of(environment)


def _active(home: Home) -> str:
    """Return the slot that is to run; empty for the installed version."""
    pointer = _pointer(home)
    name = pointer.get("active", "")
    return name if name in ("a", "b") and isinstance(pointer.get(name), dict) else ""


def _pointer(home: Home) -> dict[str, Any]:
    try:
        found = json.loads(home.pointer_file.read_bytes())
    except (OSError, ValueError):
        # none yet; or damaged, and then the installed version is who can say so
        return {}
    return found if isinstance(found, dict) else {}


def _give_up(home: Home, name: str, reason: str) -> None:
    """Point at the last good version, or at none, which stands for the installed one; and keep why."""
    pointer, kept = _pointer(home), _kept(home)
    # of what is written here (`skerry.delivery.checked`)
    pointer.pop("sum", None)
    manifest = str(pointer[name].get("manifest", ""))
    _keep(home, {**kept, "starts": 0, "given_up": {manifest: reason}})
    pointer[name] = {**pointer[name], "mark": "bad"}
    other = "b" if name == "a" else "a"
    slot = pointer.get(other, {})
    fit = slot.get("mark") == "good" and not slot.get("revoked")
    _write(home.pointer_file, {**pointer, "active": other if fit else ""})


def _is_good(home: Home, name: str) -> bool:
    return bool(_pointer(home)[name].get("mark") == "good")


def _starts(home: Home, manifest: str) -> int:
    kept = _kept(home)
    return int(kept.get("starts", 0)) if kept.get("manifest") == manifest else 0


def _count(home: Home, manifest: str, starts: int) -> None:
    _keep(home, {**_kept(home), "manifest": manifest, "starts": starts})


def _kept(home: Home) -> dict[str, Any]:
    try:
        found = json.loads(home.launch_file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _keep(home: Home, kept: dict[str, Any]) -> None:
    _write(home.launch_file, kept)


def _write(path: Path, tree: dict[str, Any]) -> None:
    # as `skerry.delivery.durable` does, which is not imported: this file stands alone
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _alone(state: Path, name: str) -> IO[bytes]:
    """Hold a lock of the state folder; raises `_NotAloneError` when another process has it."""
    file: IO[bytes]
    try:
        file = (state / name).open("ab")
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        # a file is locked, whoever may write it
        file = (state / name).open("rb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise _NotAloneError(
            f"{state}: expected to be the only agent here, got another one running; stop it"
        ) from error
    return file


def _program(arguments: Sequence[str]) -> int:
    from agent.__main__ import main as program

    return program(arguments)


if __name__ == "__main__":
    sys.exit(main())
