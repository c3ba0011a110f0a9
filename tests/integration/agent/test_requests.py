"""Remote requests and the twin, end to end: the control plane's link and tables, Mosquitto, and the real agent."""

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from control_plane import publisher, requests
from control_plane.ingest import handle
from control_plane.link import Link
from control_plane.plane import Plane
from control_plane.schema.devices import Device as DeviceRow
from control_plane.schema.devices import DeviceRequest
from control_plane.schema.telemetry import Window
from control_plane.server import make_home, open_plane
from control_plane.settings import Settings
from skerry.wire import codec, topics
from skerry.wire.messages import Answer, Outbox, Request
from skerry.wire.requests import unpack_text
from tests.device_rows import enrolled
from tests.integration.agent.shore import PROJECT, WINDOW_ROWS, Device, Shore, wait_for

pytestmark = [pytest.mark.broker, pytest.mark.parametrize("broker_port", ["mosquitto"], indirect=True)]
MODEL_FILE = "model.onnx"


@dataclass
class Operator:
    """An operator at a control plane: asks a device and waits for what comes."""

    plane: Plane
    device: str

    def ask(self, verb: str, *, expires_s: int = 60, **args: Any) -> DeviceRequest:
        with self.plane.sessions.begin() as session:
            row = requests.ask(
                self.plane, session, self.device, verb, args, expires_s=expires_s, asked_by="operator at the test"
            )
        requests.publish(self.plane, [row])
        return row

    def row(self, asked: DeviceRequest) -> DeviceRequest:
        with self.plane.readers() as session:
            return requests.find(session, self.device, asked.id)

    def answer(self, asked: DeviceRequest, *, timeout_s: float = 40.0) -> tuple[bool | None, dict[str, Any]]:
        wait_for(lambda: self.row(asked).answered_at, why=f"an answer to {asked.verb}", timeout_s=timeout_s)
        row = self.row(asked)
        return row.ok, row.result

    def twin(self) -> dict[str, Any]:
        with self.plane.readers() as session:
            return dict(session.get_one(DeviceRow, self.device).reported)

    def windows(self) -> list[tuple[int, int]]:
        """Return (number, rows) of the windows that were heard, in their order."""
        with self.plane.readers() as session:
            rows = session.execute(select(Window.number, Window.rows).order_by(Window.number))
            return [(number, rows) for number, rows in rows]

    def online(self) -> bool:
        with self.plane.readers() as session:
            return session.get_one(DeviceRow, self.device).online

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Keep the control plane's link up, as the server does."""
        self.plane.stopping.clear()
        link = Link(self.plane, handle=handle, on_connect=publisher.republish_current)
        loop = asyncio.new_event_loop()
        task = loop.create_task(link.run())

        def live() -> None:
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(task)
            loop.close()

        thread = threading.Thread(target=live)
        thread.start()
        wait_for(lambda: self.plane.outgoing.connected, why="the control plane's link")
        try:
            yield
        finally:
            self.plane.stopping.set()
            loop.call_soon_threadsafe(task.cancel)
            thread.join(20)


@pytest.fixture
def operator(shore: Shore, device: Device, tmp_path: Path) -> Iterator[Operator]:
    """An operator whose control plane knows the device, not yet at work."""
    home = make_home(tmp_path / "home", Settings(project=PROJECT, broker=f"mqtt://127.0.0.1:{shore.port}"))
    plane = open_plane(home.path)
    with plane.sessions.begin() as session:
        session.add(enrolled(device.name, plane.clock(), profile="gateway"))
    # both hear the outbox and would acknowledge: here the control plane does
    hear = shore._client.on_message

    def only_reports(client: Any, data: Any, message: Any) -> None:
        if hear is not None and message.topic.endswith("/up/reported"):
            hear(client, data, message)

    shore._client.on_message = only_reports
    yield Operator(plane, device.name)
    plane.sessions.kw["bind"].dispose()


def tell(shore: Shore, device: Device, request: Request) -> None:
    """Publish a request as a broker would hand it over that knows nothing of its time."""
    topic = topics.down(f"{PROJECT}.{device.name}", "request")
    shore._client.publish(topic, codec.encode(request), qos=1).wait_for_publish(5)


