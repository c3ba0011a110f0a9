"""Installing from a file: the bundle is a broker that holds one release, and everything else is as over the network.

1. Read it, and prove it without touching anything: its form, the device, the anchor, both repositories (by the same
   child that judges assignments, over a copy of what is trusted), the content key, and that every file is in it.
2. On a first install, keep the identity that came along. It is signed too: the assignment holds its hash.
3. Hand the assignment to the same runner with the same effects; what it says waits in the outbox until there is a link.

A release of a named component goes into the slots of that one, and the others are left alone. There is no input to
infer on, so the trial runs on the golden vectors.
"""

import hashlib
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from agent.config import Config
from agent.deployment.effects import DeviceEffects
from agent.deployment.lifecycle import Event, Kind, Phase, State, settled
from agent.deployment.runner import Runner, read_state
from agent.fetching.rest import open_vault
from agent.fetching.unseal import Unsealer
from agent.identity.enrol import check_machine
from agent.identity.folder import Identity, StateFolder
from agent.identity.request import Requested, forget_request, requested
from agent.inference.frames import Request, Verb
from agent.inference.loading import REPLAY_S
from agent.inference.observe import Latencies
from agent.inference.supervisor import Running
from agent.inference.trial import Decision, Trial
from agent.inference.trial import Terms as TrialTerms
from agent.inference.workers import check_answer
from agent.link.address import parse_broker
from agent.telling.outbox import OutboxFile
from agent.trust.assignment import Inbox, Mailbox, ask_child
from agent.trust.metadata import RetainedMetadata, Routed, assigned
from agent.trust.question import Judgement, Question, Verdict
from agent.upkeep.recovery import recover
from skerry.delivery import bundle
from skerry.delivery.bundle import Bundle, open_bundle
from skerry.delivery.slots import MANIFEST, Slots
from skerry.errors import Rejected, Unavailable
from skerry.runtimes import Found, find_runtime
from skerry.wire import codec, topics
from skerry.wire.enrolment import Anchor, Enrolled
from skerry.wire.messages import AGENT, DeploymentEvent, Terms
from skerry.wire.profile import RUNTIMES

TIMEOUT_S = 600.0
# the bundle answers at once or never
FETCH_S = 1.0


def install(file: Path, folder: StateFolder, *, config: Config, timeout_s: float = TIMEOUT_S) -> str:
    """Install the release of a bundle and return one line that says what runs now.

    Raises:
        Rejected: the bundle is not what it must be, and nothing was changed; or the release failed here, and the last
            good one, if any, is what will run.
        Broken: this machine cannot, or an agent runs on the state folder.
    """
    with closing(open_bundle(file)) as held:
        component = _component(held)
        new = not folder.is_enrolled
        asked = requested(folder) if new else None
        anchor = _pinned_anchor(held, asked) if asked else folder.anchor_bytes()
        enrolled = codec.decode(Enrolled, held.read(bundle.ENROLLED)) if new or held.holds(bundle.ENROLLED) else None
        identity = _identify(held, asked, enrolled) if asked and enrolled else folder.identity()
        if (held.header.project, held.header.device) != (identity.project, identity.device):
            theirs = f"{held.header.project}.{held.header.device}"
            raise Rejected(f"bundle: expected one for {identity.who}, got one for {theirs:.130}; nothing was changed")

        refuse = identity.refuse_automatic or config.refuse_automatic
        judgement = _judge(held, folder, codec.decode(Anchor, anchor), identity, refuse_automatic=refuse)
        verdict = judgement.of(component)
        _check_content(held, verdict, identity, component=component, key_file=folder.credentials.key)
        assert verdict.terms is not None  # noqa: S101 -- `_check_content` has looked
        if enrolled is not None:
            _check_enrolled(held, enrolled, verdict.terms, key_file=folder.credentials.key)
        if new and enrolled is not None:
            key = folder.credentials.key.read_bytes()
            certificate, broker_ca = enrolled.certificate, enrolled.broker_ca
            folder.keep(identity, anchor=anchor, key=key, certificate=certificate, broker_ca=broker_ca)
        with folder.lock():
            if enrolled is not None:
                folder.keep_certificate(enrolled.certificate, broker_ca=enrolled.broker_ca)
            forget_request(folder)
            recover(folder, config)
            folder.begin((component,) if component else ())
            config = replace(config, metadata="mqtt")
            state = _run(held, folder, identity, component, config=config, timeout_s=timeout_s)
            _spare_others(held.read(bundle.ASSIGN), judgement, folder, besides=component)
    return _told(state, verdict.terms, identity)


