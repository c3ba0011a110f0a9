"""The effects of the lifecycle, on this device: its disk, its broker, its runtime. Each may be performed again.

They say what happened as an event, or raise by who must act: `Rejected` (the artifact is bad), `Unavailable` (try again
later), `Broken` (this machine; counted). Nothing here decides what comes next.
"""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from agent.assignment import Inbox
from agent.config import Config
from agent.delivery import Delivery, Key, manifest_entry
from agent.engine import Running
from agent.fetch import Retained
from agent.fit import check_fit, check_room
from agent.golden import compare, golden_vectors, replay_in_child
from agent.identity import Identity, StateFolder
from agent.judging import judge_assignment
from agent.lifecycle import MAX_ATTEMPTS, Effect, Event, Good, Grant, Kind, Phase, State, settled
from agent.observe import Observer, read_seen
from agent.question import Verdict
from agent.second_build import Bench, Build, measure_both
from agent.trial import Terms as TrialTerms
from skerry.delivery.slots import NAMES, Mark, Slots
from skerry.errors import Broken, Rejected, Unavailable
from skerry.runtimes import Ran, open_session
from skerry.wire.evidence import SignedEvidence
from skerry.wire.manifest import CHUNK_BYTES, Manifest

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

    def commit(self) -> None:
        """End the trial."""


