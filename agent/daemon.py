"""The device's whole story in one file: hear, decide, update, infer, count, tell; for ever, with or without a network.

Each component has two threads (`agent.deployment.unit`): its engine infers, its updater moves its lifecycle. Beside
them there are the link's, and the main thread, which listens and tells, and begins and ends components.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from agent.config import Config
from agent.deployment.unit import Shared
from agent.deployment.units import Units, held_here
from agent.fetching.desired import DesiredFile
from agent.fetching.pace import OwnersPace
from agent.fetching.ranges import HttpsChunks
from agent.identity.errand import Tokens
from agent.identity.folder import StateFolder
from agent.identity.leaving import begin_to_leave
from agent.identity.renewal import Renewal
from agent.link.address import parse_broker
from agent.link.link_note import LinkNote
from agent.link.proxy import parse_proxy
from agent.link.session import Heard, Link
from agent.link.tls import client_context
from agent.local.serving import SOCKET_NAME, Face, parse_serve
from agent.remote.inbox import Requests
from agent.remote.journal import Journal
from agent.remote.verbs import make_verbs
from agent.telling.outbox import OutboxFile
from agent.telling.publisher import Publisher
from agent.telling.reporter import Reporter, Versions
from agent.telling.twin import Twin
from agent.trust.assignment import Mailbox
from agent.trust.floor import read_floor
from agent.trust.judging import Judge
from agent.upkeep.launcher import RESTART
from agent.upkeep.service import Service
from skerry import __version__
from skerry.errors import Broken, Rejected, SkerryError
from skerry.runtimes import Refused, find_runtime
from skerry.wire import codec
from skerry.wire.messages import DECOMMISSIONED, Ack, Reported

_log = logging.getLogger("skerry.agent")
TICK_S = 0.5
FAREWELL_S = 30.0


class Daemon:
    """One agent, from its state folder; `launched` is the manifest of its own version, empty for the installed one.

    `recovered` says what of the folder was put right before (`agent.upkeep.recovery`).
    """

    def __init__(
        self,
        folder: StateFolder,
        config: Config,
        *,
        launched: str = "",
        service: Service | None = None,
        recovered: Sequence[str] = (),
    ) -> None:
        self._recovered = "; ".join(recovered)
        self.identity = folder.identity()
        self._service = service or Service()
        self._config = config
        self._folder = folder
        found = find_runtime(self.identity.runtime)
        if isinstance(found, Refused):
            raise Broken(found.reason)
        self._runtime = f"{self.identity.runtime} {found.version}"

        starts = folder.starts()
        self._versions = Versions(starts)
        self._news = threading.Event()
        self._told = False
        self._unheard: Heard | None = None
        self._refusal = ""
        self._desired = DesiredFile(folder.path)
        self._leaving = threading.Event()
        self._stopping = threading.Event()
        self._face: Face | None = None
        self._face_problem = ""
        self._outbox = OutboxFile(folder.outbox_file, quota_bytes=config.quota_bytes)
        self._publisher = Publisher(
            self._outbox,
            ack_timeout_s=config.ack_timeout_s,
            rate_bytes_s=lambda: self._desired.wishes.resume_bytes_s or config.resume_bytes_s,
        )
        self._reporter = Reporter(every_s=config.report_every_s)
        self._link = self._make_link()
        self._renewal = self._make_renewal()
        tokens = Tokens(folder.path)
        self._mailbox = Mailbox(folder.path)
        self.units = self._make_units(tokens.get, launched=launched)
        self._main = self.units.main
        self._good_before = self._main.runner.state.good.manifest
        self._journal = Journal(secrets=lambda: (tokens.held,))
        self._twin = self._make_twin(restarts=starts - 1)
        self._requests = self._make_requests()

    def run(self, stop: threading.Event) -> int:
        """Live until `stop`, and return the exit status; a broker that is not there is waited for.

        Raises:
            Broken: one of the threads ended by itself; the supervisor starts the agent anew.
        """
        with self._living():
            self._service.ready(self._status())
            connections = 0
            while not (stop.is_set() or self._leaving.is_set() or self._wants_restart) and self.units.alive:
                if self._link.connections != connections:
                    self._publisher.connected(again=connections > 0)
                    connections = self._link.connections
                    self._reporter = Reporter(every_s=self._config.report_every_s)
                    self._told = False
                    self.units.nudge()
                    self._requests.nudge()
                self._converse()
                self._service.turn({**self.units.beats, "link": self._link.beats}, self._status())
                self._news.wait(TICK_S)
                self._news.clear()
            if self._leaving.is_set():
                self._wait_to_be_heard(stop)
            elif self._wants_restart:
                return RESTART
            elif not stop.is_set():
                raise Broken("expected all threads to run on, got the end of one; start the agent again")
        return 0

    @property
    def _wants_restart(self) -> bool:
        return self.units.own is not None and self.units.own.wants_restart

    def _make_units(self, token: Callable[[], str], *, launched: str) -> Units:
        folder, config = self._folder, self._config
        judge = Judge(
            folder=folder,
            config=config,
            link=self._link,
            held=lambda: held_here(folder, config),
            token=token,
        )
        shared = Shared(
            folder=folder,
            identity=self.identity,
            config=config,
            link=self._link,
            outbox=self._outbox,
            mailbox=self._mailbox,
            judge=judge,
            turn=threading.Lock(),
            news=self._news.set,
            make_pace=self._make_pace,
            https=self._make_https(token),
        )
        units = Units(shared, launched=launched)
        units.main.decisions.decommissioned = self._leave
        return units

    def _make_link(self) -> Link:
        return Link(
            parse_broker(self._config.broker or self.identity.broker),
            who=self.identity.who,
            will=lambda: codec.encode(self._reported(online=False, version=self._versions.will())),
            credentials=self._folder.credentials,
            floor=lambda: read_floor(self._folder.trust),
            on_change=self._news.set,
            note=LinkNote(self._folder.path).keep,
            keep_alive_s=self._config.keep_alive_s,
            reconnect_s=self._config.reconnect_s,
            proxy=parse_proxy(self._config.proxy),
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
            server,
            context=lambda: client_context(anchor.server_ca, floor=read_floor(trust)),
            token=token,
            proxy=parse_proxy(self._config.proxy),
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

    def _make_twin(self, *, restarts: int) -> Twin:
        return Twin(
            self._folder.path,
            trust=self._folder.trust,
            restarts=restarts,
            slots=lambda: self._main.effects.pointer,
            life=lambda: self._renewal.life if self._renewal else None,
            desired=self._desired,
            outbox_budget=self._outbox.budget_bytes,
        )

    def _make_requests(self) -> Requests:
        verbs = make_verbs(
            journal=self._journal,
            state=self._folder.path,
            stopping=self._stopping,
            restart=self.units.restart,
            windows=self._outbox,
            publish=lambda outbox: self._link.publish("outbox", codec.encode(outbox)),
        )
        return Requests(
            self._folder.path / "requests",
            verbs=verbs,
            allowed=self._config.requests,
            say=lambda answer: self._link.publish("answer", codec.encode(answer)),
            now=lambda: max(time.time(), read_floor(self._folder.trust)),
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
            # how the device is now comes before what it has to tell of the past
            self._report()
            self._publisher.tick(self._link)
            self.units.look(told=self._told)
            self._refusal = ""
        except Broken as error:
            if str(error) != self._refusal:
                _log.error("%s", error)
            self._refusal = str(error)

    @contextlib.contextmanager
    def _living(self) -> Iterator[None]:
        """Start what was committed, then the threads; at the end, stop them and leave everything on disk."""
        logging.getLogger("skerry.agent").addHandler(self._journal)
        self.units.start()
        self._start_serving()
        self._requests.start()
        self._link.start()
        if self._renewal is not None:
            self._renewal.start()
        try:
            yield
        finally:
            self._stopping.set()
            self._service.stopping()
            self._requests.stop()
            if self._face is not None:
                self._face.stop()
            self.units.stop()
            if self._renewal is not None:
                self._renewal.stop()
            farewell = self._reported(online=False, version=self._versions.next())
            self._link.stop(codec.encode(farewell))
            self.units.join()
            self._outbox.close()
            logging.getLogger("skerry.agent").removeHandler(self._journal)

    def _start_serving(self) -> None:
        """Let programs on this device ask the model; where that cannot be, the device is there for its fleet."""
        if self._config.serve == "off":
            return
        port = parse_serve(self._config.serve)
        # a port that another program has is no reason to be without the socket
        for wanted in (port, None) if port else (None,):
            face = Face(self.units, keep_bytes=self._config.serve_keep_bytes)
            try:
                face.start(self._folder.path / SOCKET_NAME, port=wanted)
            except Broken as error:
                self._face_problem = self._face_problem or str(error)
                _log.error("%s", error)
            else:
                self._face = face
                break

    def _listen(self) -> None:
        """Handle what was heard: make it durable, then tell the broker that it arrived.

        What the disk refused stays at hand: the broker would say it again only on another connection.
        """
        while self._unheard is not None or not self._link.heard.empty():
            heard = self._unheard = self._unheard or self._link.heard.get()
            if heard.name == "ack":
                self._publisher.acknowledged(heard.payload)
                self._note_time(heard.payload)
            elif heard.name == "request":
                self._requests.offer(heard.payload)
            elif heard.name == "desired":
                self._desired.offer(heard.payload)
            elif self._mailbox.offer(heard.payload):
                self.units.nudge()
            heard.settle()
            self._unheard = None

    def _note_time(self, payload: bytes) -> None:
        with contextlib.suppress(Rejected):
            self._twin.skew.heard(codec.decode(Ack, payload).at, now=time.time())

    def _report(self) -> None:
        if not self._link.connected:
            return
        reported = self._reported(online=True, version=0)
        now = time.monotonic()
        if self._reporter.due(reported, now=now):
            reported = self._reported(online=True, version=self._versions.next())
            with contextlib.suppress(SkerryError):
                self._link.publish("reported", codec.encode(reported), retain=True)
                self._told = True
                self._reporter = self._reporter.sent(reported, now=now)

    def _reported(self, *, online: bool, version: int) -> Reported:
        main = self._main
        state, engine, delivery = main.runner.state, main.engine, main.delivery
        who = self.identity
        reported = Reported(
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
            outbox_bytes=self._outbox.size_bytes,
            event_time=engine.event_time,
            inferences=engine.inferences,
            last_error=self._problem(),
            desired_version=self._desired.version,
            progress=round(delivery.progress, 3),
            received=delivery.received,
            waiting=delivery.waiting,
            stalled=delivery.stalled,
            components=self.units.reported(),
        )
        return self._twin.complete(reported, runs=main.runs, crashes=engine.crashes, refusal=self._refusal)

    def _status(self) -> str:
        """Return how it is, in a line for the service manager."""
        good = self._main.runner.state.good.release
        link = "connected" if self._link.connected else "not connected"
        runs = f"{good} is committed" if good else "nothing is committed"
        return f"{link}, {runs}; {self._problem() or self.units.problem or 'all is well'}"

    def _problem(self) -> str:
        renewal = self._renewal.problem if self._renewal else ""
        problems = (
            self._main.asking_problem,
            self._face_problem,
            self._refusal,
            self._main.problem,
            renewal,
            self._desired.problem,
        )
        # what the disk had spoilt is said until the next commit
        recovered = self._recovered if self._main.runner.state.good.manifest == self._good_before else ""
        return next(filter(None, (*problems, self._outbox.problem, recovered)), "")
