"""Real processes that die inside a model, and what the next one that opens it says."""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import skerry
from skerry.delivery.slots import Slots
from tests.artifacts import commit, make_windows

from .conftest import StubAgent, artifact, wait_until

OPEN = """
import ctypes, os, signal, sys, threading, time
import numpy as np
import skerry, skerry.local.loaded as loaded

class Session:
    def __init__(self, real):
        self.real, self.signature, self.bind = real, real.signature, real.bind
    def run(self, inputs):
        die()
        return self.real.run(inputs)

real_open = loaded.open_session
loaded.open_session = lambda *given, **options: Session(real_open(*given, **options))
window = np.zeros((1, 50, 8), np.float32)
def die():
    pass
"""
FAULT = "def die(): ctypes.string_at(0)\n"
CALL = "model = skerry.Model('watch', state=sys.argv[1]); model(window)\n"


def run(state: Path, program: str) -> int:
    command = [sys.executable, "-c", OPEN + textwrap.dedent(program), str(state)]
    return subprocess.run(command, check=False, timeout=60, stderr=subprocess.DEVNULL).returncode


def markers(state: Path) -> list[Path]:
    return list((state / "users").iterdir())


def test_a_fault_inside_the_model_is_told_at_the_next_open_and_rolled_back(state: Path, stub: StubAgent) -> None:
    commit(state, artifact("onnxruntime"))
    slots = commit(state, artifact("onnxruntime", 2))
    bad = slots.pointer.slot(slots.active).manifest
    assert run(state, FAULT + CALL) == -signal.SIGSEGV
    assert len(markers(state)) == 1
    stub.on_crash = lambda crash: slots.roll_back(crash["manifest"])
    with skerry.Model("watch", state=state) as model:
        # the first one is what was rolled back to, not what killed the last program
        assert model.manifest.version == 1
        assert model(make_windows(1))
    assert [crash["manifest"] for crash in stub.crashed] == [bad]
    assert "died inside the model: Segmentation fault" in stub.crashed[0]["reason"]
    assert markers(state) == []


@pytest.mark.parametrize(
    ("program", "status"),
    [
        # stopped from outside while inside: nobody's fault
        ("def die(): os.kill(os.getpid(), signal.SIGTERM)\n" + CALL, -signal.SIGTERM),
        ("def die(): os.kill(os.getpid(), signal.SIGKILL)\n" + CALL, -signal.SIGKILL),
        # a fault, but not the model's
        (CALL + "ctypes.string_at(0)\n", -signal.SIGSEGV),
        # another thread's fault, while this one is inside
        (
            """
            inside = threading.Event()
            def die():
                inside.set()
                time.sleep(60)
            def fault():
                inside.wait()
                ctypes.string_at(0)
            threading.Thread(target=fault).start()
            """
            + CALL,
            -signal.SIGSEGV,
        ),
        # a fault of a forked child, and a parent that is stopped inside the model
        (
            """
            def die():
                pid = os.fork()
                if not pid:
                    ctypes.string_at(0)
                os.waitpid(pid, 0)
                os.kill(os.getpid(), signal.SIGTERM)
            """
            + CALL,
            -signal.SIGTERM,
        ),
        # the program keeps its own fault handler, and then nothing is known
        ("import faulthandler; faulthandler.enable()\n" + FAULT + CALL, -signal.SIGSEGV),
        (CALL, 0),
    ],
    ids=["SIGTERM", "SIGKILL", "elsewhere", "another thread", "a child", "own handler", "no crash"],
)
def test_other_ends_are_no_models_fault(state: Path, stub: StubAgent, program: str, status: int) -> None:
    commit(state, artifact("onnxruntime"))
    text = "\n".join(textwrap.dedent(part) for part in [program])
    assert run(state, text) == status
    with skerry.Model("watch", state=state) as model:
        assert model(make_windows(1))
    assert stub.crashed == []
    assert markers(state) == []


def test_a_crash_is_kept_until_there_is_an_agent_to_tell(state: Path) -> None:
    commit(state, artifact("onnxruntime"))
    assert run(state, FAULT + CALL) == -signal.SIGSEGV
    kept = markers(state)
    with skerry.Model("watch", state=state) as model:
        assert model(make_windows(1))
    assert markers(state) == kept


def test_the_marker_of_a_program_that_lives_is_left_alone(state: Path, stub: StubAgent) -> None:
    commit(state, artifact("onnxruntime"))
    program = OPEN + CALL + "print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(state)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        alive = markers(state)
        with skerry.Model("watch", state=state):
            assert len(markers(state)) == 2
        assert markers(state) == alive
        process.communicate()
    assert process.returncode == 0
    wait_until(lambda: not markers(state), why="no marker")


def test_two_models_of_one_program_share_its_marker(state: Path, stub: StubAgent) -> None:
    commit(state, artifact("onnxruntime"))
    commit(state / "components" / "watch", artifact("litert"))
    with skerry.Model("watch", state=state), skerry.Model("watch", state=state):
        assert len(markers(state)) == 1
    assert markers(state) == []


def test_a_folder_that_cannot_be_written_costs_the_marker_alone(state: Path, caplog: pytest.LogCaptureFixture) -> None:
    commit(state, artifact("onnxruntime"))
    (state / "users").write_text("a file where the folder should be")
    with skerry.Model("watch", state=state) as model:
        assert model(make_windows(1))
    assert "could not be attributed" in caplog.text


def test_slots_are_read_and_never_written(state: Path) -> None:
    slots = commit(state, artifact("onnxruntime"))
    before = {path: path.stat().st_mtime_ns for path in slots.folder(slots.active).rglob("*")}
    with skerry.Model("watch", state=state) as model:
        model(make_windows(1))
    assert Slots(state / "slots").pointer == slots.pointer
    assert {path: path.stat().st_mtime_ns for path in slots.folder(slots.active).rglob("*")} == before
