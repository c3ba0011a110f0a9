"""The unit that is this program: its version is tried, restarts the agent, and is judged by what runs on it."""

import threading
import time

from agent.deployment.decisions import Decisions
from agent.deployment.lifecycle import Phase, settled
from agent.deployment.unit import Shared, Unit
from agent.fetching.delivery import Delivery, Key
from agent.inference.trial import WELL_S
from agent.trust.assignment import Inbox
from agent.upkeep.own_update import OwnEffects
from skerry.delivery.slots import Slots


class OwnUnit(Unit):
    """The component that is this program; `launched` is the manifest of the version that runs, empty if installed."""

    def __init__(self, name: str, shared: Shared, *, launched: str) -> None:
        super().__init__(name, shared)
        self._restart = threading.Event()
        self._began = time.monotonic()
        self._is_well = False
        # wheels are no secret, and the launcher has no key
        slots = Slots(self.place.slots)
        key = Key(who=shared.identity.who, file=shared.folder.credentials.key)
        delivery = Delivery(self.place.fetch, key=key, config=shared.config, link=shared.link, slots=slots)
        inbox = Inbox(self.place.path, shared.mailbox)
        self._effects = OwnEffects(
            home=self.place,
            state=shared.folder.path,
            identity=shared.identity,
            config=shared.config,
            delivery=delivery,
            slots=slots,
            decisions=Decisions(name, inbox=inbox, judge=shared.judge.decide, slots=slots),
            running=launched,
            restart=self._ask_for_restart,
        )
        delivery.interrupted = lambda: self.runner.interrupts(self._effects)
        self._set_up(delivery)

    @property
    def effects(self) -> OwnEffects:
        """What its runner can do."""
        return self._effects

    def wake_up(self) -> None:
        """Go on where the last run stopped, which may have been another version's."""
        super().wake_up()
        if settled(self.runner.state):
            event = self.effects.given_up(self.runner.state)
            if event is not None:
                self.runner.tell(event)

    @property
    def wants_restart(self) -> bool:
        """True when this process is to end for another version, and what led to it is on the disk."""
        return self._restart.is_set() and self.runner.state.phase != Phase.ROLLING_BACK.value

    @property
    def on_trial(self) -> bool:
        """True while the version that runs is tried, or given up."""
        return self.runner.state.phase in (Phase.TRIAL.value, Phase.ROLLING_BACK.value)

    def look(self, *, told: bool, down: str) -> None:
        """Judge the version that runs: `told`, it has reached the control plane; `down`, why a model never ran on
        it."""
        ended = self.effects.tried(told=told, down=down)
        if ended is not None:
            self.runner.tell(ended)
        if not self._is_well and time.monotonic() - self._began >= WELL_S:
            self._is_well = True
            self.effects.well()

    def _ask_for_restart(self) -> None:
        self._restart.set()
        self._shared.news()
