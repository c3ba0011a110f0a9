"""The device's whole story in one file: hear, decide, update, infer, count, tell; for ever, with or without a network.

Each component has two threads (`agent.deployment.unit`): its engine infers, its updater moves its lifecycle. Beside
them there are the link's, and the main thread, which listens and tells, and begins and ends components.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

from agent.config import Config
from agent.fetching.desired import DesiredFile
from agent.identity.errand import Tokens
from agent.identity.folder import StateFolder
from agent.identity.leaving import begin_to_leave
from agent.link.session import Heard
from agent.local.serving import Face
from agent.remote.inbox import Verb
from agent.remote.journal import Journal
from agent.remote.verbs import make_verbs
from agent.telling.publisher import Publisher
from agent.telling.reporter import Reporter
from agent.telling.twin import Twin
from agent.trust.assignment import Mailbox
from agent.upkeep.disk import Disk
from agent.upkeep.launcher import RESTART
from agent.upkeep.service import Service
from agent.wiring import Ground, count_start, make_link, make_outbox, make_renewal, make_requests, make_units, open_face
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
        disk: Disk | None = None,
        recovered: Sequence[str] = (),
    ) -> None:
        self._recovered = "; ".join(recovered)
        self.identity = folder.identity()
        self._service = service or Service()
        self._config = config
        self._folder = folder
        self._disk = disk or Disk(folder.path, outbox=folder.outbox_file)
        self._mended = False
        found = find_runtime(self.identity.runtime)
        if isinstance(found, Refused):
            raise Broken(found.reason)
        self._runtime = f"{self.identity.runtime} {found.version}"

        ground = self._ground = Ground(folder, self.identity, config, self._disk)
        starts, self._versions = count_start(ground)
        self._news = threading.Event()
        self._told = False
        self._unheard: Heard | None = None
        self._refusal = ""
        self._desired = DesiredFile(folder.path)
        self._leaving = threading.Event()
        self._stopping = threading.Event()
        self._face: Face | None = None
        self._face_problem = ""
        self._outbox = make_outbox(ground)
        self._publisher = Publisher(
            self._outbox,
            ack_timeout_s=config.ack_timeout_s,
            rate_bytes_s=lambda: self._desired.wishes.resume_bytes_s or config.resume_bytes_s,
        )
        self._reporter = Reporter(every_s=config.report_every_s)
        self._link = make_link(ground, will=self._will, news=self._news.set)
        self._renewal = make_renewal(ground, self._link)
        tokens = Tokens(folder.path)
        self._mailbox = Mailbox(folder.path)
        self.units = make_units(
            ground,
            link=self._link,
            outbox=self._outbox,
            mailbox=self._mailbox,
            desired=self._desired,
            tokens=tokens,
            news=self._news.set,
            launched=launched,
        )
        self._main = self.units.main
        self._main.decisions.decommissioned = self._leave
        self._good_before = self._main.runner.state.good.manifest
        self._journal = Journal(secrets=lambda: (tokens.held,))
        self._twin = self._make_twin(restarts=starts - 1)
        self._requests = make_requests(ground, self._link, self._make_verbs())

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
        return self._mended or self.units.wants_restart

    def _will(self) -> bytes:
        return codec.encode(self._reported(online=False, version=self._versions.will()))

    def _make_twin(self, *, restarts: int) -> Twin:
        return Twin(
            self._disk.folder,
            trust=self._folder.trust,
            restarts=restarts,
            slots=lambda: self._main.effects.pointer,
            life=lambda: self._renewal.life if self._renewal else None,
            desired=self._desired,
            outbox_budget=self._outbox.budget_bytes,
        )

    def _make_verbs(self) -> Mapping[str, Verb]:
        return make_verbs(
            journal=self._journal,
            state=self._disk.folder,
            stopping=self._stopping,
            restart=self.units.restart,
            windows=self._outbox,
            publish=lambda outbox: self._link.publish("outbox", codec.encode(outbox)),
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
            if self._disk.problem:
                self._look_at_disk()
                return
            self._publisher.tick(self._link)
            self.units.look(told=self._told)
            self._refusal = ""
        except Broken as error:
            if str(error) != self._refusal:
                _log.error("%s", error)
            self._refusal = str(error)

    def _look_at_disk(self) -> None:
        """On a disk that refused at the start nothing is said, for it could not be marked as said; is it mended?"""
        if self._disk.is_mended:
            # first: what was held in memory meanwhile is stored as the engines stop
            self._outbox.thaw()
            _log.warning("the disk takes writes again: starting anew, in full")
            self._mended = True

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
            if not self._wants_restart:
                # systemd gives who says so a minute, and this process goes on
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
        try:
            self._face, self._face_problem = open_face(self._ground, self.units)
        except Broken as error:
            self._face_problem = str(error)
        if self._face_problem:
            _log.error("%s", self._face_problem)

    def _listen(self) -> None:
        """Handle what was heard: make it durable, then tell the broker that it arrived.

        What the disk refused stays at hand: the broker would say it again only on another connection. That comes once a
        disk is mended that refused at the start; until then what is to be kept is left with the broker.
        """
        while self._unheard is not None or not self._link.heard.empty():
            heard = self._unheard = self._unheard or self._link.heard.get()
            if self._disk.problem and heard.name != "request":
                self._unheard = None
                continue
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
        refusal = self._disk.problem or self._refusal
        return self._twin.complete(reported, runs=main.runs, crashes=engine.crashes, refusal=refusal)

    def _status(self) -> str:
        """Return how it is, in a line for the service manager."""
        good = self._main.runner.state.good.release
        link = "connected" if self._link.connected else "not connected"
        runs = f"{good} is committed" if good else "nothing is committed"
        return f"{link}, {runs}; {self._problem() or self.units.problem or 'all is well'}"

    def _problem(self) -> str:
        renewal = self._renewal.problem if self._renewal else ""
        problems = (
            self._disk.problem,
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
