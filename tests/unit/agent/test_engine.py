"""The inference loop with a worker of one line: trials, windows, callers, and a disk that refuses."""

import math
import struct
import threading
from pathlib import Path

import pytest

from agent.deployment.lifecycle import Kind
from agent.inference.engine import MAX_CALLERS
from agent.inference.feeds import Lines
from agent.inference.frames import Answer, Request, Status, Verb
from agent.inference.trial import Decision, Terms
from agent.local.serving_port import Rows
from skerry.errors import Broken, Rejected, Unavailable
from skerry.wire.messages import Ack
from tests.unit.agent.engine_bench import MANIFEST, TERMS, WIDTH, Bench, row


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


def test_a_model_that_is_at_fault_on_trial_does_not_pass(bench: Bench) -> None:
    bench.engine.switch(bench.running(), trial=TERMS)
    bench.stub.status, bench.stub.reason = Status.AT_FAULT, "model: it broke"
    bench.infer(1)

    assert bench.decisions == [Decision(passed=False, reason="model: it broke")]


def test_a_trial_that_takes_too_much_memory_does_not_pass(bench: Bench) -> None:
    for growth, passed in ((1 << 20, True), ((1 << 20) + 1, False)):
        bench.decisions.clear()
        terms = Terms(inferences=5, latency_budget_ms=1000.0, grace_s=60.0, memory_budget_bytes=1 << 20)
        bench.engine.switch(bench.running(), trial=terms)
        bench.stub.growth_bytes = growth
        bench.infer(5)
        assert [decision.passed for decision in bench.decisions] == [passed]


def test_what_is_no_input_does_not_end_a_trial(bench: Bench) -> None:
    bench.engine.switch(bench.running(), trial=TERMS)
    bench.stub.status, bench.stub.reason = Status.NO_INPUT, "input: expected finite values, got NaN or infinity"
    bench.infer(3)
    assert bench.decisions == []
    assert "expected finite values" in bench.engine.problem

    bench.stub.status = Status.DONE
    bench.infer(5)

    assert bench.decisions == [Decision(passed=True)]
    assert bench.engine.problem == ""


def test_the_rows_of_a_recording_are_asked_for_one_after_the_other_across_a_swap(bench: Bench) -> None:
    bench.engine.switch(bench.running())
    first = bench.stub
    bench.infer(3)
    bench.engine.switch(bench.running("cd" * 32))
    bench.infer(2)

    numbers = [int.from_bytes(request.body) for request in (*first.asked, *bench.stub.asked)]
    assert numbers == [0, 1, 2, 3, 4]
    assert first.ended


# --- crashes


def test_a_row_that_ends_what_is_on_trial_is_answered_by_the_good_one_and_told_once(bench: Bench) -> None:
    bench.engine.switch(bench.running())
    good = bench.stub
    bench.engine.switch(bench.running("cd" * 32), trial=TERMS)
    bench.stub.ends = 99

    bench.infer(3)

    assert bench.troubles == [(Kind.FAULT, "a crash of the runtime by SIGSEGV")]
    assert (len(bench.stub.asked), len(good.asked)) == (1, 3)
    assert (bench.engine.inferences, bench.decisions, bench.started) == (3, [], [])


def test_a_caller_is_answered_by_the_good_one_when_the_one_on_trial_ends_or_is_at_fault(bench: Bench) -> None:
    bench.engine.switch(bench.running())
    for trouble in ("ends", "at fault"):
        bench.engine.switch(bench.running("cd" * 32), trial=TERMS)
        bench.stub.ends = trouble == "ends"
        bench.stub.status = Status.AT_FAULT if trouble == "at fault" else Status.DONE

        reply = bench.engine.infer("strokes", "", head={}, body=b"{}")

        assert (reply.status, reply.manifest, reply.body) == (200, "ab" * 32, b"answer")
    assert [kind for kind, _ in bench.troubles] == [Kind.FAULT]
    assert [decision.passed for decision in bench.decisions] == [False]


