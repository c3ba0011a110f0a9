"""An engine on a bench: a worker without a process, one inference per turn, no thread."""

import struct
import threading
from pathlib import Path

from agent.config import Config
from agent.deployment.lifecycle import Kind
from agent.inference.engine import Engine
from agent.inference.feeds import Rows as RecordedRows
from agent.inference.frames import Answer, Request, Status, Verb
from agent.inference.supervisor import Running
from agent.inference.trial import Decision, Terms
from agent.inference.workers import Closed, Crashed
from agent.local.serving_port import UNKNOWN, Rows
from agent.telling.outbox import OutboxFile
from skerry.drift.reference import build_monitor
from skerry.runtimes.session import Signature
from skerry.wire.manifest import Manifest, TensorSpec
from skerry.wire.report import WindowReport, decode_report

TERMS = Terms(inferences=5, latency_budget_ms=1000.0, grace_s=60.0)
WIDTH = 5
MANIFEST = Manifest(
    model="strokes",
    version=1,
    profile="gateway",
    runtime="onnxruntime",
    model_file="m",
    golden_file="g",
    gate_file="r",
    inputs=(TensorSpec("window", (1, 2), "float32"),),
    outputs=(),
    labels=("rest", "lift"),
    tolerances={},
    observe={"features": "f", "probabilities": "p"},
    monitor=build_monitor(
        {"mean": [index / 50 for index in range(100)]},
        categories={"prediction": ["rest", "lift"] * 50},
        confidence=[0.5 + index / 200 for index in range(100)],
        window_n=10,
    ).to_json(),
    files=(),
    latency_budget_ms=1.0,
    created="",
)


def row(*, truth: float = 0.0) -> bytes:
    """Return a row as a worker counts it: one feature, prediction, confidence, truth, latency."""
    return struct.pack(f"<{WIDTH}d", 0.5, 0, 0.75, truth, 100.0)


class Stub:
    """A worker without a process."""

    signature = Signature(inputs=(), outputs=())

    def __init__(self) -> None:
        self.ended = ""
        self.growth_bytes = 0
        self.status = Status.DONE
        self.reason = ""
        self.ends = 0
        self.asked: list[Request] = []

    def ask(self, request: Request, *, patience_s: float) -> Answer:
        assert patience_s > 0
        if self.ended:
            raise Closed("it was closed")
        self.asked.append(request)
        if self.ends:
            self.ends -= 1
            raise Crashed("a crash of the runtime by SIGSEGV")
        if self.status != Status.DONE:
            return Answer(self.status, {"reason": self.reason})
        if request.verb == Verb.INFER:
            said = {"status": 200, "headers": {"content-type": "text/plain"}}
            return Answer(Status.DONE, said, Rows(WIDTH, row(truth=UNKNOWN)), b"answer")
        return Answer(Status.DONE, rows=Rows(WIDTH, row()))

    def close(self, *, now: bool = False) -> None:  # noqa: ARG002 -- the port's
        self.ended = "it was closed"


class Bench:
    """An engine on a bench: one inference per turn, no thread."""

    def __init__(self, folder: Path, *, event_step_s: float = 60.0) -> None:
        self.stub = Stub()
        self.started: list[Stub] = []
        self.outbox = OutboxFile(folder / "outbox.db")
        self.decisions: list[Decision] = []
        self.troubles: list[tuple[Kind, str]] = []
        self.decided = threading.Event()
        self.engine = Engine(
            config=Config(event_step_s=event_step_s, save_rows=3, rate=0.0),
            source=RecordedRows(),
            outbox=self.outbox,
            on_decision=lambda _manifest, decision: self._decide(decision),
            on_trouble=lambda _manifest, kind, reason: self.troubles.append((kind, reason)),
        )

    def _decide(self, decision: Decision) -> None:
        self.decisions.append(decision)
        self.decided.set()

    def infer(self, count: int) -> None:
        for _ in range(count):
            self.engine._due = 0.0
            self.engine.turn()

    def running(self, digest: str = "ab" * 32) -> Running:
        def reopen() -> Stub:
            self.started.append(Stub())
            return self.started[-1]

        self.stub = Stub()
        return Running(worker=self.stub, manifest=MANIFEST, digest=digest, reopen=reopen)

    def windows(self) -> list[WindowReport]:
        rows = self.outbox._db.execute("select body from outbox where kind = 'window' order by sequence").fetchall()
        return [decode_report(body) for (body,) in rows]
