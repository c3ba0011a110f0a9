"""The effects of the lifecycle, on this device: its disk, its broker, its runtime. Each may be performed again.

They say what happened as an event, or raise by who must act: `Rejected` (the artifact is bad), `Unavailable` (try again
later), `Broken` (this machine; counted). Nothing here decides what comes next.
"""

import logging
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from agent.assignment import Inbox, Verdict, ask_child, deployment_of, gather
from agent.config import Config
from agent.engine import Engine, Running
from agent.fetch import Retained, fetch_files
from agent.golden import MAX_ARTIFACT_BYTES, compare, golden_vectors, replay_in_child
from agent.identity import Identity, StateFolder
from agent.lifecycle import MAX_ATTEMPTS, Effect, Event, Good, Grant, Kind, State
from agent.observe import Observer, read_monitor, read_seen
from agent.second_build import Bench, Build, measure_both
from agent.trial import Terms as TrialTerms
from skerry.delivery.partial import PartialFile
from skerry.delivery.slots import MANIFEST, Slots
from skerry.errors import Broken, Rejected, Unavailable
from skerry.runtimes import Ran, open_session
from skerry.wire import codec
from skerry.wire.evidence import SignedEvidence
from skerry.wire.manifest import CHUNK_BYTES, FileEntry, Manifest, other_build, target_name

_log = logging.getLogger("skerry.agent.effects")