def test_a_request_that_neither_of_them_can_answer_says_nothing_about_the_one_on_trial(bench: Bench) -> None:
    bench.engine.switch(bench.running())
    bench.stub.status, bench.stub.reason = Status.AT_FAULT, "an index out of range"
    bench.engine.switch(bench.running("cd" * 32), trial=TERMS)
    bench.stub.status = Status.AT_FAULT

    reply = bench.engine.infer("strokes", "", head={}, body=b"{}")

    assert (reply.status, reply.body) == (500, b'{"error": "an index out of range"}')
    assert (bench.decisions, bench.troubles) == ([], [])
    bench.stub.status = Status.DONE
    assert bench.engine.infer("strokes", "", head={}, body=b"{}").manifest == "cd" * 32


def test_an_input_that_is_no_number_is_the_callers_affair(bench: Bench) -> None:
    bench.engine.switch(bench.running())
    bench.stub.status, bench.stub.reason = Status.NO_INPUT, "input: expected finite values, got NaN"
    with pytest.raises(Rejected, match="expected finite values"):
        bench.engine.infer("strokes", "", head={}, body=b"{}")


def test_what_is_committed_is_started_again_and_asked_the_same_once_more(bench: Bench) -> None:
    bench.engine.switch(bench.running())
    bench.stub.ends = 1
    bench.infer(1)
    assert (bench.engine.word, bench.engine.inferences) == ("restarting", 0)

    bench.infer(1)

    assert bench.started[0].asked == bench.stub.asked
    assert (bench.engine.word, bench.engine.inferences, bench.engine.crashes, bench.troubles) == ("up", 1, 1, [])