def listen(shore: Shore) -> tuple[dict[str, Answer], set[int]]:
    """Return the answers by id, and the entries that came in a message of their own, as they come."""
    answers: dict[str, Answer] = {}
    alone: set[int] = set()
    hear = shore._client.on_message

    def also(client: Any, data: Any, message: Any) -> None:
        if message.topic.endswith("/up/answer"):
            answer = codec.decode(Answer, bytes(message.payload))
            answers[answer.id] = answer
        elif message.topic.endswith("/up/outbox") and message.payload.startswith(b"{"):
            entries = codec.decode(Outbox, bytes(message.payload)).entries
            alone.update(entry.sequence for entry in entries if len(entries) == 1)
        assert hear is not None
        hear(client, data, message)

    shore._client.on_message = also
    return answers, alone


def commit(shore: Shore, device: Device, operator: Operator) -> None:
    """Have the device run a model."""
    shore.release(1)
    device.start()
    shore.assign(device.name, 1)
    wait_for(lambda: operator.twin().get("release") == "strokes-1", why="a committed model", timeout_s=40)


def test_all_four_verbs_are_done_and_answered(shore: Shore, device: Device, operator: Operator) -> None:
    with operator.at_work():
        commit(shore, device, operator)

        ok, logs = operator.answer(operator.ask("collect-logs", lines=50))
        assert ok
        assert "request" in unpack_text(logs)
        assert "PRIVATE KEY" not in unpack_text(logs)

        ok, tested = operator.answer(operator.ask("self-test"))
        checks = {each["check"]: each for each in tested["checks"]}
        assert (ok, set(checks)) == (True, {"runtime", "digests", "golden", "disk", "clock", "certificate"})
        assert "4 rows within their tolerances" in checks["golden"]["detail"]
        assert tested["ok"], tested

        before = wait_for(lambda: operator.twin().get("inferences"), why="inferences")
        ok, restarted = operator.answer(operator.ask("restart-model"))
        assert (ok, restarted["runs"]) == (True, "strokes-1")
        wait_for(lambda: operator.twin().get("inferences", 0) > before, why="more inferences")
        heard = len(operator.windows())
        wait_for(lambda: len(operator.windows()) > heard + 2, why="more windows")
        # nothing is lost: the open window went on where it was
        assert operator.windows() == [(number, WINDOW_ROWS) for number in range(len(operator.windows()))]

        ok, gone = operator.answer(operator.ask("resend-window", sequence=1))
        assert not ok
        assert "acknowledged or given up" in gone["reason"]


def test_a_window_that_was_not_acknowledged_comes_again_and_counts_once(shore: Shore, device: Device) -> None:
    shore.release(1)
    device.start()
    shore.ends(device.name, shore.assign(device.name, 1))
    answers, alone = listen(shore)
    shore.acknowledging = False
    wait_for(lambda: shore.reported[device.name].outbox_depth >= 3, why="windows that wait")
    with contextlib.closing(sqlite3.connect(f"file:{device.folder}/outbox.db?mode=ro", uri=True)) as db:
        (newest,) = db.execute("select max(sequence) from outbox where kind = 'window'").fetchone()

    tell(shore, device, Request(id="ab" * 8, verb="resend-window", args={"sequence": newest}))

    wait_for(lambda: "ab" * 8 in answers, why="an answer")
    answer = answers["ab" * 8]
    assert (answer.ok, answer.result["sequence"], answer.result["sent"]) == (True, newest, True)
    assert newest in alone
    shore.acknowledging = True
    wait_for(lambda: any(key[2] == newest for key in shore.entries), why="the window to be heard")
    assert shore.conflicts == 0


def test_a_slot_that_rotted_is_found_by_the_self_test(shore: Shore, device: Device, operator: Operator) -> None:
    with operator.at_work():
        commit(shore, device, operator)
        model = device.folder / "slots" / operator.twin()["active"] / MODEL_FILE
        data = bytearray(model.read_bytes())
        data[-1] ^= 1
        model.write_bytes(data)

        ok, tested = operator.answer(operator.ask("self-test"))

        failed = [each["check"] for each in tested["checks"] if not each["ok"]]
        assert (ok, tested["ok"], failed) == (True, False, ["digests", "golden"])


