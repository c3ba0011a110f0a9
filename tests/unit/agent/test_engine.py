"""The inference loop with a model of one line: trials, windows, and a disk that refuses."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.config import Config
from agent.engine import Engine, Running
from agent.outbox import OutboxFile
from agent.source import Sample
from agent.trial import Decision, Terms
from skerry.drift.reference import build_monitor
from skerry.errors import Broken, Rejected
from skerry.wire.manifest import Manifest, TensorSpec
from skerry.wire.messages import Ack
from skerry.wire.report import WindowReport, decode_report

TERMS = Terms(inferences=5, latency_budget_ms=1000.0, grace_s=60.0)
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


class Stub:
    """A model and a source at once."""

    def __init__(self) -> None:
        self.bad = False
        self.value = 0.0

    def next(self) -> Sample:
        return Sample(values={"X": np.full((1, 2), self.value, np.float32)}, truth=0)

    def run(self, _inputs: dict[str, Any]) -> dict[str, Any]:
        if self.bad:
            raise Rejected("model: it broke")
        return {"p": np.array([[0.75, 0.25]], np.float32), "f": np.array([[0.5]], np.float32)}

    def close(self) -> None:
        pass


class Bench:
    """An engine on a bench: one inference per call, no thread."""

    def __init__(self, folder: Path, *, event_step_s: float = 60.0) -> None:
        self.stub = Stub()
        self.outbox = OutboxFile(folder / "outbox.db")
        self.decisions: list[Decision] = []
        self.decided = threading.Event()
        self.engine = Engine(
            config=Config(event_step_s=event_step_s, save_rows=3),
            source=self.stub,
            outbox=self.outbox,
            on_decision=lambda _manifest, decision: self._decide(decision),
        )

    def _decide(self, decision: Decision) -> None:
        self.decisions.append(decision)
        self.decided.set()

    def infer(self, count: int) -> None:
        for _ in range(count):
            decision = self.engine._infer_once()
            if decision is not None:
                self.decisions.append(decision)

    def running(self, digest: str = "ab" * 32) -> Running:
        return Running(session=self.stub, manifest=MANIFEST, digest=digest)

    def windows(self) -> list[WindowReport]:
        rows = self.outbox._db.execute("select body from outbox where kind = 'window' order by sequence").fetchall()
        return [decode_report(body) for (body,) in rows]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """An engine that has nothing to run yet."""
    return Bench(tmp_path)


def test_windows_of_what_is_committed_are_counted_and_numbered(bench: Bench) -> None:
    bench.engine.switch(bench.running())
    bench.infer(25)

    windows = bench.windows()
    assert [(each.window, each.rows, each.correct) for each in windows] == [(0, 10, 10), (1, 10, 10)]
    assert windows[1].end - windows[0].end == 600


def test_a_trial_is_not_counted_and_is_decided_once(bench: Bench) -> None:
    bench.engine.switch(bench.running(), trial=TERMS)
    bench.infer(30)

    assert bench.decisions == [Decision(passed=True)]
    assert bench.windows() == []
    bench.engine.commit()
    bench.infer(10)
    assert [each.window for each in bench.windows()] == [0]


def test_a_model_that_breaks_on_trial_does_not_pass(bench: Bench) -> None:
    bench.stub.bad = True
    bench.engine.switch(bench.running(), trial=TERMS)
    bench.infer(1)

    assert bench.decisions == [Decision(passed=False, reason="model: it broke")]


def test_an_input_that_is_no_number_does_not_end_a_trial(bench: Bench) -> None:
    bench.engine.switch(bench.running(), trial=TERMS)
    bench.stub.bad = True
    bench.stub.value = np.nan
    bench.infer(3)
    assert bench.decisions == []
    assert "expected finite values" in bench.engine.problem

    bench.stub.bad, bench.stub.value = False, 0.0
    bench.infer(5)

    assert bench.decisions == [Decision(passed=True)]


def test_a_model_of_two_inputs_gets_both_and_a_source_without_one_ends_no_trial(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []
    run = bench.stub.run

    def watched(inputs: dict[str, Any]) -> dict[str, Any]:
        given.append(inputs)
        return run(inputs)

    monkeypatch.setattr(bench.stub, "run", watched)
    inputs = (TensorSpec("window", (1, 2), "float32"), TensorSpec("rate", (1,), "float32"))
    two = replace(bench.running(), manifest=replace(MANIFEST, inputs=inputs))
    bench.engine.switch(two, trial=TERMS)
    bench.infer(3)
    assert (given, bench.decisions) == ([], [])
    assert bench.engine.problem == "input: expected an array for each input, window, rate too, got X: add it"

    row = {"window": np.zeros((1, 2), np.float32), "rate": np.ones(1, np.float32)}
    monkeypatch.setattr(bench.stub, "next", lambda: Sample(values=row, truth=None))
    bench.infer(5)
    assert all(list(each) == ["window", "rate"] for each in given)
    assert (bench.decisions, bench.engine.problem) == ([Decision(passed=True)], "")


def test_on_the_real_clock_every_window_has_its_own_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, event_step_s=0.0)
    bench.engine.switch(bench.running())
    for now in (1000.0, 2000.0):
        monkeypatch.setattr("agent.engine.time.time", lambda now=now: now)
        bench.infer(10)

    times = bench.outbox._db.execute("select event_time from outbox order by sequence").fetchall()
    assert times == [(1000.0,), (2000.0,)]


def test_a_trial_that_is_rolled_back_leaves_the_open_window_of_the_last_good_one(bench: Bench) -> None:
    bench.engine.switch(bench.running())
    bench.infer(17)
    bench.engine.switch(bench.running("cd" * 32), trial=TERMS)
    bench.infer(4)

    bench.engine.switch(bench.running())
    bench.infer(3)

    assert [(each.window, each.rows) for each in bench.windows()] == [(0, 10), (1, 10)]


def test_a_disk_that_refuses_costs_rows_and_no_window(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.engine.switch(bench.running())
    bench.infer(9)

    def refuse(*_: object, **__: object) -> int:
        raise Broken("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(bench.outbox, "close_window", refuse)
        bench.infer(5)
        assert bench.engine.problem == "disk full"
    bench.infer(11)

    assert [(each.window, each.rows) for each in bench.windows()] == [(0, 10), (1, 10)]
    assert bench.engine.problem == ""


def test_the_event_clock_goes_on_after_a_restart(bench: Bench, tmp_path: Path) -> None:
    bench.engine.switch(bench.running())
    bench.infer(10)
    stood = bench.engine.event_time
    bench.outbox.close()

    again = Bench(tmp_path)
    assert again.engine.event_time == stood
    assert again.outbox.acknowledge(Ack(epoch=again.outbox.epoch, up_to=1))


def test_the_loop_infers_until_it_is_stopped(bench: Bench) -> None:
    bench.engine.switch(bench.running(), trial=TERMS)
    bench.engine.start()

    assert bench.decided.wait(5)
    assert bench.engine.alive
    bench.engine.stop()
    assert not bench.engine.alive
