"""The effects of the lifecycle, on this device: its disk, its broker, its runtime. Each may be performed again.

They say what happened as an event, or raise by who must act: `Rejected` (the artifact is bad), `Unavailable` (try again
later), `Broken` (this machine; counted). Nothing here decides what comes next.
"""

import logging
import shutil
from collections.abc import Callable, Mapping
from typing import Protocol

from agent.config import Config
from agent.deployment.decisions import Decisions
from agent.deployment.fit import check_budget, check_fit, check_room
from agent.deployment.lifecycle import Effect, Event, Good, Grant, Kind, State
from agent.deployment.second_build import Bench, Build, measure_both
from agent.fetching.delivery import Delivery, Key, manifest_entry
from agent.fetching.fetch import Retained
from agent.identity.folder import Identity, StateFolder
from agent.inference.loading import Loader
from agent.inference.probing import Measured, probe_model
from agent.inference.supervisor import Running
from agent.inference.trial import Terms as TrialTerms
from agent.inference.trial import grace_left
from agent.trust.assignment import Inbox, Mailbox
from agent.trust.judging import Judge, held_manifests
from skerry.delivery.slots import NAMES, Mark, Pointer, Slots
from skerry.errors import Broken, Rejected, SkerryError
from skerry.wire.evidence import SignedEvidence
from skerry.wire.manifest import Manifest

_log = logging.getLogger("skerry.agent.effects")


class Loop(Protocol):
    """Whoever runs a loaded artifact: the engine; a bench while one is installed from a file."""

    @property
    def running(self) -> Running | None:
        """What runs now."""

    @property
    def trial_latency_us(self) -> int:
        """The median latency that the last trial measured."""

    def switch(self, running: Running | None, *, trial: TrialTerms | None = None) -> None:
        """Run something else, or nothing; with `trial`, until a decision was heard."""

    def roll_back(self, digest: str) -> bool:
        """Give up what is on trial, if this manifest is up beside it; False when it is to be opened anew."""

    def commit(self) -> None:
        """End the trial."""


