"""What a device installs: the agent and one runtime, and nothing of the server."""

import os
import subprocess
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AGENT = {
    "skerry",
    "paho-mqtt",
    "tuf",
    "securesystemslib",
    "urllib3",
    "cryptography",
    "cffi",
    "pycparser",
    "backports-zstd",
}
RUNTIME = {"onnxruntime", "numpy", "flatbuffers", "packaging", "protobuf"}
SERVER_LIBRARIES = ("fastapi", "sqlalchemy", "sklearn", "onnx", "uvicorn", "jinja2", "pandas")


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bin folder of a fresh environment with `pip install '.[onnx]'`."""
    folder = tmp_path_factory.mktemp("device") / "venv"
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    done = subprocess.run([*pip, f"{ROOT}[onnx]"], capture_output=True, text=True, timeout=170, check=False)
    if done.returncode and not os.environ.get("SKERRY_REQUIRE_SERVERS"):
        pytest.skip(f"no package index was reached: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
    return folder / "bin"


@pytest.mark.timeout(240)
def test_a_device_has_the_agent_and_its_runtime(device: Path) -> None:
    said = subprocess.run([device / "skerry-agent", "--version"], capture_output=True, text=True, check=True).stdout
    assert said.startswith("skerry-agent 0.")
    subprocess.run([device / "python", "-c", "import onnxruntime"], check=True)


@pytest.mark.parametrize("library", SERVER_LIBRARIES)
def test_a_device_has_no_library_of_the_server(device: Path, library: str) -> None:
    done = subprocess.run([device / "python", "-c", f"import {library}"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "ModuleNotFoundError" in done.stderr


def test_the_operators_cli_says_which_extra_it_wants(device: Path) -> None:
    done = subprocess.run([device / "skerry", "device", "list"], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "pip install 'skerry[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_device_has_these_distributions_and_no_other(device: Path) -> None:
    program = "from importlib.metadata import distributions; print(*sorted(each.name for each in distributions()))"
    said = subprocess.run([device / "python", "-c", program], capture_output=True, text=True, check=True).stdout
    names = {name.lower().replace("_", "-").replace(".", "-") for name in said.split()}
    assert names <= AGENT | RUNTIME | {"pip", "setuptools"}


def test_a_device_is_told_what_it_lacks(device: Path, tmp_path: Path) -> None:
    command = [str(device / "skerry-agent"), "doctor", "--state", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "run skerry-agent init first" in done.stdout
    modules = "daemon trust.trust_child identity.proof_child inference.worker upkeep.doctor"
    imports = "import " + ", ".join(f"agent.{each}" for each in modules.split())
    subprocess.run([device / "python", "-c", imports], check=True)
