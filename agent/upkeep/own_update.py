"""The effects of the lifecycle of the agent itself: the component `agent`, whose artifact is a set of wheels.

A version is unpacked beside the one that runs, asked in a process of its own whether it would run on this state
folder, and then started by the launcher (`agent.upkeep.launcher`) in place of this one. It is good when every committed
model has run on it and it has reached the control plane once, or has lived for the grace that its assignment grants.
What ends before that is started again and given up after the third time, by itself where it still can, and by the
launcher where it cannot.
"""

import json
import logging
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from agent.config import Config
from agent.deployment.decisions import Decisions
from agent.deployment.fit import check_budget, check_own_fit, check_room
from agent.deployment.lifecycle import Effect, Event, Good, Grant, Kind, State
from agent.fetching.delivery import Delivery, manifest_entry
from agent.identity.folder import ComponentFolder, Identity
from agent.upkeep.launcher import Home, forget_given_up, given_up, note_healthy
from agent.upkeep.wheels import BadWheel, make_environment, python_of
from skerry.delivery.slots import NAMES, Mark, Slots
from skerry.errors import Broken, Rejected
from skerry.wire.manifest import Manifest
from skerry.wire.messages import AGENT, VERSION

# it loads each committed model
CHECK_S = 300.0
# it is there when the trial begins, or is started again and again
DOWN_S = 10.0
# how much more unpacked wheels take than packed ones, generously
UNPACKED = 4
_log = logging.getLogger("skerry.agent.own_update")