class DeviceEffects:
    """What the runner can do on this device."""

    def __init__(
        self, *, folder: StateFolder, identity: Identity, config: Config, link: Retained, engine: Loop, slots: Slots
    ) -> None:
        self._folder = folder
        self._identity = identity
        self._config = config
        self._link = link
        self._engine = engine
        self._slots = slots
        key = Key(who=identity.who, file=folder.credentials.key)
        self.delivery = Delivery(folder.fetch, key=key, config=config, link=link, slots=slots)
        self.delivery.interrupted = self._is_interrupted
        self._vault = slots.vault
        self._inbox = Inbox(folder.path)
        self._anchor = folder.anchor()
        self._other = folder.path / "other"
        self._denials = 0
        self._leaving = False
        self._prepared: Running | None = None
        self._measured: dict[str, float] = {}
        self._refusal = ""
        self.interrupted: Callable[[], bool] = lambda: False
        self.testify: Callable[[SignedEvidence], None] = lambda _: None
        self.clock: Callable[[], float] = time.time
        self.token: Callable[[], str] = lambda: ""
        self.decommissioned: Callable[[], None] = lambda: None

    # --- assignments

    def offer(self, payload: bytes) -> bool:
        """Keep an assignment that arrived; False when it is known."""
        return self._inbox.offer(payload)

    def pending(self) -> bool:
        """True while an assignment waits for a decision."""
        # one that ends this device is never noted as decided: should the power go before the end, it is decided again
        return self._inbox.pending() is not None and not self._leaving

    @property
    def problem(self) -> str:
        """Why the last assignment was refused, or else what is wrong with what runs; empty when nothing is."""
        if self._refusal or not self._slots.active:
            return self._refusal
        slot = self._slots.pointer.slot(self._slots.active)
        return f"{slot.release} runs and was revoked; it runs on until another is assigned" if slot.revoked else ""

    def measured(self) -> dict[str, float]:
        """What the fetch, the golden replay and the trial measured."""
        trial = {"trial_latency_p50_us": float(self._engine.trial_latency_us)}
        return {**self.delivery.measured(), **self._measured, **trial}

    def decide(self, state: State) -> Event | None:
        """Judge the pending assignment: an event for the lifecycle, or None when it changes nothing."""
        payload = self._inbox.pending()
        if payload is None:
            return None
        try:
            verdict = judge_assignment(
                payload,
                anchor=self._anchor,
                folder=self._folder,
                identity=self._identity,
                config=self._config,
                link=self._link,
                slots=self._slots,
                clock=self.clock(),
                token=self.token,
            )
        except Broken as error:
            self._refusal = str(error)
            raise
        finally:
            self._rest()
        self._slots.note_standing(revoked=verdict.revoked, listed=verdict.listed)
        self._refusal = verdict.reason
        if verdict.later:
            raise Unavailable(verdict.reason)
        if verdict.terms is None:
            # not signed by the director, or not for this device: there is no deployment to report to
            _log.warning("assignment refused: %s", verdict.reason)
            self._inbox.decided(payload)
            return None
        if verdict.decommission:
            self._leaving = True
            self.decommissioned()
            return None

        current = state.following or state.grant
        repeated = current is not None and verdict.terms.deployment == current.deployment
        if verdict.ok:
            self._denials = 0
            self._inbox.decided(payload)
            # signed anew before it expired: the floor and the standing of the slots are all that it brings
            grant = _grant(verdict)
            return None if repeated and not _sealed_anew(state, grant) else Event(Kind.ASSIGN, grant=grant)
        # director and broker are two roads: the image repository's newest metadata may be a moment behind
        self._denials += 1
        if self._denials < MAX_ATTEMPTS:
            raise Unavailable(verdict.reason)
        self._denials = 0
        self._inbox.decided(payload)
        if repeated and settled(state):
            _log.warning("assignment refused: %s", verdict.reason)
            return None
        return Event(Kind.DENY, grant=_grant(verdict), reason=verdict.reason)

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
        if not 0 < grant.length <= CHUNK_BYTES:
            raise Rejected(f"manifest: expected 1 to {CHUNK_BYTES} bytes, got {grant.length}")
        fetched = self.delivery.fetch([manifest_entry(grant)], grant)
        if fetched is None:
            return Event(Kind.UNAVAILABLE)
        manifest = self.delivery.manifest(grant)
        check_fit(manifest, grant, here=self._identity, committed=self._committed(state))
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
            inputs, expected = self._golden(name, manifest)
            ran = replay_in_child(self._model(name, manifest), manifest, inputs, expected)
        except Rejected as error:
            self._measure_both(name, manifest, grant, error)
            raise
        self._measure_both(name, manifest, grant, ran)
        self._measured = {
            "replay_latency_p50_us": float(ran.latency_p50_us),
            "peak_rss_bytes": float(ran.peak_rss_bytes),
        }
        return Event(Kind.LOADED)

    def _measure_both(self, name: str, manifest: Manifest, grant: Grant, ran: Ran | Rejected) -> None:
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
            model = self._model(name, manifest)
            if isinstance(model, bytes):
                raise Broken("the slots are encrypted, and a race needs files")
            golden = self._slots.load(name, manifest.golden_file, sha256=manifest.file(manifest.golden_file).sha256)
            build = Build(manifest, model, golden)
            self.testify(measure_both(bench, grant, build, ran))
        except (Broken, Rejected, OSError) as error:
            _log.warning("the evidence of the two builds is lost: %s", error)

    def _replay(self, _state: State, grant: Grant) -> Event:
        """Open the model in this process, beside the one that runs, and replay the golden vectors once more."""
        name, manifest = self._staged(grant)
        running = self._open(name, manifest, grant.manifest)
        inputs, expected = self._golden(name, manifest)
        observer = Observer(manifest, digest=grant.manifest, number=0)
        for row in range(len(next(iter(inputs.values())))):
            given = {key: values[row : row + 1] for key, values in inputs.items()}
            outputs = running.session.run(given)
            compare(outputs, {key: values[row : row + 1] for key, values in expected.items()}, manifest.tolerances)
            observer.add(read_seen(manifest, {**given, **outputs}), truth=None, latency_us=0, event_time=0)
        # what goes live begins afresh: a streaming model has the golden rows in its state by now
        self._prepared = self._open(name, manifest, grant.manifest)
        return Event(Kind.REPLAYED)

    def _activate(self, _state: State, grant: Grant) -> None:
        name = self._slots.activate()
        running = self._prepared
        if running is None or running.digest != grant.manifest:
            running = self._open(name, self._slots.read(name), grant.manifest)
        self._prepared = None
        terms = TrialTerms(
            inferences=grant.trial_inferences,
            latency_budget_ms=running.manifest.latency_budget_ms,
            grace_s=grant.grace_s,
        )
        self._engine.switch(running, trial=terms)

    def _commit(self, _state: State, _grant: Grant) -> None:
        self._slots.commit()
        self._engine.commit()
        self._clean()

    def _roll_back(self, state: State) -> Event:
        slot = self._slots.roll_back(state.undo)
        self._prepared = None
        good = Good(manifest=slot.manifest, release=slot.release, deployment=slot.deployment)
        if not self._slots.active:
            self._engine.switch(None)
            return Event(Kind.ROLLED_BACK, good=Good(), reason=self._nothing_left(state))
        try:
            manifest = self._slots.read(self._slots.active)
            self._engine.switch(self._open(self._slots.active, manifest, slot.manifest))
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
        digest = self._slots.pointer.slot(active).manifest
        try:
            self._engine.switch(self._open(active, self._slots.read(active), digest))
        except Rejected as error:
            return Event(Kind.CORRUPTED, reason=str(error))
        finally:
            self._rest()
        return None

    # --- what they share

    def _staged(self, grant: Grant) -> tuple[str, Manifest]:
        name = next((each for each in ("a", "b") if self._slots.pointer.slot(each).manifest == grant.manifest), "")
        if not name:
            raise Rejected("slots: expected the artifact that was staged, got none")
        return name, self._slots.read(name)

    def _open(self, name: str, manifest: Manifest, digest: str) -> Running:
        session = open_session(manifest.runtime, self._model(name, manifest))
        return Running(session=session, manifest=manifest, digest=digest)

    def _model(self, name: str, manifest: Manifest) -> Path | bytes:
        return self._slots.source(name, manifest.model_file, sha256=manifest.file(manifest.model_file).sha256)

    def golden_inputs(self, running: Running) -> dict[str, Any]:
        """Return the golden inputs by name, rows first, of what runs from the active slot."""
        return self._golden(self._slots.active, running.manifest)[0]

    def _golden(self, name: str, manifest: Manifest) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the golden inputs and outputs by name, rows first."""
        data = self._slots.load(name, manifest.golden_file, sha256=manifest.file(manifest.golden_file).sha256)
        return golden_vectors(data, manifest)

    def _committed(self, state: State) -> Manifest | None:
        running = self._engine.running
        return running.manifest if running is not None and running.digest == state.good.manifest else None


def _sealed_anew(state: State, grant: Grant) -> bool:
    """True when what is being fetched is to be had under other names: the server has lost the form it had sealed."""
    fetching = state.phase in (Phase.ASSIGNED.value, Phase.FETCHING.value)
    sealed = state.grant.content if state.grant is not None else None
    return fetching and sealed is not None and grant.content is not None and grant.content.files != sealed.files


def _grant(verdict: Verdict) -> Grant:
    assert verdict.terms is not None  # noqa: S101 -- callers have looked
    terms = verdict.terms
    return Grant(
        deployment=terms.deployment,
        release=terms.release,
        path=verdict.path,
        length=verdict.length,
        manifest=verdict.sha256,
        rollback=terms.rollback,
        grace_s=terms.grace_s,
        trial_inferences=terms.trial_inferences,
        measure=terms.measure,
        measure_length=verdict.measure_length,
        measure_sha256=verdict.measure_sha256,
        content=terms.content,
        measure_content=terms.measure_content,
    )
