"""A runtime is updated as the agent is: ONNX Runtime's own wheels from PyPI, by way of Mosquitto, under a signature.

The agent's environment has an older version; a newer one is delivered beside a wheel of the agent, and the model that
was committed runs on it. One that cannot be loaded on this machine changes nothing.
"""

import contextlib
import importlib.metadata
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import not_run
from tests.integration.agent.several import SeveralShore
from tests.integration.agent.shore import Device, wait_for
from tests.wheels import ROOT, build_skerry

pytestmark = [
    pytest.mark.long,
    pytest.mark.broker,
    pytest.mark.timeout(300),
    pytest.mark.parametrize("broker_port", [pytest.param("mosquitto")], indirect=True),
]
# the oldest that `skerry[onnx]` takes, and the one that these tests run by
OLD, NEW = "1.20.1", importlib.metadata.version("onnxruntime")
# of another Python than ours
STRANGE = "3.13" if sys.version_info[:2] != (3, 13) else "3.12"
# loads where the agent tries a version, and ends the process of the model where the agent runs
CRASHES = b"""
import os
with open(f"/proc/{os.getppid()}/cmdline", "rb") as _file:
    if b"run" in _file.read().split(bytes(1)):
        os.kill(os.getpid(), 11)
"""


def download(folder: Path, version: str, *options: str) -> Path:
    """Return a wheel of ONNX Runtime from the package index."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--retries", "2", "--only-binary", ":all:", "--dest", str(folder), *options, f"onnxruntime=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        not_run(f"expected onnxruntime {version} from a package index, got: {done.stderr.strip()[-200:]}")
    (wheel,) = folder.glob("*.whl")
    return wheel


def spoil(wheel: Path) -> bytes:
    """Return a wheel of ONNX Runtime that crashes in the agent alone."""
    spoilt = wheel.with_suffix(".spoilt")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(spoilt, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        for member in old.infolist():
            data = old.read(member)
            new.writestr(member.filename, data + CRASHES if member.filename == "onnxruntime/__init__.py" else data)
    return spoilt.read_bytes()


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The older and the newer ONNX Runtime, the newer one for another Python, and the agent of this tree."""
    return {
        "old": download(tmp_path_factory.mktemp("old"), OLD),
        "new": download(tmp_path_factory.mktemp("new"), NEW),
        "strange": download(tmp_path_factory.mktemp("strange"), NEW, "--python-version", STRANGE),
        "skerry": build_skerry(tmp_path_factory.mktemp("skerry"), "0.2.0"),
    }


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory, wheels: dict[str, Path]) -> str:
    """A Python whose ONNX Runtime is the older one; all else is that of these tests."""
    folder = tmp_path_factory.mktemp("device") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    python = str(folder / "bin" / "python")
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "--no-deps", "--no-index", str(wheels["old"])], check=True, timeout=120)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "beneath.pth").write_text(f"{ROOT}\n{sysconfig.get_path('platlib')}\n")
    return python


@pytest.fixture
def shore(broker_port: int, tmp_path: Path) -> Iterator[SeveralShore]:
    """A control plane of its own for each test."""
    shore = SeveralShore(broker_port, tmp_path)
    yield shore
    shore.close()


def runs_on(shore: SeveralShore, device: Device) -> str:
    """Return the runtime that the twin tells of."""
    return shore.reported[device.name].runtime


def libraries(device: Device) -> list[Path]:
    """Return the native libraries of ONNX Runtime that the agent's processes have in memory."""
    assert device._process is not None
    family, found = {str(device._process.pid)}, set()
    for process in sorted(Path("/proc").glob("[0-9]*"), key=lambda each: int(each.name)):
        with contextlib.suppress(OSError):  # it has ended
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            if parent in family:
                family.add(process.name)
                maps = (process / "maps").read_text().splitlines()
                found |= {Path(line.split()[-1]) for line in maps if "onnxruntime_pybind11_state" in line}
    return sorted(found)


def has_a_window(shore: SeveralShore, device: Device) -> None:
    """Wait for another window of the committed model."""
    assert shore.reported[device.name].release == "strokes-2"
    before = len(shore.windows(device.name))
    wait_for(lambda: len(shore.windows(device.name)) > before, why="another window")


def test_a_newer_runtime_is_delivered_and_one_that_cannot_be_loaded_is_refused_or_rolled_back(
    shore: SeveralShore, device: Device, wheels: dict[str, Path], python: str, capsys: pytest.CaptureFixture[str]
) -> None:
    agent, new, strange = (wheels[name].read_bytes() for name in ("skerry", "new", "strange"))
    shore.release_model("strokes", 1)
    shore.release_model("strokes", 2)
    shore.release_agent(2, {"skerry.whl": agent, "onnxruntime.whl": new})
    shore.release_agent(3, {"skerry.whl": agent, "onnxruntime.whl": strange})
    shore.release_agent(4, {"skerry.whl": agent, "onnxruntime.whl": spoil(wheels["new"])})
    device.python = python
    device.start()
    for version in (1, 2):
        model = shore.give(device.name, "", "strokes", version, trial_inferences=5)
        assert shore.ends(device.name, model).state == "committed"
    assert runs_on(shore, device) == f"onnxruntime {OLD}"
    environments = device.folder / "components" / "agent" / "environments"

    began = time.monotonic()
    end = shore.ends(device.name, shore.give(device.name, "agent", "agent", 2), timeout_s=120)

    assert end.state == "committed", end
    wait_for(lambda: runs_on(shore, device) == f"onnxruntime {NEW}", why="the newer runtime in the twin")
    with capsys.disabled():
        print(
            f"\nonnxruntime {OLD} to {NEW}: {len(new)} bytes of wheel, {time.monotonic() - began:.1f} s to the commit"
        )
    has_a_window(shore, device)
    (library,) = libraries(device)
    assert environments in library.parents

    # for another Python: the version that is asked whether it would run here says why not, and nothing has changed
    process = device._process
    end = shore.ends(device.name, shore.give(device.name, "agent", "agent", 3), timeout_s=120)

    assert end.state == "failed"
    assert "expected a runtime onnxruntime for this Python and machine" in end.reason
    assert "trial" not in [event.state for event in shore.states(device.name, end.deployment)]
    assert process is not None
    assert process.poll() is None
    assert libraries(device) == [library]

    # one that shows only where it runs what it is: it is given up, and the model runs on the version before
    end = shore.ends(device.name, shore.give(device.name, "agent", "agent", 4), timeout_s=120)

    assert end.state == "failed"
    assert "expected what was committed to run on it, got strokes-2: worker:" in end.reason
    assert "SIGSEGV" in end.reason
    wait_for(lambda: libraries(device) == [library], why="the version before")
    has_a_window(shore, device)
    # and it was not held against the model, which has another version to go back to
    assert [event.state for event in shore.states(device.name, model)][-1] == "committed"
    assert device.stop() == 0
