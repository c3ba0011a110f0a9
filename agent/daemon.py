"""The device's whole story in one file: hear, decide, update, infer, count, tell; for ever, with or without a network.

Three threads and paho's own: the engine infers, the updater moves the lifecycle, and the main thread listens and tells.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.config import Config
from agent.desired import DesiredFile
from agent.effects import DeviceEffects
from agent.engine import Engine
from agent.errand import Tokens
from agent.floor import read_floor
from agent.identity import StateFolder
from agent.leaving import begin_to_leave
from agent.lifecycle import Event, Kind, Phase
from agent.link import Heard, Link, parse_broker
from agent.outbox import OutboxFile
from agent.pace import OwnersPace
from agent.ranges import HttpsChunks
from agent.renewal import Renewal
from agent.rest import open_vault
from agent.runner import Runner
from agent.source import ReplaySource
from agent.telling import Publisher, Reporter, Versions
from agent.tls import client_context
from agent.trial import Decision
from skerry import __version__
from skerry.delivery.slots import Slots
from skerry.errors import Broken, SkerryError
from skerry.runtimes import Refused, probe
from skerry.wire import codec
from skerry.wire.evidence import SignedEvidence
from skerry.wire.messages import DECOMMISSIONED, DeploymentEvent, Reported

_log = logging.getLogger("skerry.agent")
TICK_S = 0.5
FAREWELL_S = 30.0


class Daemon:
    """One agent, from its state folder."""

    def __init__(self, folder: StateFolder, config: Config) -> None:
        self.identity = folder.identity()
        self._config = config
        self._folder = folder
        found = probe(self.identity.runtime)
        if isinstance(found, Refused):
            raise Broken(found.reason)
        self._runtime = f"{found.runtime} {found.version}"
        source = ReplaySource(Path(config.replay), seed=config.seed) if config.replay else None

        self._versions = Versions(folder.starts())
        self._news = threading.Event()
        self._ended = threading.Event()
        self._unheard: Heard | None = None
        self._refusal = ""
        self._desired = DesiredFile(folder.path)
        self._leaving = threading.Event()
        self._outbox = OutboxFile(folder.outbox_file, quota_bytes=config.quota_bytes)
        self._publisher = Publisher(self._outbox, ack_timeout_s=config.ack_timeout_s)
        self._reporter = Reporter(every_s=config.report_every_s)
        self._source = source
        self._engine = Engine(
            config=config,
            source=source,
            outbox=self._outbox,
            on_decision=self._trial_ended,
            on_window=self._news.set,
        )
        self._link = self._make_link()
        self._renewal = self._make_renewal()
        self._runner = Runner(
            folder.lifecycle_file,
            announce=self._announce,
            retry_s=config.retry_s,
            retry_most_s=config.retry_most_s,
        )
        self._effects = DeviceEffects(
            folder=folder,
            identity=self.identity,
            config=config,
            link=self._link,
            engine=self._engine,
            slots=Slots(folder.slots, open_vault(config.rest_key_file)),
        )
        self._effects.testify = self._testify
        self._effects.interrupted = lambda: self._runner.interrupts(self._effects)
        self._effects.token = token = Tokens(folder.path).get
        self._effects.delivery.pace = self._make_pace()
        self._effects.delivery.https = self._make_https(token)
        self._effects.decommissioned = self._leave

    def run(self, stop: threading.Event) -> int:
        """Live until `stop`, and return the exit status; a broker that is not there is waited for.

        Raises:
            Broken: one of the threads ended by itself; the supervisor starts the agent anew.
        """
        with self._living():
            connections = 0
            while not (stop.is_set() or self._leaving.is_set() or self._ended.is_set()) and self._engine.alive:
                if self._link.connections != connections:
                    self._publisher.connected(again=connections > 0)
                    connections = self._link.connections
                    self._reporter = Reporter(every_s=self._config.report_every_s)
                    self._runner.nudge()
                self._converse()
                self._news.wait(TICK_S)
                self._news.clear()
            if self._leaving.is_set():
                self._wait_to_be_heard(stop)
            elif not stop.is_set():
                ended = "updater" if self._engine.alive else "engine"
                raise Broken(f"expected the {ended} to run on, got its end; start the agent again")
        return 0

    def _make_link(self) -> Link:
        return Link(
            parse_broker(self._config.broker or self.identity.broker),
            who=self.identity.who,
            will=lambda: codec.encode(self._reported(online=False, version=self._versions.will())),
            credentials=self._folder.credentials,
            floor=lambda: read_floor(self._folder.trust),
            on_change=self._news.set,
        )

    def _make_pace(self) -> OwnersPace:
        metered = Path(self._config.metered_file) if self._config.metered_file else None
        return OwnersPace(
            self.identity.who,
            wishes=lambda: self._desired.wishes,
            metered=lambda: metered is not None and metered.exists(),
        )

    def _make_https(self, token: Callable[[], str]) -> HttpsChunks | None:
        server = self.identity.server
        if not server:
            return None
        anchor, trust = self._folder.anchor(), self._folder.trust
        # a new context for each connection: the floor moves
        return HttpsChunks(
            server, context=lambda: client_context(anchor.server_ca, floor=read_floor(trust)), token=token
        )

    def _make_renewal(self) -> Renewal | None:
        if not self._folder.has_certificate:
            return None
        # without TLS the broker asks for no certificate, and its silence says nothing about ours
        tls = parse_broker(self._config.broker or self.identity.broker).tls
        return Renewal(
            self._folder,
            connected=lambda: self._link.connected or not tls,
            on_renewed=self._link.reconnect if tls else lambda: None,
        )

    def _leave(self) -> None:
        """This device was told to wipe itself: that is kept before all else, and done when all threads have ended."""
        begin_to_leave(self._folder.path)
        self._leaving.set()
        self._news.set()

    def _wait_to_be_heard(self, stop: threading.Event) -> None:
        """Give the last word a way out, for a while; the order to wipe is not made void by a missing network."""
        deadline = time.monotonic() + FAREWELL_S
        while not (self._link.connected or stop.is_set()) and time.monotonic() < deadline:
            self._news.wait(TICK_S)
            self._news.clear()

    def _converse(self) -> None:
        """Hear and tell, once; a disk that refuses is asked again at the next turn, and inference goes on."""
        try:
            self._listen()
            self._publisher.tick(self._link)
            self._report()
            self._refusal = ""
        except Broken as error:
            if str(error) != self._refusal:
                _log.error("%s", error)
            self._refusal = str(error)

    @contextlib.contextmanager
    def _living(self) -> Iterator[None]:
        """Start what was committed, then the threads; at the end, stop them and leave everything on disk."""
        damage = None
        if self._runner.state.phase not in (Phase.TRIAL.value, Phase.ROLLING_BACK.value):
            damage = self._effects.run_last_good()
        self._runner.wake_up(self._effects)
        if damage is not None:
            self._runner.tell(damage)

        updater = threading.Thread(target=self._update, name="updater", daemon=True)
        self._engine.start()
        updater.start()
        self._link.start()
        if self._renewal is not None:
            self._renewal.start()
        try:
            yield
        finally:
            self._runner.stop()
            self._engine.stop()
            if self._renewal is not None:
                self._renewal.stop()
            farewell = self._reported(online=False, version=self._versions.next())
            self._link.stop(codec.encode(farewell))
            updater.join(timeout=10)
            self._outbox.close()

    def _update(self) -> None:
        """Move the lifecycle; should that end by itself, the agent ends too, and its supervisor starts it anew."""
        try:
            self._runner.run(self._effects)
        except SkerryError as error:
            _log.error("%s", error)
        finally:
            self._ended.set()
            self._news.set()

    def _listen(self) -> None:
        """Handle what was heard: make it durable, then tell the broker that it arrived.

        What the disk refused stays at hand: the broker would say it again only on another connection.
        """
        while self._unheard is not None or not self._link.heard.empty():
            heard = self._unheard = self._unheard or self._link.heard.get()
            if heard.name == "ack":
                self._publisher.acknowledged(heard.payload)
            elif heard.name == "desired":
                self._desired.offer(heard.payload)
            elif self._effects.offer(heard.payload):
                self._runner.nudge()
            heard.settle()
            self._unheard = None

    def _report(self) -> None:
        if not self._link.connected:
            return
        reported = self._reported(online=True, version=0)
        now = time.monotonic()
        if self._reporter.due(reported, now=now):
            reported = self._reported(online=True, version=self._versions.next())
            with contextlib.suppress(SkerryError):
                self._link.publish("reported", codec.encode(reported), retain=True)
                self._reporter = self._reporter.sent(reported, now=now)

    def _reported(self, *, online: bool, version: int) -> Reported:
        state = self._runner.state
        who = self.identity
        delivery = self._effects.delivery
        return Reported(
            version=version,
            online=online,
            state=DECOMMISSIONED if self._leaving.is_set() else state.phase,
            agent=__version__,
            profile=who.profile,
            runtime=self._runtime,
            architecture=who.architecture,
            simulated=who.simulated,
            release=state.good.release,
            manifest=state.good.manifest,
            deployment=state.grant.deployment if state.grant else "",
            outbox_depth=self._outbox.depth,
            event_time=self._engine.event_time,
            inferences=self._engine.inferences,
            last_error=self._problem(),
            desired_version=self._desired.version,
            progress=round(delivery.progress, 3),
            received=delivery.received,
            waiting=delivery.waiting,
            stalled=delivery.stalled,
        )

    def _problem(self) -> str:
        source = self._source.problem if self._source else ""
        renewal = self._renewal.problem if self._renewal else ""
        lifecycle = (self._effects.problem, self._runner.state.reason)
        problems = (self._engine.problem, source, self._refusal, *lifecycle, renewal, self._desired.problem)
        return next(filter(None, problems), "")

    def _announce(self, event: DeploymentEvent) -> None:
        self._outbox.put("deployment", codec.encode(event), event_time=self._engine.event_time)
        self._news.set()

    def _testify(self, evidence: SignedEvidence) -> None:
        self._outbox.put("evidence", codec.encode(evidence), event_time=self._engine.event_time)
        self._news.set()

    def _trial_ended(self, manifest: str, decision: Decision) -> None:
        grant = self._runner.state.grant
        if grant is None or grant.manifest != manifest:
            return
        kind = Kind.PASSED if decision.passed else Kind.REFUSED
        self._runner.tell(Event(kind, grant=grant, reason=decision.reason))