class DeviceEffects:
    """What the runner can do on this device."""

    def __init__(
        self, *, folder: StateFolder, identity: Identity, config: Config, link: Retained, engine: Engine, slots: Slots
    ) -> None:
        self._folder = folder
        self._identity = identity
        self._config = config
        self._link = link
        self._engine = engine
        self._slots = slots
        self._inbox = Inbox(folder.path)
        self._anchor = folder.anchor()
        self._other = folder.path / "other"
        self._denials = 0
        self._prepared: Running | None = None
        self._measured: dict[str, float] = {}
        self.interrupted: Callable[[], bool] = lambda: False
        self.testify: Callable[[SignedEvidence], None] = lambda _: None
        self.problem = ""

    # --- assignments

    def offer(self, payload: bytes) -> bool:
        """Keep an assignment that arrived; False when it is known."""
        return self._inbox.offer(payload)

    def pending(self) -> bool:
        """True while an assignment waits for a decision."""
        return self._inbox.pending() is not None

    def measured(self) -> dict[str, float]:
        """What the golden replay and the trial measured."""
        return {**self._measured, "trial_latency_p50_us": float(self._engine.trial_latency_us)}

    def decide(self, state: State) -> Event | None:
        """Judge the pending assignment: an event for the lifecycle, or None when it changes nothing."""
        payload = self._inbox.pending()
        if payload is None:
            return None
        current = state.following or state.grant
        if current is not None and deployment_of(payload) == current.deployment:
            self._inbox.decided(payload)
            return None

        verdict = self._judge(payload)
        if verdict.ok and verdict.terms is not None:
            self._denials, self.problem = 0, ""
            self._inbox.decided(payload)
            return Event(Kind.ASSIGN, grant=_grant(verdict))
        self.problem = verdict.reason
        if verdict.terms is None:
            # not signed by the director, or not for this device: there is no deployment to report to
            _log.warning("assignment refused: %s", verdict.reason)
            self._inbox.decided(payload)
            return None
        # director and broker are two roads: the image repository's newest metadata may be a moment behind
        self._denials += 1
        if self._denials < MAX_ATTEMPTS:
            raise Unavailable(verdict.reason)
        self._denials = 0
        self._inbox.decided(payload)
        return Event(Kind.DENY, grant=_grant(verdict), reason=verdict.reason)

    def _judge(self, payload: bytes) -> Verdict:
        folder = self._folder
        try:
            gather(
                self._link,
                payload,
                project=self._identity.project,
                spool=folder.spool,
                trust=folder.trust,
                anchor_root=self._anchor.image_root,
                timeout_s=self._config.fetch_timeout_s,
            )
        except Rejected as error:
            return Verdict(ok=False, reason=str(error))
        verdict = ask_child(
            anchor=folder.anchor_file, trust=folder.trust, spool=folder.spool, device=self._identity.device
        )
        if verdict.later:
            raise Unavailable(verdict.reason)
        return verdict

    # --- the lifecycle

    def perform(self, effect: Effect, state: State) -> Event | None:
        """Do what the phase asks for."""
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
        if grant.length > CHUNK_BYTES:
            raise Rejected(f"manifest: expected at most {CHUNK_BYTES} bytes, got {grant.length}")
        entry = _manifest_entry(grant)
        fetched = self._fetch_files([entry])
        if fetched is None:
            return Event(Kind.UNAVAILABLE)
        manifest = self._read_manifest(grant)
        self._check_fit(manifest, state, grant)
        self._check_room(manifest)
        return Event(Kind.DESCRIBED, received=fetched)

    def _fetch(self, _state: State, grant: Grant) -> Event:
        manifest = self._read_manifest(grant)
        received = self._fetch_files([_manifest_entry(grant), *manifest.files])
        return Event(Kind.UNAVAILABLE) if received is None else Event(Kind.FETCHED, received=received)

    def _stage(self, _state: State, grant: Grant) -> Event:
        manifest = self._read_manifest(grant)
        entries = [_manifest_entry(grant), *manifest.files]
        files = {entry.name: PartialFile(self._folder.fetch, entry).finish() for entry in entries}
        self._slots.stage(files, release=grant.release, deployment=grant.deployment)
        return Event(Kind.STAGED)

    def _probe(self, _state: State, grant: Grant) -> Event:
        """Load the model for the first time, in a child with limits, and replay the golden vectors there."""
        name, manifest = self._staged(grant)
        try:
            inputs, expected = self._golden(name, manifest)
            ran = replay_in_child(self._slots.folder(name) / manifest.model_file, manifest, inputs, expected)
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
        slot, config = self._slots.folder(name), self._config
        bench = Bench(
            folder=self._other,
            link=self._link,
            identity=self._identity,
            key=self._folder.credentials.key,
            timeout_s=config.fetch_timeout_s,
            room_bytes=config.quota_bytes,
            interrupted=self.interrupted,
        )
        try:
            build = Build(manifest, slot / manifest.model_file, (slot / manifest.golden_file).read_bytes())
            self.testify(measure_both(bench, grant, build, ran))
        except (Broken, OSError) as error:
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
            return Event(Kind.ROLLED_BACK, good=Good())
        try:
            manifest = self._slots.read(self._slots.active)
            self._engine.switch(self._open(self._slots.active, manifest, slot.manifest))
        except Rejected as error:
            # the last good slot is damaged as well: there is nothing left to run, and the device stays reachable
            self._slots.roll_back(slot.manifest)
            self._engine.switch(None)
            return Event(Kind.ROLLED_BACK, good=Good(), reason=str(error))
        return Event(Kind.ROLLED_BACK, good=good)

    def _clean(self) -> None:
        shutil.rmtree(self._folder.fetch, ignore_errors=True)
        shutil.rmtree(self._folder.spool, ignore_errors=True)
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
        return None

    # --- what they share

    def _fetch_files(self, entries: list[FileEntry]) -> int | None:
        fetched = fetch_files(
            self._link,
            self._folder.fetch,
            entries,
            timeout_s=self._config.fetch_timeout_s,
            interrupted=self.interrupted,
        )
        return fetched.received if fetched.complete else None

    def _read_manifest(self, grant: Grant) -> Manifest:
        """Return the manifest that was fetched; its digest is the one that both repositories signed."""
        return codec.decode(Manifest, PartialFile(self._folder.fetch, _manifest_entry(grant)).finish())

    def _staged(self, grant: Grant) -> tuple[str, Manifest]:
        name = next((each for each in ("a", "b") if self._slots.pointer.slot(each).manifest == grant.manifest), "")
        if not name:
            raise Rejected("slots: expected the artifact that was staged, got none")
        return name, self._slots.read(name)

    def _open(self, name: str, manifest: Manifest, digest: str) -> Running:
        session = open_session(manifest.runtime, self._slots.folder(name) / manifest.model_file)
        return Running(session=session, manifest=manifest, digest=digest)

    def _golden(self, name: str, manifest: Manifest) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the golden inputs and outputs by name, rows first."""
        return golden_vectors((self._slots.folder(name) / manifest.golden_file).read_bytes(), manifest)

    def _check_fit(self, manifest: Manifest, state: State, grant: Grant) -> None:
        """Raise `Rejected` unless the manifest is of this profile and runtime, complete and not older."""
        here = self._identity
        path = target_name(manifest.model, manifest.version, manifest.profile, MANIFEST)
        # which of a profile's two builds this is, the release says and not the build
        if grant.path not in (path, other_build(path)):
            raise Rejected(f"manifest: expected the one of {grant.path}, got the one of {path}")
        if (manifest.profile, manifest.runtime) != (here.profile, here.runtime):
            got = f"{manifest.profile} on {manifest.runtime}"
            raise Rejected(f"manifest: expected profile {here.profile} on {here.runtime}, got {got}")
        for name in (manifest.model_file, manifest.golden_file):
            manifest.file(name)
        total = sum(entry.length for entry in manifest.files)
        if total > MAX_ARTIFACT_BYTES:
            raise Rejected(f"manifest: expected at most {MAX_ARTIFACT_BYTES} bytes of files, got {total}")
        if not (manifest.inputs and manifest.outputs):
            raise Rejected("manifest: expected inputs and outputs, got none of one of them")
        if manifest.observe.get("probabilities") and not manifest.labels:
            raise Rejected("manifest: expected labels for its probabilities, got none")
        read_monitor(manifest)
        committed = self._committed(state)
        older = committed is not None and committed.model == manifest.model and manifest.version < committed.version
        if older and not grant.rollback:
            raise Rejected(
                f"{manifest.model}: expected a newer version, got {manifest.version}; assign it as a rollback"
            )

    def _check_room(self, manifest: Manifest) -> None:
        """Raise `Broken` unless the files fit twice, fetched and in a slot, and leave the outbox what it may need."""
        needed = 2 * sum(entry.length for entry in manifest.files) + self._config.quota_bytes
        free = shutil.disk_usage(self._folder.path).free
        if free < needed:
            raise Broken(f"{self._folder.path}: expected {needed} bytes free for the artifact, got {free}; make room")

    def _committed(self, state: State) -> Manifest | None:
        running = self._engine.running
        return running.manifest if running is not None and running.digest == state.good.manifest else None


def _manifest_entry(grant: Grant) -> FileEntry:
    return FileEntry(name=MANIFEST, length=grant.length, sha256=grant.manifest, chunks=(grant.manifest,))


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
    )
