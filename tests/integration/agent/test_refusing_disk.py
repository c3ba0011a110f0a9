"""An agent starts on a disk that takes no writes: it answers, connects and says so; mended, it goes on in full."""

import contextlib
import http.client
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import skerry
from agent.deployment.runner import read_state
from agent.inference.held import REASON
from skerry.errors import Broken
from skerry.inference.local_socket import SOCKET, connect_first, socket_places
from skerry.wire import codec, topics
from skerry.wire.messages import Answer, Gap, Request
from tests.integration.agent.shore import MODEL, PROJECT, WINDOW_ROWS, Device, Shore, wait_for
from tests.integration.agent.spoilt import request_for
from tests.integration.serving.clients import UnixConnection
from tests.mounts import Mounted, mounted

pytestmark = [
    pytest.mark.broker,
    pytest.mark.long,
    pytest.mark.parametrize("broker_port", ["mosquitto"], indirect=True),
]


@pytest.fixture
def disk(device: Device) -> Iterator[Mounted]:
    """The disk of the device's state folder."""
    with mounted(device.folder) as disk:
        yield disk
        device.kill()


def ask(socket: Path) -> int:
    """Return the status of the model's answer to a program on the device."""
    head, body = request_for(1.0)
    connection = UnixConnection(socket)
    try:
        connection.request("POST", f"/v2/models/{MODEL}/infer", body=body, headers=head)
        return connection.getresponse().status
    finally:
        connection.close()


