"""A runtime of another age is found by building an interpreter, and its environment is made on request."""

import subprocess
import sys
from pathlib import Path

import pytest

from skerry.errors import Broken, Unavailable
from skerry.runtimes import Found, Refused, find_runtime, prepare_environment, probe
from skerry.runtimes.environments import PYTHON_VARIABLE


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _python(folder: Path, program: str) -> Path:
    """Write a program that poses as a Python, where an environment would have it."""
    file = folder / "skerry" / "environments" / "tflite-runtime" / "bin" / "python"
    file.parent.mkdir(parents=True)
    file.write_text(f"#!/bin/sh\n{program}\n", encoding="utf-8")
    file.chmod(0o755)
    return file


def test_an_ordinary_runtime_is_found_in_this_python() -> None:
    found = find_runtime("onnxruntime")
    assert isinstance(found, Found)
    assert found.python == sys.executable


def test_without_its_environment_the_legacy_runtime_says_how_to_make_it() -> None:
    found = find_runtime("tflite-runtime")
    assert isinstance(found, Refused)
    assert "skerry profile prepare armv7-legacy" in found.reason


def test_the_legacy_runtime_is_found_by_building_an_interpreter(legacy: str) -> None:
    assert find_runtime("tflite-runtime") == Found(python=legacy, version="2.14.0")
    # not in this Python: a device that runs the model in process must not believe so
    assert isinstance(probe("tflite-runtime"), Refused)


def test_an_import_that_fails_at_the_first_interpreter_is_refused(tmp_path: Path) -> None:
    _python(tmp_path / "cache", 'echo "AttributeError: _ARRAY_API not found" >&2; exit 1')
    found = find_runtime("tflite-runtime")
    assert isinstance(found, Refused)
    assert "_ARRAY_API" in found.reason
    assert "NumPy 1" in found.reason


def test_the_variable_goes_before_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _python(tmp_path / "cache", "echo 2.14.0")
    assert isinstance(find_runtime("tflite-runtime"), Found)
    monkeypatch.setenv(PYTHON_VARIABLE, str(tmp_path / "none"))
    found = find_runtime("tflite-runtime")
    assert isinstance(found, Refused)
    assert "expected a Python with tflite-runtime at" in found.reason


def test_an_environment_that_is_there_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = _python(tmp_path / "cache", "echo 2.14.0")
    said: list[str] = []
    monkeypatch.setattr("skerry.runtimes.environments._call", lambda *_: pytest.fail("nothing is to be installed"))
    made = prepare_environment("tflite-runtime", log=said.append)
    assert made == Found(python=str(file), version="2.14.0")
    assert said == [f"tflite-runtime: 2.14.0, ready in {file.parent.parent}"]


def test_without_the_old_python_it_says_which_one(tmp_path: Path) -> None:
    with pytest.raises(Broken, match=r"expected python3\.0 for tflite-runtime, got none: install it, or set SKERRY_"):
        prepare_environment("tflite-runtime", log=print, folder=tmp_path / "e", interpreter="python3.0")


def test_a_network_that_is_away_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = subprocess.run

    def offline(command: list[str], **options: object) -> object:
        if "pip" in command:
            return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found\n")
        return original([sys.executable, "-c", "pass"], **options)  # type: ignore[call-overload] # a spy on any call

    monkeypatch.setattr(subprocess, "run", offline)
    with pytest.raises(Unavailable, match="No matching distribution found"):
        prepare_environment("tflite-runtime", log=print, folder=tmp_path / "e", interpreter="sh")


def test_an_ordinary_runtime_needs_no_environment() -> None:
    with pytest.raises(Broken, match="expected one with its own environment"):
        prepare_environment("litert", log=print)
