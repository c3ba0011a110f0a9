"""A device that is switched on, in this process: the launcher, and whichever version of the agent it starts.

The launcher is the agent's own, and so is `agent run`; in place of the daemon, with its threads, stands a `Device` of
the same parts, and `live` does with it what a daemon would. A bad version of the agent ends by a signal at once.
"""

import contextlib
import io
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import agent.__main__ as program
from agent.config import Config
from agent.deployment.lifecycle import settled
from agent.deployment.unit import ModelUnit, Shared, Unit
from agent.deployment.units import Units, held_here
from agent.fetching.desired import DesiredFile
from agent.identity.folder import StateFolder
from agent.identity.leaving import begin_to_leave
from agent.telling.outbox import OutboxFile
from agent.telling.reporter import Versions
from agent.trust.assignment import Mailbox
from agent.trust.judging import Judge
from agent.upkeep import launcher
from agent.upkeep.disk import Disk
from tests.power.stand_ins import standing_in
from tests.power.world import Assigned, Shelf, World

TURNS = 600
MOST_STARTS = 30
CONFIG = Config(fetch_timeout_s=0.1, retry_s=1e-9, retry_most_s=1e-9)


class Device:
    """What one process of the agent is made of, in the daemon's order, without its threads."""

    def __init__(self, folder: StateFolder, config: Config, *, launched: str, shelf: Shelf) -> None:
        self.folder = folder
        self.shelf = shelf
        self.launched = launched
        self.leaving = False
        self.version = Versions(folder.starts()).next()
        self.desired = DesiredFile(folder.path)
        self.outbox = OutboxFile(folder.outbox_file, quota_bytes=config.quota_bytes)
        self._mailbox = Mailbox(folder.path)
        judge = Judge(
            folder=folder, config=config, link=shelf, held=lambda: held_here(folder, config), token=lambda: ""
        )
        shared = Shared(
            folder=folder,
            identity=folder.identity(),
            config=config,
            link=shelf,
            outbox=self.outbox,
            mailbox=self._mailbox,
            judge=judge,
            turn=threading.Lock(),
            news=lambda: None,
            disk=Disk(folder.path),
            make_pace=lambda: None,  # type: ignore[arg-type, return-value] # nothing is waited for
        )
        self.units = Units(shared, launched=launched)
        self.units.main.decisions.decommissioned = self._leave
        for unit in self.all_units().values():
            unit.wake_up()

    def all_units(self) -> dict[str, Unit]:
        """Return the units by name."""
        return {unit.name: unit for unit in self.units._all()}

    @property
    def wants_restart(self) -> bool:
        """True when another version of the agent is to run."""
        return self.units.own is not None and self.units.own.wants_restart

    def runs(self, name: str) -> str:
        """Return the manifest of what runs of a component; empty for nothing."""
        unit = self.all_units()[name]
        if not isinstance(unit, ModelUnit):
            return self.launched
        return unit.engine.running.digest if unit.engine.running is not None else ""

    def settle(self, turns: int) -> bool:
        """Let it work until there is nothing to do, or it ends; False when there still is."""
        known = self.all_units()
        for _ in range(turns):
            busy = False
            for unit in known.values():
                busy |= unit.runner.turn(unit._in_turn())
            self.units.look(told=self.shelf.online)
            before, known = known, self.all_units()
            for name in known.keys() - before.keys():
                known[name].wake_up()
            if self.leaving or self.wants_restart:
                return True
            if not busy and known.keys() == before.keys() and all(_rests(unit) for unit in known.values()):
                return True
        return False

    def go_online(self, assigned: Assigned | None) -> bool:
        """Hear the newest assignment, and do what it says."""
        self.shelf.online = True
        if assigned is not None:
            self._mailbox.offer(assigned.payload)
        self.units.nudge()
        return self.settle(TURNS)

    def _leave(self) -> None:
        begin_to_leave(self.folder.path)
        self.leaving = True


def _rests(unit: Unit) -> bool:
    return settled(unit.runner.state) and not unit.effects.pending()


Live = Callable[[Device], None]
"""Lives the life of one process; where that asks for a restart, the next one goes on."""


class Machine:
    """The machine of a device in `path`; `said` is what it wrote, and `on_start` hears of each start of a version."""

    def __init__(self, path: Path, world: World, *, on_start: Callable[[str], None] = lambda _: None) -> None:
        self._path = path
        self._world = world
        self._on_start = on_start
        self._bad = {each.manifest for each in world.assigned if each.bad}
        self.shelf = Shelf(world)
        self.said = io.StringIO()

    def run(self, live: Live) -> int:
        """Switch it on, and return the exit status with which the launcher ended."""
        said = contextlib.redirect_stderr(self.said), contextlib.redirect_stdout(self.said)
        with standing_in(self._world), self._standing_in(live), said[0], said[1]:
            for _ in range(MOST_STARTS):
                with contextlib.suppress(_Replaced):
                    return launcher.main(["run", "--state", str(self._path)])
        raise AssertionError(
            f"expected the launcher to come to an end, got {MOST_STARTS} starts: {self.said.getvalue()}"
        )

    @contextlib.contextmanager
    def _standing_in(self, live: Live) -> Iterator[None]:
        class Daemon:
            """Lives by `live`."""

            identity = SimpleNamespace(who="watch.watch-1", profile="gateway")

            def __init__(self, folder: StateFolder, config: Config, *, launched: str, **_: object) -> None:
                self._device = Device(folder, config, launched=launched, shelf=shelf)

            def run(self, _stop: threading.Event) -> int:
                with closing(self._device.outbox):
                    live(self._device)
                return launcher.RESTART if self._device.wants_restart else 0

        shelf = self.shelf
        quiet: dict[str, Any] = {"log_to_stderr": lambda **_: None, "signal": _but(signal, signal=lambda *_: None)}
        with ExitStack() as stack:
            for module in (launcher, program):
                stack.enter_context(patch.multiple(module, **quiet))
            stack.enter_context(patch.object(launcher, "os", _but(vars(launcher)["os"], execv=_replace)))
            stack.enter_context(patch.object(launcher, "time", SimpleNamespace(sleep=lambda _: None)))
            stack.enter_context(patch.object(launcher, "subprocess", _but(subprocess, Popen=self._start)))
            stack.enter_context(patch.object(program, "read_config", lambda *_: CONFIG))
            stack.enter_context(patch("agent.daemon.Daemon", Daemon))
            yield

    def _start(self, command: Sequence[str], *, env: Mapping[str, str]) -> SimpleNamespace:
        """Be the child that is a version of the agent."""

        def wait() -> int:
            manifest = env[launcher.MANIFEST_VARIABLE]
            self._on_start(manifest)
            if manifest in self._bad:
                return -signal.SIGSEGV
            with patch.dict(os.environ, {launcher.MANIFEST_VARIABLE: manifest}):
                return program.main(command[command.index("run") :])

        return SimpleNamespace(wait=wait, poll=lambda: 0)


class _Replaced(Exception):
    """The process became another program: the launcher, from its beginning."""


def _replace(*_: object) -> None:
    raise _Replaced


def _but(module: Any, **replaced: object) -> SimpleNamespace:
    return SimpleNamespace(**{**vars(module), **replaced})