def test_a_device_that_was_away_does_it_within_its_time_and_never_after(
    shore: Shore, device: Device, operator: Operator
) -> None:
    with operator.at_work():
        device.start()
        wait_for(operator.online, why="the device")
        device.stop()
        wait_for(lambda: not operator.online(), why="its farewell")

        in_time = operator.ask("collect-logs", expires_s=3600)
        device.start()
        assert operator.answer(in_time)[0]
        device.stop()

        # a broker that ignores an expiry hands it over all the same: the device judges for itself
        stale = Request(id="ab" * 8, verb="collect-logs", expires=time.time() - 5)
        tell(shore, device, stale)
        device.start()
        log = wait_for(
            lambda: device.log.read_text() if "expected it by" in device.log.read_text() else "", why="a refusal"
        )
        assert "request abababababababab was refused" in log


def test_after_a_kill_a_request_that_comes_again_has_the_same_answer(
    shore: Shore, device: Device, operator: Operator
) -> None:
    with operator.at_work():
        device.start()
        wait_for(operator.online, why="the device")
        asked = operator.ask("collect-logs")
        first = operator.answer(asked)
        device.kill()
        device.start()
        with operator.plane.sessions.begin() as session:
            row = requests.find(session, device.name, asked.id)
            row.answered_at, row.ok, row.result = None, None, {}
            session.add(row)
        requests.publish(operator.plane, [operator.row(asked)])

        assert operator.answer(asked) == first
        assert device.log.read_text().count(f"request {asked.id} (collect-logs): done") == 1


def test_an_answer_that_nobody_heard_is_asked_for_again(shore: Shore, device: Device, operator: Operator) -> None:
    with operator.at_work():
        device.start()
        wait_for(operator.online, why="the device")
    asked = operator.ask("collect-logs")
    stored = device.folder / "requests"
    # the control plane's queue is closed: this is how the broker has it all the same
    tell(shore, device, Request(id=asked.id, verb="collect-logs"))
    wait_for(lambda: any('"said"' in each.read_text() for each in stored.glob("*.json")), why="an answer")
    assert operator.row(asked).answered_at is None
    after = replace(operator, plane=replace(operator.plane, clock=lambda: asked.expires + timedelta(minutes=1)))

    with after.at_work():
        assert after.answer(asked)[0]


def test_the_owner_takes_verbs_off_the_list(shore: Shore, device: Device, operator: Operator) -> None:
    config = device.folder / "config.toml"
    config.write_text(config.read_text() + 'requests = ["collect-logs"]\n')
    with operator.at_work():
        device.start()
        wait_for(operator.online, why="the device")

        ok, result = operator.answer(operator.ask("restart-model"))

        assert (ok, result["reason"]) == (
            False,
            "restart-model: expected what this device's owner allows (collect-logs)",
        )
        assert operator.answer(operator.ask("collect-logs"))[0]


def test_birth_and_last_will_are_true(shore: Shore, device: Device, operator: Operator) -> None:
    with operator.at_work():
        commit(shore, device, operator)
        wait_for(lambda: shore.reported[device.name].slots["a"].mark == "good", why="a report of the committed slot")
        born = shore.reported[device.name]
        assert (born.online, born.active, born.slots["a"].release, born.runs.word) == (True, "a", "strokes-1", "up")
        assert born.vitals.memory_total_bytes
        assert born.vitals.disk_free_bytes
        assert (born.health, born.reasons, born.restarts) == ("ok", (), 0)
        assert len(codec.encode(born)) < 2048

        device.kill()

        wait_for(lambda: not shore.reported[device.name].online, why="the will")
        will = shore.reported[device.name]
        assert will.version > born.version
        wait_for(lambda: not operator.online(), why="the control plane to know")
        assert operator.twin()["release"] == "strokes-1"

        device.start()

        wait_for(lambda: shore.reported[device.name].online, why="another birth")
        again = shore.reported[device.name]
        assert (again.version > will.version, again.restarts) == (True, 1)
        wait_for(operator.online, why="the control plane to know that too")