def test_three_crashes_of_what_is_committed_are_told_and_a_row_that_ends_it_twice_is_passed_over(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("agent.inference.supervisor.time.monotonic", lambda: now[0])
    bench.engine.switch(bench.running())
    bench.stub.ends = 1
    bench.infer(1)
    for number, pause in enumerate((0.0, 1.0)):
        # it is up again, and ends on whatever it is asked
        now[0] += pause
        bench.engine._supervisor.mend()
        bench.started[number].ends = 1
        bench.infer(1)

    assert [request.body[-1] for each in (bench.stub, *bench.started) for request in each.asked] == [0, 0, 1]
    assert bench.troubles == [(Kind.CRASHED, "a crash of the runtime by SIGSEGV")]
    now[0] += 1.9
    bench.infer(1)
    assert len(bench.started) == 2
    now[0] += 0.2
    bench.infer(1)
    assert (len(bench.started), bench.engine.word) == (3, "up")


def test_a_worker_that_ends_between_two_requests_is_noticed(bench: Bench) -> None:
    bench.engine.switch(bench.running())
    bench.stub.ended = "a crash of the runtime by SIGKILL"

    bench.infer(1)

    assert (bench.engine.crashes, bench.engine.word, len(bench.started)) == (1, "up", 1)


# --- callers


def test_a_version_that_runs_can_be_asked_for_and_another_is_refused(bench: Bench) -> None:
    with pytest.raises(Unavailable, match="got none yet"):
        bench.engine.infer("strokes", "", head={}, body=b"")
    bench.engine.switch(bench.running())

    assert bench.engine.infer("strokes", "1", head={}, body=b"").status == 200
    for name, version in (("strokes", "2"), ("waves", "")):
        with pytest.raises(Rejected, match="expected"):
            bench.engine.infer(name, version, head={}, body=b"")
    (served,) = bench.engine.serving()
    assert (served.name, served.version, served.manifest, served.ready) == ("strokes", "1", "ab" * 32, True)
    assert (served.stateful, served.inputs) == (False, MANIFEST.inputs)


def test_only_so_many_callers_wait(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.engine.switch(bench.running())
    waiting, go = threading.Semaphore(0), threading.Event()
    ask = bench.stub.ask

    def slow(request: Request, *, patience_s: float) -> Answer:
        waiting.release()
        go.wait(20)
        return ask(request, patience_s=patience_s)

    monkeypatch.setattr(bench.stub, "ask", slow)
    replies: list[int] = []
    callers = [
        threading.Thread(target=lambda: replies.append(bench.engine.infer("strokes", "", head={}, body=b"").status))
        for _ in range(MAX_CALLERS)
    ]
    for caller in callers:
        caller.start()
    for _ in callers:
        assert waiting.acquire(timeout=20)

    with pytest.raises(Unavailable, match="at most 64 requests"):
        bench.engine.infer("strokes", "", head={}, body=b"")
    go.set()
    for caller in callers:
        caller.join(20)
    assert replies == [200] * MAX_CALLERS


def test_rows_of_a_program_are_counted_if_they_are_of_what_is_committed(bench: Bench) -> None:
    bench.engine.switch(bench.running())

    assert bench.engine.observe("ab" * 32, Rows(WIDTH, row() * 12))
    assert not bench.engine.observe("cd" * 32, Rows(WIDTH, row()))
    wrong = [struct.pack("<5d", 0, *each) for each in ((9, 0.5, 0, 1), (0, 0.5, 0, math.nan), (0, 0.5, 0, math.inf))]
    for rows in (Rows(WIDTH + 1, bytes(8 * (WIDTH + 1))), *(Rows(WIDTH, each) for each in wrong)):
        with pytest.raises(Rejected):
            bench.engine.observe("ab" * 32, rows)

    assert [(each.window, each.rows, each.correct) for each in bench.windows()] == [(0, 10, 10)]
    assert bench.engine.inferences == 12


def test_rows_of_the_good_one_are_counted_while_another_is_on_trial(bench: Bench) -> None:
    bench.engine.switch(bench.running())
    bench.engine.switch(bench.running("cd" * 32), trial=TERMS)

    assert bench.engine.observe("ab" * 32, Rows(WIDTH, row() * 10))

    assert [each.rows for each in bench.windows()] == [10]


def test_a_program_that_ended_inside_the_model_is_told(bench: Bench) -> None:
    bench.engine.switch(bench.running())
    bench.engine.crashed("cd" * 32, reason="another")
    bench.engine.crashed("ab" * 32, reason="SIGSEGV")
    bench.engine.switch(bench.running("cd" * 32), trial=TERMS)
    bench.engine.crashed("cd" * 32, reason="SIGSEGV")

    assert bench.troubles == [(kind, "a program ended in it: SIGSEGV") for kind in (Kind.CRASHED, Kind.FAULT)]


def test_lines_are_taken_when_they_arrive_and_the_oldest_go_first(tmp_path: Path) -> None:
    bench, lines = Bench(tmp_path), Lines()
    bench.engine._source = lines
    bench.engine.switch(bench.running())
    bench.infer(1)
    assert bench.stub.asked == []
    for number in range(300):
        lines.offer(b"%d" % number)

    bench.infer(300)

    assert [bytes(request.body) for request in bench.stub.asked] == [b"%d" % number for number in range(44, 300)]
    assert lines.dropped == 44


def test_a_bad_line_holds_up_none_of_the_good_ones_behind_it(tmp_path: Path) -> None:
    bench, lines = Bench(tmp_path), Lines()
    bench.engine._source = lines
    bench.engine.switch(bench.running())
    bench.stub.status, bench.stub.reason = Status.NO_INPUT, "input: expected a line of JSON"
    for _ in range(3):
        lines.offer(b"x")
        bench.engine.turn()
    assert len(bench.stub.asked) == 3
    assert "expected a line of JSON" in bench.engine.problem


# --- time, disk


def test_on_the_real_clock_every_window_has_its_own_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, event_step_s=0.0)
    bench.engine.switch(bench.running())
    for now in (1000.0, 2000.0):
        monkeypatch.setattr("agent.inference.engine.time.time", lambda now=now: now)
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


def test_a_disk_that_refuses_costs_no_row_and_no_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refuse(*_: object, **__: object) -> int:
        asked.append("asked")
        raise Broken("disk full")

    bench.engine.switch(bench.running())
    bench.infer(9)
    with monkeypatch.context() as patch:
        for name in ("close_window", "save_open"):
            patch.setattr(bench.outbox, name, refuse)
        bench.infer(50)
        assert (bench.engine.unkept, bench.engine.problem) == ("disk full", "")
        # it is spared for a while, and so are those who count
        assert asked == ["asked"]
        assert bench.windows() == []
    bench.engine._windows._held._again = 0.0
    bench.infer(11)

    assert [(each.window, each.rows) for each in bench.windows()] == [(number, 10) for number in range(7)]
    assert bench.engine.unkept == ""


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


def test_what_stopping_leaves_unanswered_is_no_trouble(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.engine.switch(bench.running())
    bench.engine.stop()
    bench.engine._ask(Request(Verb.NEXT))
    assert (bench.engine.problem, caplog.messages) == ("", [])
