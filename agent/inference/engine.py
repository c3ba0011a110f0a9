"""The engine: asks the model on behalf of a source and of programs on this device, counts, and judges a trial.

One thread of its own takes the source's inputs and starts again what has ended; callers ask on theirs. It owns the
event clock. `switch` is the only way to change what runs; the old worker answers until the new one has its place. Who
answers what, and what a crash leads to, is `agent.inference.supervisor`; what a worker says, `agent.inference.frames`.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping

from agent.config import Config
from agent.deployment.lifecycle import Kind
from agent.inference.feeds import Source
from agent.inference.frames import NO_SAMPLE, Answer, Request, Sampled, Status, Verb, write_head
from agent.inference.observe import Latencies
from agent.inference.supervisor import Running, Supervisor
from agent.inference.trial import Decision, Terms, Trial
from agent.inference.windows import Windows, check_rows
from agent.inference.workers import Crashed, Hung
from agent.local.serving_port import Reply, Rows, Served
from agent.telling.outbox import OutboxFile
from skerry.errors import Rejected, Unavailable
from skerry.runtimes.session import Tensor
from skerry.wire.manifest import TensorSpec

_log = logging.getLogger("skerry.agent.engine")
MAX_CALLERS = 64
IDLE_S = 0.5
TROUBLE_S = 1.0
SAY_AGAIN_S = 60.0


class Engine:
    """Runs one model; `on_decision` hears how a trial of a manifest ended, `on_trouble` what else befell it.

    That is an event of the lifecycle: `FAULT` of what is on trial; `CRASHED`, too often, or `CORRUPTED` of what is
    committed.
    """

    def __init__(
        self,
        *,
        config: Config,
        source: Source | None,
        outbox: OutboxFile,
        on_decision: Callable[[str, Decision], None],
        on_trouble: Callable[[str, Kind, str], None] = lambda _manifest, _kind, _reason: None,
        on_window: Callable[[], None] = lambda: None,
    ) -> None:
        self._config = config
        self._source = source
        self._on_decision = on_decision
        self._on_trouble = on_trouble
        self._lock = threading.Lock()
        self._room = threading.BoundedSemaphore(MAX_CALLERS)
        self._stop = threading.Event()
        self._news = threading.Event()
        self._supervisor = Supervisor(
            patience_s=config.infer_timeout_s, on_trouble=self._befallen, on_down=self._news.set
        )
        self._windows = Windows(config=config, outbox=outbox, event_time=lambda: self.event_time, on_window=on_window)
        self._trial: Trial | None = None
        self._request: Request | None = None
        self._tries = 0
        self._due = 0.0
        self.inferences = 0
        self.trial_latency_us = 0
        # turns of the loop, for the watchdog (`agent.upkeep.service`)
        self.beats = 0
        self.problem = ""
        self.source_problem = ""
        self._said, self._said_at = "", 0.0
        # an accelerated clock goes on where it stood; the real one needs no memory
        self._clock = outbox.event_clock() or time.time()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def event_time(self) -> float:
        """The event clock, in seconds since 1970."""
        return self._clock if self._config.event_step_s else time.time()

    @property
    def running(self) -> Running | None:
        """What is asked first now."""
        return self._supervisor.trial or self._supervisor.good

    @property
    def tried(self) -> str:
        """The manifest of what is on trial; empty when nothing is."""
        with self._lock:
            trial = self._supervisor.trial
            return trial.digest if trial is not None and self._trial is not None else ""

    @property
    def alive(self) -> bool:
        """False when the loop has ended, for whatever reason."""
        return self._thread.is_alive()

    @property
    def unkept(self) -> str:
        """Why the disk does not take what is counted; empty while it does."""
        return self._windows.problem

    @property
    def word(self) -> str:
        """How what runs is: `up`, `restarting` or `none`."""
        places = self._supervisor.places()
        if not places:
            return "none"
        return "up" if any(up for _, up in places) else "restarting"

    @property
    def crashes(self) -> int:
        """How often a worker ended by itself since the agent started."""
        return self._supervisor.ends

    def start(self) -> None:
        """Begin to infer."""
        if self._source is not None:
            self._source.start(self._news.set)
        self._thread.start()

    def stop(self) -> None:
        """End the inference under way and the workers, and persist the open window."""
        self._stop.set()
        self._news.set()
        self._supervisor.put(good=None, now=True)
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        with self._lock:
            self._windows.end()

    # --- what runs

    def switch(self, running: Running | None, *, trial: Terms | None = None) -> None:
        """Run something else; with `trial`, beside what is good, and uncounted until a decision was heard."""
        with self._lock:
            self._trial = None
            if running is not None and trial is not None:
                self._windows.save()
                self._trial = Trial(terms=trial, latencies=Latencies(), began=time.monotonic())
            else:
                self._count_for(running)
        if trial is not None:
            self._supervisor.put(good=self._supervisor.good, trial=running)
        else:
            self._supervisor.put(good=running)
        self._news.set()

    def roll_back(self, digest: str) -> bool:
        """Give up what is on trial, if what is good is this manifest and up; False when it is to be opened anew."""
        good = self._supervisor.good
        if good is None or good.digest != digest or good.worker.ended:
            return False
        self.switch(good)
        return True

    def commit(self) -> None:
        """End the trial: what was on trial is what is good, and counted from now on."""
        with self._lock:
            self._trial = None
            running = self.running
            if running is not None:
                self._count_for(running)
        if running is not None and running is self._supervisor.trial:
            self._supervisor.put(good=running)
        self._news.set()

    def restart(self) -> str:
        """Start the worker of what is good afresh, and return what that is; raises as starting it does."""
        good = self._supervisor.good
        if good is None or self._supervisor.trial is not None:
            raise Unavailable("expected a committed model and no trial; ask later")
        self._supervisor.start_again(good)
        return f"{good.manifest.model} {good.manifest.version}"

    # --- the port of programs on this device: `agent.local.serving_port.Models`

    def serving(self) -> tuple[Served, ...]:
        """Return what can be asked."""
        return tuple(
            Served(
                name=running.manifest.model,
                version=str(running.manifest.version),
                manifest=running.digest,
                runtime=running.manifest.runtime,
                ready=up,
                inputs=tuple(map(_spec, running.worker.signature.inputs)) or running.manifest.inputs,
                outputs=tuple(map(_spec, running.worker.signature.outputs)) or running.manifest.outputs,
                # a session of ONNX Runtime keeps nothing from one run to the next
                stateful=running.manifest.runtime != "onnxruntime",
            )
            for running, up in self._supervisor.places()
        )

    def infer(self, name: str, version: str, *, head: Mapping[str, str], body: bytes) -> Reply:
        """Answer one request of a program."""
        if not self._room.acquire(blocking=False):
            raise Unavailable(f"expected at most {MAX_CALLERS} requests at a time, got another; ask later")
        try:
            running = self.running
            if running is not None and name != running.manifest.model:
                raise Rejected(f"expected the model {running.manifest.model}, got {name[:80]!r}")
            request = Request(Verb.INFER, write_head(head), body, self._wanted)
            by, answer = self._supervisor.ask(request, version=version)
            if answer.status == Status.AT_FAULT and by is self._supervisor.trial and self._supervisor.good:
                by, answer = self._ask_good(request, by, answer)
            elif answer.status == Status.AT_FAULT:
                # whose it is, the request's or the model's, nobody can say
                self._note(answer.reason, pause_s=0.0)
            else:
                self._learn(by, answer)
            return _reply(by, answer)
        finally:
            self._room.release()

    def _ask_good(self, request: Request, bad: Running, fault: Answer) -> tuple[Running, Answer]:
        """Have the good one answer what the one on trial could not; if it can, that was not the request's fault."""
        by, answer = self._supervisor.ask(request, but=bad)
        if answer.status == Status.DONE:
            self._supervisor.sideline(bad)
            self._learn(bad, fault)
            self._learn(by, answer)
        return by, answer

    def observe(self, manifest: str, rows: Rows) -> bool:
        """Count what a program has seen that runs the committed model itself; False for another manifest."""
        good = self._supervisor.good
        if good is None or good.digest != manifest:
            return False
        check_rows(rows, good.manifest, digest=manifest)
        with self._lock:
            if self._windows.digest != manifest:
                return False
            self._count(rows)
        return True

    @property
    def _wanted(self) -> int:
        """Which row of the next request is wanted with its inputs: none during a trial, of which nothing is counted."""
        return self._windows.wanted if self._supervisor.trial is None else NO_SAMPLE

    def crashed(self, manifest: str, *, reason: str) -> None:
        """Hear that a program died inside the model."""
        places = [running for running, _ in self._supervisor.places()]
        if manifest in [running.digest for running in places]:
            on_trial = self._supervisor.trial is not None and self._supervisor.trial.digest == manifest
            self._on_trouble(manifest, Kind.FAULT if on_trial else Kind.CRASHED, f"a program ended in it: {reason}")

    # --- the loop

    def _run(self) -> None:
        while not self._stop.is_set():
            self.beats += 1
            pause = self.turn()
            if pause > 0:
                self._news.wait(pause)
                self._news.clear()

    def turn(self) -> float:
        """Start again what is due, ask once if there is something to ask, and return how long to wait then."""
        self._supervisor.mend()
        now = time.monotonic()
        source = self._source
        if source is None or self.running is None or self._due > now:
            self._end_trial()
            return min(max(self._due - now, 0.0), IDLE_S) or IDLE_S
        if self._request is None:
            self._request, self._tries = source.take(), 0
        if self._request is None:
            self._end_trial()
            return IDLE_S
        self._ask(self._request)
        if not (source.paced and self._config.rate):
            # lets a caller have its turn at the worker
            return 0.0001
        step = 1 / self._config.rate
        # after a pause the loop does not run faster to catch up
        self._due = max(self._due + step, now - step)
        return min(max(self._due - time.monotonic(), 0.0), IDLE_S)

    def _ask(self, request: Request) -> None:
        try:
            running, answer = self._supervisor.ask(request._replace(sample=self._wanted), patient=False)
        except (Crashed, Hung) as error:
            self._note(str(error), pause_s=0.0)
            self._tries += 1
            if self._tries == 2:
                self._request = None  # asked twice, and twice the end: somebody else's row may fare better
            return
        except (Unavailable, Rejected) as error:
            self._note(str(error))
            return
        self._request = None
        self._learn(running, answer)

    def _learn(self, running: Running, answer: Answer) -> None:
        """Count an answer, or judge by it."""
        decision = None
        with self._lock:
            trial = self._trial if running is self._supervisor.trial else None
            if answer.status == Status.DONE:
                self.problem, self.source_problem = "", str(answer.said.get("problem", ""))
                rows = answer.rows
                self._clock += self._config.event_step_s * len(rows)
                if trial is not None:
                    self._trial = trial.after(*(row.latency_us for row in rows))
                    self.inferences += len(rows)
                elif running.digest == self._windows.digest:
                    self._count(rows, answer.sample)
            else:
                # a recording has its next row at once, and it may be as bad; lines come when they do
                is_paced = self._source is not None and self._source.paced
                self._note(answer.reason, pause_s=TROUBLE_S if is_paced else 0.0)
            if answer.status == Status.AT_FAULT and trial is not None:
                self._trial, decision = None, Decision(passed=False, reason=self.problem)
        if decision is not None:
            self._on_decision(running.digest, decision)
        else:
            self._end_trial()

    def _count_for(self, running: Running | None) -> None:
        if running is None:
            self._windows.open(None)
        else:
            self._windows.open(running.manifest, running.digest, allowed=running.allowed)

    def _count(self, rows: Rows, sampled: Sampled | None = None) -> None:
        self.inferences += len(rows)
        try:
            self._windows.count(rows, sampled)
        except Rejected as error:
            self._note(str(error))

    def _end_trial(self) -> None:
        """Say the trial's decision, once; what is on trial runs on, uncounted, until somebody acts on it."""
        with self._lock:
            running, trial = self._supervisor.trial, self._trial
            if trial is None or running is None:
                return
            wanted = trial.terms.memory_budget_bytes and trial.done >= trial.terms.inferences
            growth = running.worker.growth_bytes if wanted else 0
            decision = trial.decide(time.monotonic(), growth_bytes=growth)
            if decision is None:
                return
            self.trial_latency_us = trial.latencies.percentile(0.5)
            self._trial = None
        self._on_decision(running.digest, decision)

    def _befallen(self, manifest: str, kind: Kind, reason: str) -> None:
        if kind is Kind.FAULT:
            with self._lock:
                # it is tried anew from the beginning
                self._trial = None
        self._on_trouble(manifest, kind, reason)

    def _note(self, problem: str, *, pause_s: float = TROUBLE_S) -> None:
        if self._stop.is_set():
            return  # of our own making
        now = time.monotonic()
        # between two troubles a row may go well: the same line is not said again for every one
        if problem != self._said or now - self._said_at > SAY_AGAIN_S:
            _log.warning("inference: %s", problem)
            self._said, self._said_at = problem, now
        self.problem = problem
        self._due = max(self._due, time.monotonic() + pause_s)


def _reply(by: Running, answer: Answer) -> Reply:
    # that an input is no number is its sender's affair
    if answer.status in (Status.REFUSED, Status.NO_INPUT):
        raise Rejected(answer.reason)
    status, headers = answer.said.get("status"), answer.said.get("headers")
    if answer.status == Status.DONE and isinstance(status, int) and isinstance(headers, dict):
        return Reply(status, headers, bytes(answer.body), by.digest, answer.rows)
    error = json.dumps({"error": answer.reason}).encode()
    return Reply(500, {"content-type": "application/json"}, error, by.digest)


def _spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(tensor.name, tensor.shape, tensor.dtype)
