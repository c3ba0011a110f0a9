"""The units of this device: the unnamed one, the agent itself, and those that the director has named.

A named component begins when a judgement names it, by its folder, and ends when the director names it no more: it
stops, and its folder goes. Only the main thread opens and closes units; the judge makes the folder, durably, so that a
component that was named is not forgotten in a power cut.
"""

import logging
import shutil
import threading
from collections.abc import Iterator, Mapping

from agent.config import Config
from agent.deployment.lifecycle import Phase
from agent.deployment.own_unit import OwnUnit
from agent.deployment.unit import ModelUnit, Shared, Unit, make_unit
from agent.fetching.rest import open_vault
from agent.identity.folder import StateFolder
from agent.local.serving_port import Reply, Rows, Served
from agent.trust.judging import held_manifests
from agent.trust.question import Held, Judgement
from skerry.delivery.durable import sync_folder
from skerry.delivery.slots import Slots
from skerry.errors import Broken, Rejected
from skerry.wire.messages import AGENT, Component

_log = logging.getLogger("skerry.agent.units")


class Units:
    """All units; and the models of all of them as one (`agent.local.serving_port.Models`)."""

    def __init__(self, shared: Shared, *, launched: str) -> None:
        self._shared = shared
        self._launched = launched
        self._lock = threading.Lock()
        self._awake = False
        # whose model has been up since this start
        self._ran: set[str] = set()
        self.main = self._watched(ModelUnit("", shared))
        self._named: dict[str, Unit] = {}
        for name in shared.folder.component_names():
            self._named[name] = self._make(name)
        shared.judge.judged = self._begin

    @property
    def own(self) -> OwnUnit | None:
        """The agent itself, once a version of it was delivered."""
        found = self._named.get(AGENT)
        return found if isinstance(found, OwnUnit) else None

    @property
    def alive(self) -> bool:
        """False when something of a unit has ended by itself."""
        return all(unit.alive for unit in self._all())

    @property
    def wants_restart(self) -> bool:
        """True when this process is to end for another version of itself, or for inputs that were missing."""
        own = self.own
        return (own is not None and own.wants_restart) or any(model.has_source_again for model in self._models())

    @property
    def beats(self) -> dict[str, int]:
        """How often each thread of a unit has turned, by name."""
        return {name: count for unit in self._all() for name, count in unit.beats.items()}

    @property
    def problem(self) -> str:
        """What is wrong with a named component, and with which; empty when nothing is."""
        return next((f"{name}: {unit.problem}" for name, unit in sorted(self._named.items()) if unit.problem), "")

    def start(self) -> None:
        """Start what was committed, then all threads."""
        if self._shared.disk.problem:
            for unit in self._all():
                unit.hold()
            return
        self._awake = True
        for unit in self._all():
            unit.wake_up()
        for unit in self._all():
            unit.start()

    def stop(self) -> None:
        """Stop all units; `join` waits for them."""
        for unit in self._all():
            unit.stop()

    def join(self) -> None:
        """Wait for the ends of all threads."""
        for unit in self._all():
            unit.join()

    def nudge(self) -> None:
        """Something changed outside: all look now instead of later."""
        for unit in self._all():
            unit.runner.nudge()

    def restart(self, name: str) -> str:
        """End what runs a component's committed model and load that anew; return the release.

        Raises:
            Rejected: no component of that name runs a model, or it is being brought up to date.
        """
        unit = self._named.get(name) if name else self.main
        if not isinstance(unit, ModelUnit):
            known = ", ".join(name for name, each in sorted(self._named.items()) if isinstance(each, ModelUnit))
            raise Rejected(f"expected a component of this device ({known or 'it has none'}), got {name!r:.80}")
        return unit.restart()

    def look(self, *, told: bool) -> None:
        """Open what the director has named, close what it names no more, and judge the version that runs.

        Raises:
            Broken: the disk refused; the next look tries that again.
        """
        self._ran |= {unit.name for unit in self._models() if unit.engine.word == "up"}
        for model in self._models():
            model.look()
        if self.own is not None:
            self.own.look(told=told, down=self._down())
        for name, unit in list(self._named.items()):
            if unit.dropped.is_set():
                self._close(name, unit)
        for name in self._shared.folder.component_names():
            if name not in self._named:
                self._open(name)

    def reported(self) -> dict[str, Component]:
        """Return what the twin says of the named components."""
        return {name: unit.reported() for name, unit in sorted(self._named.items())}

    def _all(self) -> list[Unit]:
        return [self.main, *self._named.values()]

    def _make(self, name: str) -> Unit:
        if name == AGENT:
            return OwnUnit(name, self._shared, launched=self._launched)
        return self._watched(make_unit(name, self._shared))

    def _watched(self, unit: ModelUnit) -> ModelUnit:
        """Hold it against the agent's version on trial, and not against the model, that the model never ran on it."""
        unit.excused = lambda: self.own is not None and self.own.on_trial and unit.name not in self._ran
        return unit

    def _down(self) -> str:
        """Name a committed model that has not been up since this start, and why; empty when all have."""
        for unit in self._models():
            state = unit.runner.state
            # also while another one is on its way
            between = state.phase in (Phase.TRIAL.value, Phase.ROLLING_BACK.value)
            if state.good.manifest and not between and unit.name not in self._ran:
                running = unit.engine.running
                return f"{state.good.release}: {running.worker.ended if running is not None else unit.problem}"
        return ""

    def _begin(self, judgement: Judgement) -> None:
        """Give each component that is named a folder; called by the judge, before any component hears of it."""
        # an order to wipe begins nothing
        named = [name for name in judgement.components if name and not judgement.of(name).decommission]
        if self._shared.folder.begin(named):
            self._shared.news()

    def _open(self, name: str) -> None:
        unit = self._make(name)
        with self._lock:
            self._named = {**self._named, name: unit}
        _log.info("component %s begins", name)
        if self._awake:
            unit.wake_up()
            unit.start()

    def _close(self, name: str, unit: Unit) -> None:
        unit.stop()
        unit.join()
        try:
            shutil.rmtree(unit.place.path)
            sync_folder(self._shared.folder.components)
        except OSError as error:
            raise Broken(f"{unit.place.path}: expected to remove it, got: {error.strerror}; check the disk") from error
        with self._lock:
            self._named = {each: kept for each, kept in self._named.items() if each != name}
        _log.info("component %s has ended: it is no longer assigned", name)

    # --- the port of programs on this device: `agent.local.serving_port.Models`

    def serving(self) -> tuple[Served, ...]:
        """Return what can be asked."""
        return tuple(served for unit in self._models() for served in unit.engine.serving())

    def infer(self, name: str, version: str, *, head: Mapping[str, str], body: bytes) -> Reply:
        """Answer one request of a program, by whichever unit runs the model; raises as the engine does."""
        for unit in self._models():
            running = unit.engine.running
            if running is not None and running.manifest.model == name:
                return unit.engine.infer(name, version, head=head, body=body)
        known = sorted({served.name for served in self.serving()})
        if len(known) < 2:
            return self.main.engine.infer(name, version, head=head, body=body)
        raise Rejected(f"expected one of the models {', '.join(known)}, got {name[:80]!r}")

    def observe(self, manifest: str, rows: Rows) -> bool:
        """Count what a program has seen that runs a committed model itself; False where none is that."""
        return any(unit.engine.observe(manifest, rows) for unit in self._models())

    def crashed(self, manifest: str, *, reason: str) -> None:
        """Hear that a program died inside a model."""
        for unit in self._models():
            unit.engine.crashed(manifest, reason=reason)

    def _models(self) -> list[ModelUnit]:
        return [unit for unit in self._all() if isinstance(unit, ModelUnit)]


def held_here(folder: StateFolder, config: Config) -> Iterator[Held]:
    """Name the manifests in all slots of a device; whichever thread judges, with a vault of its own."""
    vault = open_vault(config.rest_key_file)
    try:
        for name in ("", *folder.component_names()):
            place = folder.component(name)
            if (place.slots / "pointer.json").exists():
                yield from held_manifests(Slots(place.slots, None if name == AGENT else vault))
    finally:
        if vault is not None:
            vault.close()
