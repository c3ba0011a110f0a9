"""A unit: all that belongs to one lifecycle on this device, constructible as often as there are components.

    unit = ModelUnit("lamps", shared)       # runner, effects, slots and engine, in STATE/components/lamps
    unit.wake_up(); unit.start(); ...; unit.stop(); unit.join()

The unnamed component lies where a device's one model always has, in the state folder itself; the component `agent` has
no engine, for it is this program. All units share the mail, the judge, the link and the outbox (`Shared`), and what
takes the network or a lot of memory is done by one of them at a time.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from agent.config import Config
from agent.deployment.decisions import Decisions
from agent.deployment.effects import DeviceEffects
from agent.deployment.lifecycle import Event, Kind, Phase, settled
from agent.deployment.runner import Runner
from agent.deployment.turns import InTurn
from agent.fetching.delivery import Delivery
from agent.fetching.fetch import Chunks, Retained
from agent.fetching.pace import OwnersPace
from agent.fetching.rest import open_vault
from agent.identity.folder import Identity, StateFolder
from agent.inference.engine import Engine
from agent.inference.feeds import open_source
from agent.inference.trial import Decision, Life
from agent.telling.outbox import OutboxFile
from agent.trust.assignment import Mailbox
from agent.trust.judging import Judge
from agent.upkeep.disk import Disk
from agent.upkeep.own_update import OwnEffects
from skerry.delivery.slots import Slots
from skerry.errors import Broken, Rejected, SkerryError
from skerry.wire import codec
from skerry.wire.evidence import SignedEvidence
from skerry.wire.messages import Component, DeploymentEvent

_log = logging.getLogger("skerry.agent.unit")


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """What all units of a device have in common; `turn` is held by the one that fetches, judges or probes.

    `news` wakes the main thread up, `make_pace` makes what keeps a fetch to the owner's wishes.
    """

    folder: StateFolder
    identity: Identity
    config: Config
    link: Retained
    outbox: OutboxFile
    mailbox: Mailbox
    judge: Judge
    turn: threading.Lock
    news: Callable[[], None]
    make_pace: Callable[[], OwnersPace]
    disk: Disk
    https: Chunks | None = None


class Unit:
    """A component: its runner on a thread of its own, its effects, and what they are about."""

    def __init__(self, name: str, shared: Shared) -> None:
        self.name = name
        self._shared = shared
        config = shared.config
        self.place = shared.folder.component(name)
        self.runner = Runner(
            self.place.lifecycle_file, announce=self._announce, retry_s=config.retry_s, retry_most_s=config.retry_most_s
        )
        self._thread = threading.Thread(target=self._update, name=f"updater {name}".strip(), daemon=True)
        self._ended = threading.Event()
        # the director names this component no more
        self.dropped = threading.Event()

    @property
    def effects(self) -> "DeviceEffects | OwnEffects":
        """What its runner can do."""
        raise NotImplementedError

    @property
    def decisions(self) -> Decisions:
        """What it makes of assignments."""
        return self.effects.decisions

    @property
    def delivery(self) -> Delivery:
        """How it comes by files."""
        return self.effects.delivery

    @property
    def alive(self) -> bool:
        """False when something of it has ended by itself."""
        return not self._ended.is_set()

    @property
    def problem(self) -> str:
        """What is wrong, in words; empty when nothing is."""
        return self.decisions.refusal or self.runner.state.reason

    @property
    def beats(self) -> dict[str, int]:
        """How often each of its threads has turned, by name."""
        return {f"updater {self.name}".strip(): self.runner.beats} if self._thread.is_alive() else {}

    def wake_up(self) -> None:
        """Go on where the last run stopped."""
        self.runner.wake_up(self._in_turn())

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def hold(self) -> None:
        """Run what is good, instead of `wake_up` and `start`: on a disk that refuses, no lifecycle can move."""

    def stop(self) -> None:
        """End what it is doing."""
        self.runner.stop()

    def join(self) -> None:
        """Wait for the end of its thread."""
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def reported(self) -> Component:
        """Return what the twin says of it."""
        state, delivery = self.runner.state, self.delivery
        return Component(
            state=state.phase,
            release=state.good.release,
            manifest=state.good.manifest,
            deployment=state.grant.deployment if state.grant else "",
            last_error=self.problem,
            progress=round(delivery.progress, 3),
            received=delivery.received,
            stalled=delivery.stalled,
        )

    def _set_up(self, delivery: Delivery) -> None:
        """Give a delivery what it shares with the others, and an ear for what interrupts it."""
        delivery.pace = self._shared.make_pace()
        delivery.https = self._shared.https
        self.decisions.dropped = self._drop

    def _drop(self) -> None:
        self.dropped.set()
        self._shared.news()

    def _in_turn(self) -> InTurn:
        return InTurn(self.effects, self.runner, self._shared.turn)

    def _update(self) -> None:
        """Move the lifecycle; should that end by itself, the agent ends too, and its supervisor starts it anew."""
        try:
            self.runner.run(self._in_turn())
        except SkerryError as error:
            _log.error("%s", error)
        finally:
            self._ended.set()
            self._shared.news()

    def _announce(self, event: DeploymentEvent) -> None:
        body = codec.encode(replace(event, component=self.name))
        self._shared.outbox.put("deployment", body, event_time=self.event_time)
        self._shared.news()

    @property
    def event_time(self) -> float:
        """The event clock, in seconds since 1970."""
        return time.time()


class ModelUnit(Unit):
    """A component that runs a model."""

    def __init__(self, name: str, shared: Shared) -> None:
        super().__init__(name, shared)
        config = shared.config
        if name:
            config = replace(config, source=config.sources.get(name, ""), replay="")
        self._wanted = config
        # why what its inputs come from is not there: programs may ask it all the same
        self.missing = ""
        source, recording = None, None
        try:
            source, recording = open_source(config)
        except Broken as error:
            self.missing = str(error)
            _log.error("%s", error)
        self.source = source
        self._life = Life()
        self._told: tuple[Kind, str, str] | None = None
        self.engine = Engine(
            config=config,
            source=source,
            outbox=shared.outbox,
            on_decision=self._trial_ended,
            on_trouble=self._befallen,
            on_window=shared.news,
        )
        self._effects = DeviceEffects(
            folder=shared.folder,
            identity=shared.identity,
            config=config,
            link=shared.link,
            engine=self.engine,
            slots=Slots(self.place.slots, open_vault(config.rest_key_file)),
            component=name,
            mailbox=shared.mailbox,
            judge=shared.judge,
        )
        self._effects.loader.recording = recording
        self._effects.testify = self._testify
        self._effects.interrupted = lambda: self.runner.interrupts(self._effects)
        # whether it is the fault of the agent's version, and not of the model, that the model does not run
        self.excused: Callable[[], bool] = lambda: False
        self._set_up(self._effects.delivery)

    @property
    def effects(self) -> DeviceEffects:
        """What its runner can do."""
        return self._effects

    @property
    def alive(self) -> bool:
        """False when its updater or its engine has ended by itself."""
        return super().alive and self.engine.alive

    @property
    def has_source_again(self) -> bool:
        """True when what its inputs come from was missing, and is there now."""
        if not self.missing:
            return False
        with suppress(SkerryError):
            open_source(self._wanted)
            return True
        return False

    @property
    def asking_problem(self) -> str:
        """What is wrong with what is asked of the model, or with its inputs."""
        source = self.source.problem if self.source else self.missing
        return self.engine.problem or self.engine.source_problem or source or self.engine.unkept

    @property
    def problem(self) -> str:
        """What is wrong, in words; empty when nothing is."""
        return self.asking_problem or self.effects.problem or self.runner.state.reason

    @property
    def beats(self) -> dict[str, int]:
        """How often each of its threads has turned, by name."""
        return {**super().beats, f"engine {self.name}".strip(): self.engine.beats}

    @property
    def event_time(self) -> float:
        """The event clock, in seconds since 1970."""
        return self.engine.event_time

    def wake_up(self) -> None:
        """Start what was committed, and go on where the last run stopped."""
        damage = None
        if self.runner.state.phase not in (Phase.TRIAL.value, Phase.ROLLING_BACK.value):
            damage = self.effects.run_last_good()
        super().wake_up()
        if damage is not None and self.excused():
            _log.error("component %s: %s", self.name or "of the model", damage.reason)
        elif damage is not None:
            self.runner.tell(damage)

    def start(self) -> None:
        """Begin to infer, and to work."""
        self.engine.start()
        super().start()

    def hold(self) -> None:
        """Run the last good artifact, whatever is under way; one that was being given up is not."""
        self.effects.run_known_good(but=self.runner.state.undo)
        self.engine.start()

    def stop(self) -> None:
        """End the inference under way and everything else."""
        super().stop()
        self.engine.stop()
        self.effects.close()

    def reported(self) -> Component:
        """Return what the twin says of it."""
        return replace(super().reported(), inferences=self.engine.inferences, runs=self.runs)

    @property
    def runs(self) -> str:
        """How the model does, in a word: up, restarting, none, or down (none although one was committed)."""
        word = self.engine.word
        return "down" if word == "none" and self.runner.state.good.manifest else word

    def restart(self) -> str:
        """End what runs the committed model and load that anew; the open window goes on. Return the release."""
        state = self.runner.state
        if not settled(state):
            raise Rejected(f"expected no deployment under way, got one that is {state.phase}; ask again later")
        if not state.good.manifest:
            raise Rejected("expected a committed model, got none")
        self.engine.restart()
        return state.good.release

    def _testify(self, evidence: SignedEvidence) -> None:
        self._shared.outbox.put("evidence", codec.encode(evidence), event_time=self.event_time)
        self._shared.news()

    def look(self) -> None:
        """Note of a trial that it goes on, so that a device that is often switched off comes to its end, too."""
        manifest, grant = self.engine.tried, self.runner.state.grant
        lived_s = self._life.turn(manifest, time.monotonic())
        if lived_s and grant is not None and grant.manifest == manifest:
            self.runner.tell(Event(Kind.LIVED, grant=grant, lived_s=lived_s))

    def _trial_ended(self, manifest: str, decision: Decision) -> None:
        grant = self.runner.state.grant
        if grant is None or grant.manifest != manifest:
            return
        kind = Kind.PASSED if decision.passed else Kind.REFUSED
        self.runner.tell(Event(kind, grant=grant, reason=decision.reason))

    def _befallen(self, manifest: str, kind: Kind, reason: str) -> None:
        """What runs has ended by itself: a fault of a trial, or too often for what is committed."""
        state = self.runner.state
        if kind is Kind.FAULT:
            self._life.ended(manifest)
            if state.grant is not None and state.grant.manifest == manifest:
                self.runner.tell(Event(kind, grant=state.grant, reason=reason))
        elif self.excused() or state.good.manifest != manifest:
            return
        elif kind is Kind.CORRUPTED or self.effects.has_other:
            # once: each program that it ended in says so, too
            told = (kind, manifest, state.good.deployment)
            if told != self._told:
                self._told = told
                self.runner.tell(Event(kind, reason=reason, manifest=manifest))


def make_unit(name: str, shared: Shared) -> ModelUnit:
    """Return a named component; one whose source cannot be had is asked by programs alone, and says so."""
    try:
        return ModelUnit(name, shared)
    except Rejected as error:
        _log.error("component %s: %s", name, error)
        config = replace(shared.config, sources={})
        return ModelUnit(name, replace(shared, config=config))