class OwnEffects:
    """What the runner of the component `agent` can do; `running` is the manifest of the version that this process is.

    `restart` asks for an end of this process that the launcher takes for the wish to be started anew.
    """

    def __init__(
        self,
        *,
        home: ComponentFolder,
        state: Path,
        identity: Identity,
        config: Config,
        delivery: Delivery,
        slots: Slots,
        decisions: Decisions,
        running: str,
        restart: Callable[[], None],
    ) -> None:
        self._home = Home(home.path)
        self._state = state
        self._identity = identity
        self._spare_bytes = config.quota_bytes
        self._budget = config.budget(AGENT)
        self._slots = slots
        self._running = running
        self._restart = restart
        self._tried_since: float | None = None
        self._trial: Grant | None = None
        self.decisions = decisions
        self.delivery = delivery

    def pending(self) -> bool:
        """True while an assignment waits for a decision."""
        return self.decisions.pending()

    def decide(self, state: State) -> Event | None:
        """Decide on the pending assignment."""
        return self.decisions.decide(state)

    def decided(self) -> None:
        """Note that the assignment was decided: what came of it is durable."""
        self.decisions.decided()

    def measured(self) -> dict[str, float]:
        """What the fetch measured."""
        return self.delivery.measured()

    def tried(self, *, told: bool, down: str) -> Event | None:
        """Return how the trial of the version that runs has ended; None while it goes on, or where there is none.

        `told` says that it has reached the control plane, `down` why a committed model has never run on it.
        """
        grant, since = self._trial, self._tried_since
        if grant is None or since is None:
            return None
        lived_s = time.monotonic() - since
        if lived_s < DOWN_S if down else not told and lived_s < grant.grace_s:
            return None
        self._trial = None
        if down:
            return Event(
                Kind.REFUSED, grant=grant, reason=f"agent: expected what was committed to run on it, got {down}"
            )
        return Event(Kind.PASSED, grant=grant, reason="" if told else "the grace is over; nobody could be told")

    def well(self) -> None:
        """Note that the version that runs does what it is for."""
        if self._running:
            note_healthy(self._home, self._running)

    def given_up(self, state: State) -> Event | None:
        """Return what the launcher did to the version that was committed: it gave that up for its crashes."""
        reason = given_up(self._home, state.good.manifest) if state.good.manifest else ""
        return Event(Kind.CORRUPTED, reason=reason) if reason and self._running != state.good.manifest else None

    def perform(self, effect: Effect, state: State) -> Event | None:
        """Do what the phase asks for."""
        if effect is Effect.CLEAN:
            self.delivery.clean()
            return None
        if effect is Effect.ROLL_BACK:
            return self._roll_back(state)
        if state.grant is None or effect is Effect.NONE:
            return None
        verbs: Mapping[Effect, Callable[[State, Grant], Event | None]] = {
            Effect.DESCRIBE: self._describe,
            Effect.FETCH: self._fetch,
            Effect.STAGE: self._stage,
            Effect.PROBE: self._probe,
            Effect.REPLAY: self._replay,
            Effect.ACTIVATE: self._activate,
            Effect.COMMIT: self._commit,
        }
        return verbs[effect](state, state.grant)

    def _describe(self, state: State, grant: Grant) -> Event:
        if grant.manifest == state.good.manifest and self._slots.active:
            return Event(Kind.PRESENT)
        # it is assigned anew: what happened before counts no more
        forget_given_up(self._home, grant.manifest)
        fetched = self.delivery.fetch_manifest(grant)
        if fetched is None:
            return Event(Kind.UNAVAILABLE)
        manifest = self.delivery.manifest(grant)
        check_own_fit(manifest, grant, here=self._identity, committed=self._committed())
        check_budget(manifest, self._home.pointer_file.parent, self._slots.active, budget=self._budget)
        unpacked = UNPACKED * sum(entry.length for entry in manifest.files)
        check_room(manifest, self._state, spare_bytes=self._spare_bytes + unpacked)
        return Event(Kind.DESCRIBED, received=fetched)

    def _fetch(self, _state: State, grant: Grant) -> Event:
        received = self.delivery.fetch([manifest_entry(grant), *self.delivery.manifest(grant).files], grant)
        return Event(Kind.UNAVAILABLE) if received is None else Event(Kind.FETCHED, received=received)

    def _stage(self, _state: State, grant: Grant) -> Event:
        self.delivery.stage(grant)
        return Event(Kind.STAGED)

    def _probe(self, _state: State, grant: Grant) -> Event:
        """Unpack the version, and ask it whether it would run here."""
        name = self._staged(grant)
        manifest = self._slots.read(name)
        environment = self._home.environment(name)
        try:
            make_environment([self._slots.folder(name) / entry.name for entry in manifest.files], environment)
        except BadWheel as error:
            raise Rejected(str(error)) from error
        python = python_of(environment)
        _ask([str(python), "-P", "-m", "agent", "--version"], what="its version")
        said = json.loads(
            _ask([str(python), "-P", "-m", "agent.upkeep.self_check", str(self._state)], what="a self-check")
        )
        if environment.absolute() not in Path(str(said.get("package"))).parents:
            raise Rejected(f"agent: expected wheels that bring the agent, got one that lies in {said.get('package')}")
        if said.get("wire") != VERSION:
            raise Rejected(f"agent: expected version {VERSION} of the wire, got {said.get('wire')!r:.20}")
        return Event(Kind.LOADED)

    def _replay(self, _state: State, _grant: Grant) -> Event:
        # there is nothing to replay: what a version of the agent is worth shows when it reaches the control plane
        return Event(Kind.REPLAYED)

    def _activate(self, _state: State, grant: Grant) -> None:
        if why := given_up(self._home, grant.manifest):
            raise Rejected(why)
        self._slots.activate()
        if self._running != grant.manifest:
            self._restart()
            return
        self._tried_since = time.monotonic()
        self._trial = grant

    def _commit(self, _state: State, _grant: Grant) -> None:
        self._slots.commit()
        self.delivery.clean()

    def _roll_back(self, state: State) -> Event:
        slot = self._slots.roll_back(state.undo)
        self._trial = None
        if self._running != slot.manifest:
            # it is asked for now and happens when the new state is on the disk
            self._restart()
        good = Good(manifest=slot.manifest, release=slot.release, deployment=slot.deployment)
        return Event(Kind.ROLLED_BACK, good=good)

    def _staged(self, grant: Grant) -> str:
        for name in NAMES:
            slot = self._slots.pointer.slot(name)
            if slot.manifest == grant.manifest and slot.mark != Mark.BAD.value:
                return name
        raise Rejected("slots: expected the version that was staged, got none")

    def _committed(self) -> Manifest | None:
        name = self._slots.active
        if not name:
            return None
        try:
            return self._slots.read_manifest(name)
        except Rejected:
            return None


def _ask(command: Sequence[str], *, what: str) -> str:
    """Return what a program of the version that is to be tried says; raises `Rejected` when it does not do so."""
    # nothing of ours: the version finds all that it is in its own environment
    passed = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TMPDIR") if name in os.environ}
    try:
        done = subprocess.run(
            command, env=passed, stdin=subprocess.DEVNULL, capture_output=True, timeout=CHECK_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Rejected(f"agent: expected {what} within {CHECK_S:g} s, got none") from error
    except OSError as error:
        raise Broken(f"agent: expected to start {command[0]}, got: {error.strerror}") from error
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise Rejected(f"agent: expected {what}, got exit status {done.returncode}: {lines[-1][:300]}")
    return done.stdout.decode(errors="replace")
