"""Remote requests through the API and the command line."""

import json
import threading
from typing import Any

import pytest

from control_plane.cli.program import main
from control_plane.ingest import handle
from skerry.wire import codec, topics
from skerry.wire.messages import Answer, Request
from tests.integration.fleet.conftest import Coast

Output = pytest.CaptureFixture[str]
DOWN, UP = topics.down("watch.gull", "request"), topics.up("watch.gull", "answer")


def told(coast: Coast) -> list[Request]:
    return [codec.decode(Request, body) for topic, body, _ in coast.said.messages if topic == DOWN]


def answer(coast: Coast, **result: Any) -> None:
    """Answer the last request as the device would."""
    ok = "reason" not in result
    handle(coast.plane, UP, codec.encode(Answer(id=told(coast)[-1].id, ok=ok, result=result)))


@pytest.fixture
def gull(coast: Coast, monkeypatch: pytest.MonkeyPatch) -> Coast:
    """A coast with a device, and the command line's way to it."""
    coast.enrol("gull", "x86-64-gateway")
    monkeypatch.setenv("SKERRY_URL", str(coast.client.base_url))
    monkeypatch.setenv("SKERRY_TOKEN", coast.plane.home.operator_token())
    monkeypatch.delenv("SKERRY_HOME", raising=False)
    return coast


def test_ask_look_and_find(gull: Coast) -> None:
    body = {"verb": "collect-logs", "args": {"lines": 5}, "expires_s": 60}
    asked = gull.client.post("/v1/devices/gull/requests", json=body)

    assert (asked.status_code, asked.json()["state"]) == (201, "waiting")
    assert asked.json()["asked_by"] == "operator at 127.0.0.1"
    assert [each.args for each in told(gull)] == [{"lines": 5}]

    answer(gull, lines=1, left_out=0, text="a line")

    (listed,) = gull.ask("GET", "/v1/devices/gull/requests")
    found = gull.ask("GET", f"/v1/devices/gull/requests/{listed['id']}")
    assert ("result" in listed, listed["state"]) == (False, "done")
    assert found["result"]["text"] == "a line"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("gull", {"verb": "open-shell"}, 422),
        ("gull", {"verb": "collect-logs", "args": {"path": "/etc/shadow"}}, 422),
        ("gull", {"verb": "collect-logs", "args": {"lines": "x" * 81}}, 422),
        ("gull", {"verb": "self-test", "expires_s": 1}, 422),
        ("gull", {"verb": "self-test", "also": 1}, 422),
        ("kittiwake", {"verb": "self-test"}, 404),
    ],
)
def test_what_cannot_be_asked_is_a_problem(gull: Coast, path: str, body: dict[str, Any], status: int) -> None:
    refused = gull.client.post(f"/v1/devices/{path}/requests", json=body)

    assert (refused.status_code, refused.headers["content-type"]) == (status, "application/problem+json")
    assert told(gull) == []
    assert gull.client.get("/v1/devices/gull/requests/0000").status_code == 404
    assert gull.client.get("/v1/devices/kittiwake/requests").status_code == 404
    assert gull.client.get("/v1/devices/gull/requests", headers={"Authorization": "Bearer x"}).status_code == 401


def test_the_command_line_asks_and_lists(gull: Coast, capsys: Output) -> None:
    assert main(["device", "request", "gull", "collect-logs", "--arg", "lines=5"]) == 0
    assert "gull is asked, until" in capsys.readouterr().out

    answer(gull, lines=1, left_out=0, text="a \x1b[2J line")
    assert main(["device", "requests", "gull"]) == 0
    (head, row) = capsys.readouterr().out.splitlines()
    assert head.split() == ["ID", "VERB", "STATE", "ASKED_AT", "ASKED_BY", "REASON"]
    assert "collect-logs  done" in row

    assert main(["device", "requests", "gull", row.split()[0]]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[1] == r"a \x1b[2J line"


@pytest.mark.parametrize(
    ("result", "status", "says"),
    [
        ({"checks": [{"check": "disk", "ok": True, "detail": "5 MiB free"}]}, 0, "disk   yes  5 MiB free"),
        ({"reason": "the model is gone"}, 2, "expected self-test to be done, got: the model is gone"),
        (None, 3, "expected an answer within 0.2 s"),
    ],
)
def test_the_command_line_waits(
    gull: Coast, capsys: Output, result: dict[str, Any] | None, status: int, says: str
) -> None:
    def reply() -> None:
        while not told(gull):
            gull.plane.stopping.wait(0.01)
        answer(gull, **(result or {}))

    device = threading.Thread(target=reply)
    if result is not None:
        device.start()
    wait = "0.2" if result is None else "20"

    assert main(["device", "request", "gull", "self-test", "--wait", wait]) == status

    if result is not None:
        device.join()
    said = capsys.readouterr()
    assert says in said.out + said.err


def test_as_json_it_is_the_apis_answer(gull: Coast, capsys: Output) -> None:
    assert main(["--json", "device", "request", "gull", "self-test"]) == 0

    assert json.loads(capsys.readouterr().out)["verb"] == "self-test"
