"""Samples on their way through the agent: asked for with a request, handed back by a worker, counted and put aside."""

import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.config import Config
from agent.inference.frames import (
    NO_SAMPLE,
    Answer,
    Request,
    Sampled,
    Verb,
    receive_answer,
    receive_request,
    send_answer,
    send_request,
)
from agent.inference.supervisor import Running
from agent.inference.windows import Windows
from agent.local.serving_port import Rows
from agent.telling.outbox import OutboxFile
from skerry.errors import Broken
from skerry.wire.manifest import NO_SAMPLES, SamplePolicy
from skerry.wire.sample import Sample, decode_sample
from tests.unit.agent.engine_bench import MANIFEST, TERMS, WIDTH, Bench, Stub, row

POLICY = SamplePolicy(rows_per_window=2, inputs=("window",), max_bytes=8)
ALLOWING = replace(MANIFEST, samples=POLICY)
DIGEST = "ab" * 32


class Handing(Stub):
    """A worker that hands back what is wanted: the input of its n-th row is n, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted: list[int] = []

    def ask(self, request: Request, *, patience_s: float) -> Answer:
        answer = super().ask(request, patience_s=patience_s)
        self.wanted.append(request.sample)
        if request.sample >= len(answer.rows):
            return answer
        number = len(self.asked) - 1
        return replace(answer, sample=Sampled(request.sample, {"window": struct.pack("<2f", number, number)}))


def samples(outbox: OutboxFile) -> list[Sample]:
    rows = outbox._db.execute("select body from outbox where kind = 'sample' order by sequence").fetchall()
    return [decode_sample(body) for (body,) in rows]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """An engine without a thread."""
    made = Bench(tmp_path)
    yield made
    made.outbox.close()


def runs(bench: Bench, *, allowed: Callable[[], SamplePolicy] = lambda: POLICY) -> Running:
    running = bench.running()
    bench.stub = Handing()
    return replace(running, worker=bench.stub, manifest=ALLOWING, allowed=allowed)


def asked(bench: Bench) -> list[bool]:
    assert isinstance(bench.stub, Handing)
    return [each == 0 for each in bench.stub.wanted]


def test_so_many_rows_of_each_window_are_put_aside_and_no_other_inputs_are_fetched(bench: Bench) -> None:
    bench.engine.switch(runs(bench))
    bench.infer(30)

    kept = samples(bench.outbox)
    assert [each.window for each in kept] == [0, 0, 1, 1, 2, 2]
    assert {each.manifest for each in kept} == {DIGEST[:16]}
    # each is of the very row that it says: which ones they are is drawn for each window anew
    numbers = [int(struct.unpack("<2f", each.inputs["window"])[0]) for each in kept]
    assert [number // 10 for number in numbers] == [0, 0, 1, 1, 2, 2]
    assert asked(bench) == [number in numbers for number in range(30)]


def test_a_batch_hands_back_the_row_that_was_drawn(tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db")
    windows = Windows(config=Config(), outbox=outbox, event_time=lambda: 1.0, on_window=lambda: None)
    windows.open(ALLOWING, DIGEST, allowed=lambda: POLICY)
    first = windows.wanted

    batch = Rows(WIDTH, row() * 10)
    windows.count(batch, Sampled(first, {"window": b"12345678"}))
    # the other one drawn came without its inputs, and its window is over
    assert [(each.window, each.inputs) for each in samples(outbox)] == [(0, {"window": b"12345678"})]
    outbox.close()


def test_a_row_that_came_without_its_inputs_leaves_its_turn_to_the_next_of_its_window(tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db")
    windows = Windows(config=Config(), outbox=outbox, event_time=lambda: 1.0, on_window=lambda: None)
    windows.open(ALLOWING, DIGEST, allowed=lambda: POLICY)
    windows.count(Rows(WIDTH, row() * (windows.wanted + 1)))

    assert (windows.wanted, samples(outbox)) == (0, [])
    windows.count(Rows(WIDTH, row()), Sampled(0, {"window": b"12345678"}))
    assert len(samples(outbox)) == 1
    outbox.close()


@pytest.mark.parametrize(
    ("manifest", "allowed"),
    [
        (ALLOWING, NO_SAMPLES),  # signed online, or the offline keys said nothing of it
        (MANIFEST, POLICY),  # the manifest has none
        (ALLOWING, SamplePolicy(2, ("another",), 8)),
        (ALLOWING, SamplePolicy(2, ("window",), 7)),
    ],
)
def test_nothing_is_kept_that_not_both_allow(tmp_path: Path, manifest: object, allowed: SamplePolicy) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db")
    windows = Windows(config=Config(), outbox=outbox, event_time=lambda: 1.0, on_window=lambda: None)
    windows.open(manifest, DIGEST, allowed=lambda: allowed)  # type: ignore[arg-type]
    for _ in range(20):
        windows.count(Rows(WIDTH, row()), Sampled(0, {"window": b"12345678"}))
    assert samples(outbox) == []
    outbox.close()


@pytest.mark.parametrize("config", [Config(sample_rows=0), Config(sample_bytes=7)])
def test_the_owner_may_allow_less(tmp_path: Path, config: Config) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db")
    windows = Windows(config=config, outbox=outbox, event_time=lambda: 1.0, on_window=lambda: None)
    windows.open(ALLOWING, DIGEST, allowed=lambda: POLICY)
    for _ in range(20):
        windows.count(Rows(WIDTH, row()), Sampled(0, {"window": b"12345678"}))
    assert samples(outbox) == []
    outbox.close()


def test_what_the_offline_keys_take_back_ends_with_the_window(bench: Bench) -> None:
    policies = [POLICY, NO_SAMPLES]
    bench.engine.switch(runs(bench, allowed=lambda: policies.pop(0) if policies else NO_SAMPLES))
    bench.infer(30)
    assert [each.window for each in samples(bench.outbox)] == [0, 0]


def test_nothing_is_asked_for_during_a_trial(bench: Bench) -> None:
    bench.engine.switch(runs(bench), trial=TERMS)
    bench.infer(5)
    assert not any(asked(bench))


def test_a_caller_gets_its_own_answer_and_no_input(bench: Bench) -> None:
    bench.engine.switch(runs(bench))
    replies = [bench.engine.infer("strokes", "", head={}, body=b"") for _ in range(10)]
    assert {reply.body for reply in replies} == {b"answer"}
    assert [each.window for each in samples(bench.outbox)] == [0, 0]


def test_a_power_cut_has_no_row_taken_twice(tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db")
    for _ in range(4):
        # what is not on the disk is forgotten each time
        windows = Windows(config=Config(save_rows=1000), outbox=outbox, event_time=lambda: 1.0, on_window=lambda: None)
        windows.open(ALLOWING, DIGEST, allowed=lambda: POLICY)
        if windows.wanted == NO_SAMPLE:
            break
        windows.count(Rows(WIDTH, row() * windows.wanted))
        windows.count(Rows(WIDTH, row()), Sampled(0, {"window": b"12345678"}))
    assert [each.window for each in samples(outbox)][:3] == [0, 0]
    outbox.close()


# -- the frames


def exchanged(answer: Answer) -> Answer:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send_answer(theirs, answer)
        return receive_answer(ours, deadline=time.monotonic() + 5)


def test_inputs_travel_behind_the_body() -> None:
    inputs = {"a": b"12", "b": b""}
    got = exchanged(Answer(said={"status": 200}, rows=Rows(WIDTH, row()), body=b"answer", sample=Sampled(0, inputs)))
    assert (bytes(got.body), got.sample and (got.sample.row, got.sample.inputs)) == (b"answer", (0, inputs))
    assert exchanged(Answer(body=b"answer")).sample is None


def test_a_request_says_which_row_is_wanted() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for sample in (0, 7, NO_SAMPLE):
            send_request(ours, Request(Verb.INFER, b"{}", b"body", sample))
            got = receive_request(theirs)
            assert got is not None
            assert (got.head, bytes(got.body), got.sample) == (b"{}", b"body", sample)


@pytest.mark.parametrize("said", [[0], [0, {"a": 7}], [0, {"a": -1, "b": 3}], [0, [2]], 3, [None, {}]])
def test_lengths_that_do_not_fit_the_body_are_broken(said: object) -> None:
    with pytest.raises(Broken, match="inputs"):
        exchanged(Answer(said={"sample": said}, body=b"12"))