def verb(device: Device, name: str) -> tuple[int, dict[str, Any]]:
    """Return the exit status of a verb that tells of the device, and what it told."""
    command = [sys.executable, "-m", "agent", name, "--json", "--state", str(device.folder)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return ran.returncode, json.loads(ran.stdout)


def request(shore: Shore, device: Device, name: str) -> Answer:
    """Ask a device from afar; return its answer."""
    who, heard = f"{PROJECT}.{device.name}", []
    topic = topics.up(who, "answer")
    shore._client.message_callback_add(topic, lambda _client, _data, message: heard.append(bytes(message.payload)))
    wanted = codec.encode(Request(id=secrets.token_hex(8), verb=name, args={}))
    shore._client.publish(topics.down(who, "request"), wanted, qos=1).wait_for_publish(5)
    return codec.decode(Answer, wait_for(lambda: heard, why=f"an answer to {name}")[0])


def begin(shore: Shore, device: Device) -> None:
    """Have version 1 committed, and end."""
    shore.release(1)
    shore.release(2)
    device.start()
    assert shore.ends(device.name, shore.assign(device.name, 1)).state == "committed"
    wait_for(lambda: len(shore.windows(device.name)) > 2, why="windows")
    assert device.stop() == 0


def is_refused(shore: Shore, device: Device, word: str) -> None:
    """Wait until the twin says what is wrong with the disk."""
    wait_for(lambda: word in shore.reported[device.name].last_error, why="a word of it")
    reported = shore.reported[device.name]
    assert (reported.online, reported.health, reported.release) == (True, "failing", f"{MODEL}-1")
    assert reported.runs.word == "up"
    assert any(word in reason for reason in reported.reasons)


def gap(device: Device) -> float:
    """Ask without end until the socket is where it belongs; return the longest time without an answer."""
    longest, last, end = 0.0, time.monotonic(), time.monotonic() + 30
    while time.monotonic() < end:
        with contextlib.suppress(OSError, Broken, http.client.HTTPException):
            with connect_first(device.folder, timeout_s=5) as connection:
                connection.sendall(b"GET /v2/health/ready HTTP/1.0\r\nHost: localhost\r\n\r\n")
                ready = b" 200 " in connection.recv(64)
            if ready:
                longest, last = max(longest, time.monotonic() - last), time.monotonic()
                if (device.folder / SOCKET).exists():
                    return longest
        time.sleep(0.01)
    raise AssertionError("expected the socket in the state folder, got none")


def goes_on_in_full(shore: Shore, device: Device, deployment: str) -> None:
    """Wait until what waited for the disk is done, and nothing was lost or told twice."""
    assert shore.ends(device.name, deployment).state == "committed"
    wait_for(lambda: shore.reported[device.name].release == f"{MODEL}-2", why="version 2 in the twin")
    wait_for(lambda: not shore.reported[device.name].last_error, why="nothing more to say")
    assert ask(device.folder / SOCKET) == 200
    assert not socket_places(device.folder)[1].exists()
    assert device.stop() == 0
    numbers = sorted(sequence for _, _, sequence in shore.entries)
    assert numbers == list(range(1, numbers[-1] + 1))
    assert shore.conflicts == 0


def test_an_agent_that_starts_on_a_read_only_disk_answers_and_goes_on_when_it_is_mended(
    shore: Shore, device: Device, disk: Mounted
) -> None:
    begin(shore, device)
    before, told = device.folder / SOCKET, len(shore.windows(device.name))
    disk.make_read_only()
    device.start()

    # --- the model answers, by all ways
    place = socket_places(device.folder)[1]
    wait_for(place.exists, why="the local face")
    assert not before.exists()
    assert [ask(place) for _ in range(50)] == [200] * 50
    with skerry.Model(MODEL, state=device.folder) as model:
        for _ in range(30):
            assert model({"window": np.zeros((1, 100, 6), np.float32)})["probabilities"].shape == (1, 3)
    assert model.dropped == 0

    # --- it is said
    is_refused(shore, device, "the disk is read-only")
    status, found = verb(device, "doctor")
    checks = {each["check"]: each for each in found["checks"]}
    assert (status, checks["disk"]["level"], checks["socket"]["level"]) == (4, "fail", "ok")
    assert "read-only" in checks["disk"]["said"]
    assert verb(device, "status")[0] == 0

    # --- nothing is taken on that could not be kept, and its source is read at its pace
    deployment = shore.assign(device.name, 2)
    refused = request(shore, device, "restart-model")
    assert not refused.ok
    assert "the disk is read-only" in refused.result["reason"]
    assert request(shore, device, "collect-logs").ok
    counted = shore.reported[device.name].inferences
    wait_for(lambda: shore.reported[device.name].inferences > counted + 500, why="inferences", timeout_s=10)
    assert shore.states(device.name, deployment) == []
    assert read_state(device.folder / "lifecycle.json").good.release == f"{MODEL}-1"
    assert len(shore.windows(device.name)) == told

    disk.make_writable()
    silence_s = gap(device)
    print(f"mended: {silence_s:.2f} s without an answer while the agent starts anew")

    assert silence_s < 10
    goes_on_in_full(shore, device, deployment)
    windows = shore.windows(device.name)
    # what was counted meanwhile was held, and came
    mine = [each for each in windows if each.manifest == windows[0].manifest]
    assert len(mine) > told + 500 // WINDOW_ROWS
    assert [each.window for each in mine] == list(range(len(mine)))


def test_what_a_read_only_disk_has_spoilt_is_put_right_beside_it(shore: Shore, device: Device, disk: Mounted) -> None:
    begin(shore, device)
    for name in ("slots/pointer.json", "identity.json", "desired.json"):
        (device.folder / name).write_bytes(b"spoilt")
    disk.make_read_only()
    device.start()

    is_refused(shore, device, "the disk is read-only")
    place = socket_places(device.folder)[1]
    assert ask(place) == 200
    assert (device.folder / "slots" / "pointer.json").read_bytes() == b"spoilt"
    deployment = shore.assign(device.name, 2)
    disk.make_writable()

    goes_on_in_full(shore, device, deployment)
    assert not place.with_suffix(".state").exists()


def test_an_agent_that_starts_on_a_full_disk_answers_and_goes_on_when_there_is_room(
    shore: Shore, device: Device, disk: Mounted
) -> None:
    begin(shore, device)
    disk.fill()
    # its ballast is given up first; somebody takes that too
    (device.folder / "outbox.db.ballast").unlink()
    disk.fill()
    device.start()

    is_refused(shore, device, "the disk is full")
    there = wait_for(lambda: [each for each in socket_places(device.folder) if each.exists()], why="a face")
    assert [ask(there[0]) for _ in range(50)] == [200] * 50
    deployment = shore.assign(device.name, 2)
    counted = shore.reported[device.name].inferences
    wait_for(lambda: shore.reported[device.name].inferences > counted + 200, why="inferences", timeout_s=10)
    assert shore.states(device.name, deployment) == []

    disk.make_room()

    goes_on_in_full(shore, device, deployment)


def test_what_was_counted_on_a_read_only_disk_and_given_up_is_in_a_gap_record(
    shore: Shore, device: Device, disk: Mounted
) -> None:
    begin(shore, device)
    disk.make_read_only()
    # more than is held: some 400 bytes a window
    device.start(rate=0)
    is_refused(shore, device, "the disk is read-only")
    wait_for(lambda: shore.reported[device.name].inferences > 400 * WINDOW_ROWS, why="windows", timeout_s=60)

    disk.make_writable()

    def gaps() -> list[Gap]:
        return [codec.decode(Gap, body) for body in shore.bodies(device.name, "gap")]

    wait_for(gaps, why="a gap record", timeout_s=40)
    assert {(gap.kind, gap.reason) for gap in gaps()} == {("window", REASON)}
    assert all(gap.count == gap.last - gap.first + 1 > 1 for gap in gaps())