def _component(held: Bundle) -> str:
    """Return what of the device the bundle says it is for; the signed terms of that one are all that is believed."""
    name = held.header.component
    if name and not topics.is_name(name):
        raise Rejected(f"bundle: expected a component's name, got {name!r:.80}; create it again")
    if name == AGENT:
        raise Rejected(
            "bundle: expected a release of a model, got one of the agent; install that by pip or its package"
        )
    return name


def _pinned_anchor(held: Bundle, asked: Requested) -> bytes:
    anchor = held.read(bundle.ANCHOR)
    found = hashlib.sha256(anchor).hexdigest()
    if found != asked.anchor_sha256:
        raise Rejected(
            f"bundle: expected the anchor {asked.anchor_sha256[:16]}..., which was pinned here, got {found[:16]}...; "
            "this is not from the server that was asked"
        )
    return anchor


def _identify(held: Bundle, asked: Requested, enrolled: Enrolled) -> Identity:
    """Return the identity that came along, if this machine can have it; `_check_enrolled` proves it."""
    here = tuple(each for each in RUNTIMES if isinstance(find_runtime(each), Found))
    check_machine(enrolled, runtime="", runtimes=here, simulated=asked.simulated, profile=asked.profile)
    parse_broker(enrolled.broker)
    return Identity(
        project=enrolled.project,
        device=enrolled.device,
        profile=asked.profile,
        runtime=enrolled.runtime,
        architecture=platform.machine(),
        broker=enrolled.broker,
        server=held.header.server,
        simulated=asked.simulated,
        refuse_automatic=asked.refuse_automatic or enrolled.refuse_automatic,
    )


def _judge(
    held: Bundle, folder: StateFolder, anchor: Anchor, identity: Identity, *, refuse_automatic: bool
) -> Judgement:
    """Judge the bundle as the network's metadata is judged; nothing of the device changes."""
    project = anchor.project
    if project != identity.project:
        raise Rejected(f"bundle: expected project {project} as in the anchor, got {identity.project:.80}")
    payload = held.read(bundle.ASSIGN)
    image = RetainedMetadata(held, project=project, timeout_s=FETCH_S)
    with _copied(folder.trust) as trust:
        question = Question(
            anchor=anchor,
            device=identity.device,
            folder=str(trust),
            clock=time.time(),
            refuse_automatic=refuse_automatic,
        )
        return ask_child(question, Routed(image=image, director=assigned(payload)))


def _check_content(held: Bundle, verdict: Verdict, identity: Identity, *, component: str, key_file: Path) -> None:
    """Raise `Rejected` unless the bundle brings all that its terms name, and its manifest opens with our key."""
    terms = verdict.terms
    if not verdict.ok or terms is None or terms.content is None or verdict.decommission:
        meant = f"a release for {component}" if component else "a release"
        reason = verdict.reason or f"expected an assignment of {meant}, got another one"
        raise Rejected(f"bundle: {reason}; nothing was changed")
    missing = [name for name, sha256 in terms.content.files.items() if not held.holds(f"blob/{sha256}")]
    if missing or MANIFEST not in terms.content.files:
        raise Rejected(f"bundle: expected all files of {terms.release}, got none of {missing or MANIFEST}")
    sealed = held.fetch_retained([topics.blob(terms.content.files[MANIFEST], 0)], timeout_s=FETCH_S)
    with Unsealer(terms.content.key, who=identity.who, key_file=key_file) as opener:
        opened = [opener.open(each, sha256=verdict.sha256, number=0) for each in sealed.values()]
    if [hashlib.sha256(each or b"").hexdigest() for each in opened] != [verdict.sha256]:
        raise Rejected(f"bundle: expected the manifest of {terms.release}, got other bytes; create it again")


@contextmanager
def _copied(trust: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="skerry-install-") as name:
        copy = Path(name) / "trust"
        if trust.exists():
            shutil.copytree(trust, copy)
        else:
            copy.mkdir()
        yield copy


def _check_enrolled(held: Bundle, enrolled: Enrolled, terms: Terms, *, key_file: Path) -> None:
    """Raise `Rejected` unless the director signed this certificate and address, and they are for our own key."""
    proof = hashlib.sha256(held.read(bundle.HEADER) + held.read(bundle.ENROLLED)).hexdigest()
    if terms.enrolled != proof:
        raise Rejected("bundle: expected the certificate that its assignment names, got another; nothing was changed")
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        certified = x509.load_pem_x509_certificate(enrolled.certificate.encode()).public_key()
        ours = load_pem_private_key(key_file.read_bytes(), None).public_key()
    except (ValueError, TypeError, OSError) as error:
        raise Rejected(f"bundle: expected a certificate for the key of this device, got: {error}") from error
    if certified != ours:
        raise Rejected("bundle: expected a certificate for the key of this device, got one for another; ask again")