class DeviceEffects:
    """What the runner of a component with a model can do on this device; alone, it has a mailbox and a judge itself."""

    def __init__(
        self,
        *,
        folder: StateFolder,
        identity: Identity,
        config: Config,
        link: Retained,
        engine: Loop,
        slots: Slots,
        component: str = "",
        mailbox: Mailbox | None = None,
        judge: Judge | None = None,
    ) -> None:
        self._folder = folder
        place = folder.component(component)
        self._identity = identity
        self._config = config
        self._link = link
        self._engine = engine
        self._slots = slots
        key = Key(who=identity.who, file=folder.credentials.key)
        self.delivery = Delivery(place.fetch, key=key, config=config, link=link, slots=slots)
        self.delivery.interrupted = self._is_interrupted
        self._vault = slots.vault
        self._place = place
        self._budget = config.budget(component)
        self.judge = judge or Judge(
            folder=folder,
            config=config,
            link=link,
            held=lambda: held_manifests(slots),
            # it is given later
            token=lambda: self.token(),  # noqa: PLW0108
        )
        self._inbox = Inbox(place.path, mailbox or Mailbox(folder.path))
        self.decisions = Decisions(component, inbox=self._inbox, judge=self.judge.decide, slots=slots)
        self._other = place.other
        self.loader = Loader(slots, rest_key_file=config.rest_key_file)
        # before the engine takes a batch of very many rows for a hang
        self.loader.batch_s = config.infer_timeout_s / 2
        self._prepared: Running | None = None
        self._measured: dict[str, float] = {}
        self.interrupted: Callable[[], bool] = lambda: False
        self.testify: Callable[[SignedEvidence], None] = lambda _: None
        self.token: Callable[[], str] = lambda: ""

    # --- assignments

    def offer(self, payload: bytes) -> bool:
        """Keep an assignment that arrived; False when it is known."""
        return self._inbox.offer(payload)

    def pending(self) -> bool:
        """True while an assignment waits for a decision."""
        return self.decisions.pending()

    @property
    def problem(self) -> str:
        """Why the last assignment was refused, or else what is wrong with what runs; empty when nothing is."""
        if self.decisions.refusal or not self._slots.active:
            return self.decisions.refusal
        slot = self._slots.pointer.slot(self._slots.active)
        return f"{slot.release} runs and was revoked; it runs on until another is assigned" if slot.revoked else ""

    @property
    def pointer(self) -> Pointer:
        """What the slots hold."""
        return self._slots.pointer

    def measured(self) -> dict[str, float]:
        """What the fetch, the golden replay and the trial measured."""
        trial = {"trial_latency_p50_us": float(self._engine.trial_latency_us)}
        return {**self.delivery.measured(), **self._measured, **trial}

    def decide(self, state: State) -> Event | None:
        """Decide on the pending assignment: an event for the lifecycle, or None when it changes nothing."""
        try:
            return self.decisions.decide(state)
        finally:
            self._rest()

    def decided(self) -> None:
        """Note that what was judged last needs no further decision."""
        self.decisions.decided()

    def _is_interrupted(self) -> bool:
        return self.interrupted()

    # --- the lifecycle

    def perform(self, effect: Effect, state: State) -> Event | None:
        """Do what the phase asks for."""
        try:
            return self._perform(effect, state)
        finally:
            self._rest()

    def _rest(self) -> None:
        """End the process that holds the rest key, until the next effect."""
        if self._vault is not None:
            self._vault.close()

    def _perform(self, effect: Effect, state: State) -> Event | None:
        if effect is Effect.CLEAN:
            self._clean()
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
        """Fetch the manifest, one chunk, and see whether it fits this device."""
        if grant.manifest == state.good.manifest and self._slots.active:
            return Event(Kind.PRESENT)
        fetched = self.delivery.fetch_manifest(grant)
        if fetched is None:
            return Event(Kind.UNAVAILABLE)
        manifest = self.delivery.manifest(grant)
        check_fit(manifest, grant, here=self._identity, committed=self._committed(state))
        check_budget(manifest, self._place.slots, self._slots.active, budget=self._budget)
        check_room(manifest, self._folder.path, spare_bytes=self._config.quota_bytes)
        return Event(Kind.DESCRIBED, received=fetched)

    def _fetch(self, _state: State, grant: Grant) -> Event:
        received = self.delivery.fetch([manifest_entry(grant), *self.delivery.manifest(grant).files], grant)
        return Event(Kind.UNAVAILABLE) if received is None else Event(Kind.FETCHED, received=received)

    def _stage(self, _state: State, grant: Grant) -> Event:
        self.delivery.stage(grant)
        return Event(Kind.STAGED)

    def _probe(self, _state: State, grant: Grant) -> Event:
        """Load the model for the first time, in a child with limits, and replay the golden vectors there."""
        name, manifest = self._staged(grant)
        try:
            given = self.loader.given(name, manifest, golden=True)
            ran = probe_model(given, manifest, start=self.loader.start)
        except Rejected as error:
            self._measure_both(name, manifest, grant, error)
            raise
        self._measure_both(name, manifest, grant, ran)
        self._measured = {
            "replay_latency_p50_us": float(ran.latency_p50_us),
            "peak_rss_bytes": float(ran.peak_rss_bytes),
        }
        return Event(Kind.LOADED)

    def _measure_both(self, name: str, manifest: Manifest, grant: Grant, ran: Measured | Rejected) -> None:
        """Measure the other build of the profile as well where the director asks for it; never a reason to stop."""
        if not grant.measure:
            return
        config = self._config
        bench = Bench(
            folder=self._other,
            link=self._link,
            identity=self._identity,
            key=self._folder.credentials.key,
            timeout_s=config.fetch_timeout_s,
            room_bytes=config.quota_bytes,
            interrupted=self.interrupted,
            https=self.delivery.https,
        )
        try:
            model = self._slots.source(name, manifest.model_file, sha256=manifest.file(manifest.model_file).sha256)
            if isinstance(model, bytes):
                raise Broken("the slots are encrypted, and a race needs files")
            golden = self._slots.load(name, manifest.golden_file, sha256=manifest.file(manifest.golden_file).sha256)
            build = Build(manifest, model, golden)
            self.testify(measure_both(bench, grant, build, ran))
        except (Broken, Rejected, OSError) as error:
            _log.warning("the evidence of the two builds is lost: %s", error)

    def _replay(self, _state: State, grant: Grant) -> Event:
        """Open the model beside the one that runs, and replay the golden vectors once more; that worker goes live."""
        name, manifest = self._staged(grant)
        self.close()
        self._prepared = self.loader.open_replayed(name, manifest)
        return Event(Kind.REPLAYED)

    def _activate(self, state: State, grant: Grant) -> None:
        name = self._slots.activate()
        running = self._prepared
        if running is None or running.digest != grant.manifest:
            self.close()
            running = self.loader.open(name, self._slots.read(name))
        self._prepared = None
        terms = TrialTerms(
            inferences=grant.trial_inferences,
            latency_budget_ms=running.manifest.latency_budget_ms,
            grace_s=grace_left(grant.grace_s, lived_s=state.lived_s, has_good=state.good.manifest != ""),
            memory_budget_bytes=self._budget.least_memory(running.manifest.memory_budget_bytes),
        )
        self._engine.switch(running, trial=terms)

    def _commit(self, _state: State, _grant: Grant) -> None:
        self._slots.commit()
        self._engine.commit()
        self._clean()

    def _roll_back(self, state: State) -> Event:
        slot = self._slots.roll_back(state.undo)
        self.close()
        good = Good(manifest=slot.manifest, release=slot.release, deployment=slot.deployment)
        if not self._slots.active:
            self._engine.switch(None)
            return Event(Kind.ROLLED_BACK, good=Good(), reason=self._nothing_left(state))
        try:
            manifest = self._slots.read(self._slots.active)
            if not self._engine.roll_back(slot.manifest):
                self._engine.switch(self.loader.open_good(self._slots.active, manifest))
        except Rejected as error:
            # the last good slot is damaged as well: there is nothing left to run, and the device stays reachable
            self._slots.roll_back(slot.manifest)
            self._engine.switch(None)
            return Event(Kind.ROLLED_BACK, good=Good(), reason=str(error))
        return Event(Kind.ROLLED_BACK, good=good)

    def _nothing_left(self, state: State) -> str:
        """Return why nothing runs now, where that is not plain from what went wrong."""
        slots = [self._slots.pointer.slot(name) for name in NAMES]
        revoked = [slot.release for slot in slots if slot.mark == Mark.GOOD.value and slot.revoked]
        if not revoked:
            return ""
        # whoever revoked it knows of something worse than a device that says nothing for a while
        left = f"{', '.join(revoked)} was revoked: nothing runs until another is assigned"
        return f"{state.reason}; {left}" if state.reason else left

    def _clean(self) -> None:
        self.delivery.clean()
        shutil.rmtree(self._other, ignore_errors=True)

    def run_last_good(self) -> Event | None:
        """Start what was committed when the agent starts; an event when it can no longer be trusted."""
        active = self._slots.active
        if not active:
            return None
        try:
            self._engine.switch(self.loader.open_good(active, self._slots.read(active)))
        except Rejected as error:
            return Event(Kind.CORRUPTED, reason=str(error))
        finally:
            self._rest()
        return None

    def run_known_good(self, *, but: str) -> None:
        """Start what is known to be good and change nothing, on a disk that refuses; the manifest `but` was given up.

        What runs in the end is said by the engine; why it is not the active slot, by the log.
        """
        active, pointer = self._slots.active, self._slots.pointer
        if not active:
            return
        for name in (active, *(name for name in NAMES if name != active)):
            slot = pointer.slot(name)
            # what ran and was revoked runs on, until another is assigned; nothing goes back to it
            good = slot.mark == Mark.GOOD.value if name == active else slot.fit
            if not good or slot.manifest == but:
                continue
            try:
                self._engine.switch(self.loader.open_good(name, self._slots.read(name)))
            except SkerryError as error:
                _log.error("%s", error)
            else:
                return
            finally:
                self._rest()

    # --- what they share

    def _staged(self, grant: Grant) -> tuple[str, Manifest]:
        name = next((each for each in ("a", "b") if self._slots.pointer.slot(each).manifest == grant.manifest), "")
        if not name:
            raise Rejected("slots: expected the artifact that was staged, got none")
        return name, self._slots.read(name)

    def close(self) -> None:
        """End the worker that was to go live and did not."""
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            prepared.worker.close()

    @property
    def has_other(self) -> bool:
        """True when there is another slot that ran, was committed and may run again."""
        return any(self._slots.pointer.slot(name).fit for name in NAMES if name != self._slots.active)

    def _committed(self, state: State) -> Manifest | None:
        running = self._engine.running
        return running.manifest if running is not None and running.digest == state.good.manifest else None
