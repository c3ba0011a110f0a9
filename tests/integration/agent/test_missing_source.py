"""A device whose inputs are not there: it answers programs, says what is missing, and goes on when it is there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.agent.shore import Device, Shore, wait_for
from tests.integration.agent.test_serving import ask
from tests.integration.serving.clients import UnixConnection

pytestmark = pytest.mark.broker


def start(device: Device, log: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start the agent as its service does, with what is configured alone."""
    command = [sys.executable, "-m", "agent", "run", "--state", str(device.folder), *options]
    with log.open("ab") as file:
        return subprocess.Popen(command, stderr=file, env={**os.environ, "PYTHONUNBUFFERED": "1"})


def test_a_recording_that_is_missing_is_waited_for_while_programs_are_answered(
    shore: Shore, device: Device, tmp_path: Path
) -> None:
    stick = tmp_path / "stick" / "rows.npz"
    with (device.folder / "config.toml").open("a") as file:
        file.write(f'source = "replay:{stick}"\nrate = 200.0\nevent_step_s = 60.0\n')
    shore.release(1)
    shore.assign(device.name, 1)
    agent = start(device, tmp_path / "agent.log")
    try:
        wait_for((device.folder / "serve.sock").exists, why="the socket")
        connection = UnixConnection(device.folder / "serve.sock")
        wait_for(lambda: ask(connection, 0)[0] == 200, why="a trial")
        for row in range(25):
            assert ask(connection, row % 4)[0] == 200
        wait_for(lambda: device.state() == "committed", why="a commit by what programs asked")
        assert ask(connection, 0)[0] == 200
        connection.close()
        wait_for(lambda: "expected a recording" in shore.reported[device.name].last_error, why="the reason in the twin")
        assert shore.windows(device.name) == []

        stick.parent.mkdir()
        shutil.copy(device.recording, stick)
        wait_for(lambda: len(shore.windows(device.name)) >= 2, why="windows of what is there now", timeout_s=60)
        wait_for(lambda: shore.reported[device.name].last_error == "", why="a twin without trouble")
        assert agent.poll() is None
    finally:
        agent.terminate()
        assert agent.wait(30) == 0
        print((tmp_path / "agent.log").read_text()[-3000:])


def test_who_types_a_name_that_is_not_there_hears_so_at_once(device: Device, tmp_path: Path) -> None:
    agent = start(device, tmp_path / "agent.log", "--replay", str(tmp_path / "none.npz"))
    assert agent.wait(30) == 4
    (line,) = (tmp_path / "agent.log").read_text().splitlines()
    assert "none.npz: expected a recording (npz or CSV), got: No such file or directory" in line