def _run(
    held: Bundle, folder: StateFolder, identity: Identity, component: str, *, config: Config, timeout_s: float
) -> State:
    """Let the runner work until the deployment is settled; return the state it ends in."""
    place = folder.component(component)
    with closing(OutboxFile(folder.outbox_file, quota_bytes=config.quota_bytes)) as outbox:

        def announce(event: DeploymentEvent) -> None:
            body = codec.encode(replace(event, component=component))
            outbox.put("deployment", body, event_time=outbox.event_clock() or time.time())

        runner = Runner(
            place.lifecycle_file, announce=announce, retry_s=config.retry_s, retry_most_s=config.retry_most_s
        )

        def decided(manifest: str, decision: Decision) -> None:
            grant = runner.state.grant
            if grant is not None and grant.manifest == manifest:
                kind = Kind.PASSED if decision.passed else Kind.REFUSED
                runner.tell(Event(kind, grant=grant, reason=decision.reason))

        bench = Bench(on_decision=decided)
        effects = DeviceEffects(
            folder=folder,
            identity=identity,
            config=config,
            link=held,
            engine=bench,
            slots=Slots(place.slots, open_vault(config.rest_key_file)),
            component=component,
        )
        effects.loader.keep_golden = True
        damage = None
        if runner.state.phase not in (Phase.TRIAL.value, Phase.ROLLING_BACK.value):
            damage = effects.run_last_good()
        runner.wake_up(effects)
        if damage is not None:
            runner.tell(damage)
        effects.offer(held.read(bundle.ASSIGN))

        try:
            return _settle(runner, effects, timeout_s=timeout_s)
        finally:
            effects.close()
            bench.switch(None)


def _spare_others(payload: bytes, judgement: Judgement, folder: StateFolder, *, besides: str) -> None:
    """Note for each other component that the bundle assigns what it has: it need not ask a network about that."""
    for name in ("", *folder.component_names()):
        terms, place = judgement.of(name).terms, folder.component(name)
        grant = read_state(place.lifecycle_file).grant
        if name != besides and judgement.of(name).ok and terms and grant and terms.deployment == grant.deployment:
            Inbox(place.path, Mailbox(folder.path)).decided(payload)


def _settle(runner: Runner, effects: DeviceEffects, *, timeout_s: float) -> State:
    deadline = time.monotonic() + timeout_s
    while runner.turn(effects) or effects.pending() or not settled(runner.state):
        if time.monotonic() > deadline:
            raise Unavailable(f"install: expected its end within {timeout_s:g} s, got: {runner.problem}; try again")
        time.sleep(0.001)
    return runner.state


class Bench:
    """What runs while there is no engine: a trial on the golden inputs, then nothing."""

    def __init__(self, *, on_decision: Callable[[str, Decision], None]) -> None:
        self._on_decision = on_decision
        self.running: Running | None = None
        self.trial_latency_us = 0

    def switch(self, running: Running | None, *, trial: TrialTerms | None = None) -> None:
        """Take note of what runs; with `trial`, try it, and say how that ended. Raises `Broken` when it ends in it."""
        before, self.running = self.running, running
        if before is not None and before is not running:
            before.worker.close()
        if running is None or trial is None:
            return
        under_way = Trial(terms=trial, latencies=Latencies(), began=time.monotonic())
        decision = under_way.decide(time.monotonic())
        while decision is None:
            answer = running.worker.ask(Request(Verb.REPLAY, b"{}"), patience_s=REPLAY_S)
            check_answer(answer)
            for row in answer.rows:
                under_way = under_way.after(row.latency_us)
            decision = under_way.decide(time.monotonic(), growth_bytes=running.worker.growth_bytes)
        self.trial_latency_us = under_way.latencies.percentile(0.5)
        self._on_decision(running.digest, decision)

    def roll_back(self, digest: str) -> bool:  # noqa: ARG002 -- the port's
        """Return False: nothing runs beside a trial here."""
        return False

    def commit(self) -> None:
        """Do nothing: nothing is counted here."""


def _told(state: State, terms: Terms, identity: Identity) -> str:
    grant = state.grant
    if grant is None or grant.deployment != terms.deployment:
        raise Rejected(f"{terms.release}: expected it to be installed, got: {state.reason or 'another assignment'}")
    if state.phase != Phase.COMMITTED.value:
        runs = f"{state.good.release} runs on" if state.good.release else "nothing runs"
        raise Rejected(f"{terms.release}: expected it to be installed, got: {state.reason}; {runs}")
    return f"installed {grant.release} (manifest {grant.manifest[:16]}) on {identity.who}: replayed, tried, committed"
