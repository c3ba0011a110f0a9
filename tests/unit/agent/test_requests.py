"""Remote requests on the device: done once, answered once, never when they may not be."""

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agent.config import Config
from agent.remote.again import find_window
from agent.remote.answered import KEPT, AnsweredRing
from agent.remote.inbox import MAX_WAITING, Requests
from agent.remote.journal import Journal
from agent.remote.verbs import make_verbs, run_self_test
from agent.telling.outbox import OutboxFile
from skerry.errors import Broken, Rejected, Unavailable
from skerry.wire import codec
from skerry.wire.messages import Ack, Answer, Request
from skerry.wire.report import WindowReport, encode_report
from skerry.wire.requests import (
    COLLECT_LOGS,
    RESEND_WINDOW,
    RESTART_MODEL,
    SELF_TEST,
    VERBS,
)

NOW = 1_000_000.0


class Bench:
    """Requests over verbs that count, and a broker that can be away."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: list[str] = []
        self.said: list[Answer] = []
        self.away = False
        self.hold = threading.Event()
        self.hold.set()
        self.fault: Exception | None = None
        self.now = NOW
        self.running: list[Requests] = []

    def start(self, *, allowed: tuple[str, ...] = VERBS, problem: str = "") -> Requests:
        requests = Requests(
            self.folder / "requests",
            verbs=dict.fromkeys(VERBS, self._do),
            allowed=allowed,
            say=self._say,
            now=lambda: self.now,
            problem=problem,
        )
        requests.start()
        self.running.append(requests)
        return requests

    def has_said(self, count: int) -> bool:
        return len(self.said) == count

    def _do(self, args: Any) -> dict[str, Any]:
        self.done.append(str(dict(args)))
        self.hold.wait(20)
        if self.fault is not None:
            raise self.fault
        return {"count": len(self.done), "ok": True, "kept": 1}

    def _say(self, answer: Answer) -> None:
        if self.away:
            raise Unavailable("away")
        self.said.append(answer)

    def wait(self, what: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 10
        while not what():
            assert time.monotonic() < deadline, f"said {self.said}, did {self.done}"
            time.sleep(0.005)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.hold.set()
    for each in bench.running:
        each.stop()


def asked(name: str = "aaaaaaaa", verb: str = SELF_TEST, **fields: Any) -> bytes:
    return codec.encode(Request(id=name, verb=verb, asked_by="the test", **fields))


def test_where_nothing_can_be_kept_what_only_looks_is_done_and_the_rest_refused(bench: Bench) -> None:
    ring = AnsweredRing(bench.folder / "requests")
    ring.keep(ring.new(codec.decode(Request, asked("bbbbbbbb", RESTART_MODEL))))

    requests = bench.start(problem="the disk is read-only")
    for name, verb in (("aaaaaaaa", SELF_TEST), ("cccccccc", COLLECT_LOGS), ("dddddddd", RESTART_MODEL)):
        requests.offer(asked(name, verb))
    requests.offer(asked("aaaaaaaa", SELF_TEST))
    bench.wait(lambda: len({each.id for each in bench.said}) == 3)

    # what is kept from before waits for the disk
    assert len(bench.done) == 2
    assert {each.id: each.ok for each in bench.said} == {"aaaaaaaa": True, "cccccccc": True, "dddddddd": False}
    refused = next(each for each in bench.said if not each.ok)
    assert refused.result["reason"] == f"{RESTART_MODEL}: the disk is read-only"
    assert [each.request.id for each in AnsweredRing(bench.folder / "requests").at("waiting")] == ["bbbbbbbb"]


def test_a_request_is_done_and_answered_once_however_often_it_comes(bench: Bench) -> None:
    requests = bench.start()
    requests.offer(asked())
    bench.wait(lambda: len(bench.said) == 1)
    requests.offer(asked())
    bench.wait(lambda: len(bench.said) == 2)

    assert bench.done == ["{}"]
    assert bench.said[0] == bench.said[1]
    assert bench.said[0].ok
    assert bench.said[0].result["count"] == 1


def test_after_a_restart_it_has_the_same_answer_and_is_not_done_again(bench: Bench) -> None:
    first = bench.start()
    first.offer(asked())
    bench.wait(lambda: len(bench.said) == 1)
    first.stop()

    bench.start().offer(asked())
    bench.wait(lambda: len(bench.said) == 2)

    assert len(bench.done) == 1
    assert bench.said[0] == bench.said[1]


def test_an_answer_that_found_no_connection_is_said_when_there_is_one(bench: Bench) -> None:
    bench.away = True
    first = bench.start()
    first.offer(asked())
    bench.wait(lambda: bench.done)
    first.stop()
    bench.away = False

    bench.start()

    bench.wait(lambda: len(bench.said) == 1)
    assert len(bench.done) == 1


def test_what_the_agent_was_doing_when_it_ended_is_not_done_twice(bench: Bench) -> None:
    first = bench.start()
    bench.hold.clear()
    first.offer(asked())
    bench.wait(lambda: bench.done)
    # the power goes: what is on the disk now is what the next start finds
    second = Requests(
        bench.folder / "requests", verbs=dict.fromkeys(VERBS, bench._do), allowed=VERBS, say=bench._say, now=lambda: NOW
    )
    second.start()
    bench.running.append(second)

    bench.wait(lambda: len(bench.said) == 1)
    assert not bench.said[0].ok
    assert "nothing is done twice" in bench.said[0].result["reason"]
    assert len(bench.done) == 1


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"expires": NOW - 1}, "expected it by"),
        ({"verb": "open-shell"}, "expected one of collect-logs"),
        ({"verb": COLLECT_LOGS, "args": {"lines": 0}}, "expected a whole number from 1"),
        ({"verb": COLLECT_LOGS, "args": {"path": "/etc/shadow"}}, "expected lines, got path"),
        ({"verb": RESEND_WINDOW}, "either sequence or number"),
        ({"verb": RESTART_MODEL, "args": {"component": "../x"}}, "expected a component's name, got '../x'"),
        ({"verb": RESTART_MODEL, "args": {"component": ""}}, "leave it out for the one model"),
        ({"verb": RESTART_MODEL, "args": {"component": 7}}, "expected a component's name, got '7'"),
        ({"verb": RESTART_MODEL, "args": {"component": "agent"}}, "got the agent itself"),
        ({"verb": SELF_TEST, "args": {"component": "lamps"}}, "expected no arguments, got component"),
        ({"only_repeat": True}, "nothing was done"),
    ],
)
def test_what_may_not_be_done_is_refused(bench: Bench, fields: dict[str, Any], reason: str) -> None:
    bench.start().offer(asked(**fields))

    bench.wait(lambda: len(bench.said) == 1)
    assert (bench.said[0].ok, bench.done) == (False, [])
    assert reason in bench.said[0].result["reason"]


def test_the_owner_narrows_what_may_be_asked(bench: Bench) -> None:
    requests = bench.start(allowed=(COLLECT_LOGS,))
    requests.offer(asked("aaaaaaaa", RESTART_MODEL))
    requests.offer(asked("bbbbbbbb", COLLECT_LOGS))

    bench.wait(lambda: len(bench.said) == 2)
    by_id = {each.id: each for each in bench.said}
    assert "this device's owner allows (collect-logs)" in by_id["aaaaaaaa"].result["reason"]
    assert by_id["bbbbbbbb"].ok
    with pytest.raises(ValueError, match="requests: expected some of"):
        Config(requests=("open-shell",))


def test_an_answer_is_repeated_also_after_the_requests_time(bench: Bench) -> None:
    requests = bench.start()
    requests.offer(asked(expires=NOW + 5))
    bench.wait(lambda: len(bench.said) == 1)
    bench.now = NOW + 100

    requests.offer(asked(expires=NOW + 5, only_repeat=True))

    bench.wait(lambda: len(bench.said) == 2)
    assert bench.said[0] == bench.said[1]


def test_one_that_waited_behind_another_beyond_its_time_is_not_done(bench: Bench) -> None:
    requests = bench.start()
    bench.hold.clear()
    requests.offer(asked("aaaaaaaa"))
    bench.wait(lambda: bench.done)
    requests.offer(asked("bbbbbbbb", expires=NOW + 5))
    bench.now = NOW + 10

    bench.hold.set()

    bench.wait(lambda: len(bench.said) == 2)
    assert [each.ok for each in bench.said] == [True, False]
    assert len(bench.done) == 1


def test_a_flood_is_refused_and_bounded(bench: Bench) -> None:
    requests = bench.start()
    bench.hold.clear()
    for number in range(3 * KEPT):
        requests.offer(asked(f"{number:08x}"))

    bench.wait(lambda: len(list((bench.folder / "requests").iterdir())) == KEPT)
    assert len(requests._ring._kept) == KEPT
    # the oldest gave way, done or not: nobody asks for so much at once who means it
    assert len(requests._ring.at("waiting", "begun")) <= MAX_WAITING


def test_a_verb_that_fails_is_an_answer_and_never_ends_the_thread(bench: Bench) -> None:
    requests = bench.start()
    for number, fault in enumerate((Rejected("no model"), Broken("no disk"), ZeroDivisionError("oops"))):
        bench.fault = fault
        requests.offer(asked(f"0000000{number}"))
        bench.wait(partial(bench.has_said, number + 1))

    assert [each.ok for each in bench.said] == [False] * 3
    assert bench.said[0].result["reason"] == "no model"
    assert "ZeroDivisionError" in bench.said[2].result["reason"]
    assert "oops" not in str(bench.said[2])


@pytest.mark.parametrize(
    "payload", [b"", b"{", b"[]", b'{"id":"../etc","verb":"self-test"}', b'{"id":"x"}', b"x" * 5000]
)
def test_what_is_no_request_is_dropped(bench: Bench, payload: bytes) -> None:
    bench.start().offer(payload)

    assert not (bench.folder / "requests").exists()


def test_a_damaged_file_is_forgotten(tmp_path: Path) -> None:
    ring = AnsweredRing(tmp_path / "requests")
    ring.keep(ring.new(Request(id="aaaaaaaa", verb=SELF_TEST)).answered({"count": 1}, ok=True))
    (tmp_path / "requests" / "01.json").write_bytes(b"\0" * 50)

    assert AnsweredRing(tmp_path / "requests").find("aaaaaaaa") is None


def test_a_disk_that_refuses_leaves_the_request_with_the_broker(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = bench.start()

    def refuse(*_: Any, **__: Any) -> None:
        raise Broken("disk full")

    monkeypatch.setattr("agent.remote.answered.write_durably", refuse)
    with pytest.raises(Broken):
        requests.offer(asked())
    assert bench.done == []


def test_a_model_is_not_restarted_over_and_over(tmp_path: Path) -> None:
    restarts: list[str] = []

    def restart(component: str) -> str:
        restarts.append(component)
        return "watch-1"

    outbox = OutboxFile(tmp_path / "outbox.db")
    verbs = make_verbs(
        journal=Journal(),
        state=tmp_path,
        stopping=threading.Event(),
        restart=restart,
        windows=outbox,
        publish=lambda _: None,
    )

    assert verbs[RESTART_MODEL]({"component": "lamps"}) == {"runs": "watch-1"}
    with pytest.raises(Rejected, match="between two"):
        verbs[RESTART_MODEL]({})
    assert restarts == ["lamps"]
    with pytest.raises(Rejected, match="acknowledged or given up"):
        verbs[RESEND_WINDOW]({"sequence": 3})
    outbox.close()


def test_the_end_of_the_agent_ends_a_self_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = tmp_path / "hangs"
    hangs.write_text("#!/bin/sh\nsleep 60\n")
    hangs.chmod(0o700)
    monkeypatch.setattr("agent.remote.verbs.sys.executable", str(hangs))
    stopping = threading.Event()
    stopping.set()
    began = time.monotonic()

    with pytest.raises(Broken, match="expected a table of checks"):
        run_self_test(tmp_path, stopping=stopping)
    assert time.monotonic() - began < 20


# --- windows


def window(number: int, manifest: str = "a" * 16) -> bytes:
    head = {"start": 1, "end": 2, "rows": 3, "labelled": 0, "correct": 0, "latency_p50_us": 1, "latency_p99_us": 2}
    return encode_report(WindowReport(manifest=manifest, monitor="c" * 16, window=number, tables=((3,),), **head))


def test_a_window_is_found_by_its_sequence_and_by_its_number(tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db")
    outbox.put("deployment", b"{}", event_time=0.0)
    for number in range(4):
        outbox.close_window("m", window(number), number=number, event_clock=float(number))
    outbox.close_window("n", window(2, "b" * 16), number=2, event_clock=9.0)

    def sequence_of(**which: Any) -> int | None:
        found = outbox.again(**{"sequence": None, "number": None, "manifest": "", **which})
        return None if found is None else found.entries[0].sequence

    assert sequence_of(sequence=3) == 3
    assert sequence_of(sequence=1) is None  # no window
    assert sequence_of(number=2) == 6
    assert sequence_of(number=2, manifest="a" * 64) == 4
    assert sequence_of(number=7) is None
    assert outbox.acknowledge(Ack(epoch=outbox.epoch, up_to=4, window=1))
    assert sequence_of(sequence=3) is None
    assert sequence_of(number=2, manifest="aaaa") is None
    outbox.close()
    assert find_window.__doc__
