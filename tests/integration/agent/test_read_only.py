"""The disk of a running agent becomes read-only, as a file system does that finds a fault in itself; then it is mended.

A mount cannot do that (it is refused while files are open for writing), so strace does: attached to the agent, it
answers every call that would change what a file of the state folder holds, or a name, with EROFS. One that is read-only
at the start: `test_refusing_disk`.
"""

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.deployment.runner import read_state
from skerry.inference.local_socket import SOCKET
from tests.integration.agent.shore import MODEL, Device, Shore, wait_for
from tests.integration.agent.spoilt import request_for
from tests.integration.serving.clients import UnixConnection

CHANGES = (
    *("write", "writev", "pwrite64", "fsync", "fdatasync", "ftruncate", "fallocate"),
    *("rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir"),
)
pytestmark = [
    pytest.mark.broker,
    pytest.mark.long,
    pytest.mark.parametrize("broker_port", ["mosquitto"], indirect=True),
]


@contextlib.contextmanager
def read_only(strace: str, device: Device) -> Iterator[None]:
    """Let nothing in the state folder be changed meanwhile."""
    assert device._process is not None
    folder = device.folder
    names = [path.relative_to(folder) for path in folder.rglob("*")]
    # files that are written under another name first (`skerry.delivery.durable`)
    fresh = [name.with_name(f".{name.name}.new") for name in (*names, Path("assignment.json"), Path("desired.json"))]
    paths = [option for name in (*names, *fresh) for option in ("-P", str(folder / name))]
    trace = folder.with_suffix(".strace")
    base = [strace, "-f", "-qq", "-p", str(device._process.pid)]
    inject = ("-e", f"trace={','.join(CHANGES)}", "-e", f"inject={','.join(CHANGES)}:error=EROFS")
    tracer = subprocess.Popen([*base, "-o", str(trace), *paths, *inject], stderr=subprocess.PIPE)
    try:
        wait_for(lambda: trace.exists() and "EROFS" in trace.read_text(), why="a write that is refused")
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.communicate(timeout=20)


def ask(device: Device) -> int:
    """Return the status of the model's answer to a program on the device."""
    head, body = request_for(1.0)
    connection = UnixConnection(device.folder / SOCKET)
    try:
        connection.request("POST", f"/v2/models/{MODEL}/infer", body=body, headers=head)
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_disk_that_turns_read_only_stops_no_inference_and_is_said(shore: Shore, device: Device, strace: str) -> None:
    shore.release(1)
    shore.release(2)
    device.start()
    assert shore.ends(device.name, shore.assign(device.name, 1)).state == "committed"
    wait_for(lambda: len(shore.windows(device.name)) > 2, why="windows")

    with read_only(strace, device):
        wait_for(lambda: "check the disk" in shore.reported[device.name].last_error, why="a word of it")
        deployment = shore.assign(device.name, 2)
        # a source whose rows nobody can count is read slowly; programs are answered as ever
        assert [ask(device) for _ in range(50)] == [200] * 50
        assert shore.reported[device.name].online
        refused = "assignment.json, got: Read-only file system; check the disk"
        wait_for(lambda: refused in device.log.read_text(), why="a word of the assignment")
        assert [ask(device) for _ in range(50)] == [200] * 50
        # what cannot be kept is not begun
        assert read_state(device.folder / "lifecycle.json").good.release == f"{MODEL}-1"
        assert shore.states(device.name, deployment) == []

    assert shore.ends(device.name, deployment).state == "committed"
    wait_for(lambda: shore.reported[device.name].release == f"{MODEL}-2", why="version 2 in the twin")
    wait_for(lambda: not shore.reported[device.name].last_error, why="nothing more to say")
    assert device.stop() == 0
    numbers = sorted(sequence for _, _, sequence in shore.entries)
    assert numbers == list(range(1, numbers[-1] + 1))
    assert shore.conflicts == 0
