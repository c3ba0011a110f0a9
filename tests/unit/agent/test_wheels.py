"""Wheels made into an environment, and checked again before anything runs from it."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from agent.upkeep.wheels import BASE, BadWheel, is_whole, make_environment, packages_of, python_of
from tests.wheels import wheel

FILES = {"lamp/__init__.py": "COLOUR = 'green'\n", "lamp/data.txt": "x" * 1000}


@pytest.fixture
def lamp(tmp_path: Path) -> Path:
    """A wheel of one small package."""
    file = tmp_path / "lamp.whl"
    file.write_bytes(wheel("lamp", "1", FILES))
    return file


def run(environment: Path, code: str) -> str:
    """Return what the Python of an environment prints."""
    done = subprocess.run(
        [str(python_of(environment)), "-P", "-c", code], env={}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_what_a_wheel_brings_comes_before_what_is_installed_and_the_rest_is_there(tmp_path: Path, lamp: Path) -> None:
    shadow = tmp_path / "skerry.whl"
    shadow.write_bytes(wheel("skerry", "9", {"skerry/__init__.py": "__version__ = '9'\n"}))
    environment = tmp_path / "environment"

    make_environment([lamp, shadow], environment)

    assert run(environment, "import lamp, skerry; print(lamp.COLOUR, skerry.__version__)") == "green 9"
    assert run(environment, "import paho, sys; print(sys.prefix)") == str(environment)
    assert is_whole([lamp, shadow], environment)


@pytest.mark.parametrize("damage", ["changed", "short", "gone", "python", "beneath"])
def test_damage_is_found_and_mended(tmp_path: Path, lamp: Path, damage: str) -> None:
    environment = tmp_path / "environment"
    make_environment([lamp], environment)
    file = packages_of(environment) / "lamp" / "data.txt"
    if damage == "changed":
        file.write_text("x" * 999 + "y")
    elif damage == "short":
        file.write_text("")
    elif damage == "gone":
        file.unlink()
    elif damage == "python":
        python_of(environment).unlink()
    else:
        (packages_of(environment) / BASE).write_text("/elsewhere\n")

    assert not is_whole([lamp], environment)
    make_environment([lamp], environment)
    assert is_whole([lamp], environment)


@pytest.mark.parametrize(
    "name", ["../out.py", "/tmp/out.py", "a\\b.py", "lamp/../../x.py", "hook.pth", "x.data/purelib/hook.pth"]
)
def test_a_wheel_that_would_write_elsewhere_or_run_at_every_start_is_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / "bad.whl"
    file.write_bytes(wheel("bad", "1", {name: "x"}))

    with pytest.raises(BadWheel, match="expected"):
        make_environment([file], tmp_path / "environment")


def test_what_is_no_wheel_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "bad.whl"
    file.write_bytes(b"no zip")
    with pytest.raises(BadWheel, match="expected a wheel"):
        make_environment([file], tmp_path / "environment")


def test_programs_of_a_wheel_are_left_out_and_its_spread_packages_are_not(tmp_path: Path) -> None:
    file = tmp_path / "spread.whl"
    file.write_bytes(
        wheel("spread", "1", {"spread-1.data/scripts/run": "x", "spread-1.data/platlib/spread.py": "HERE = 1\n"})
    )
    environment = tmp_path / "environment"
    make_environment([file], environment)

    assert run(environment, "import spread; print(spread.HERE)") == "1"
    assert not list(environment.rglob("run"))


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.upkeep.wheels.MAX_UNPACKED_BYTES", 1000)
    file = tmp_path / "bomb.whl"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", b"0" * 100_000)
    with pytest.raises(BadWheel, match="at most"):
        make_environment([file], tmp_path / "environment")


def test_an_environment_made_from_within_another_lies_over_the_same_installation(tmp_path: Path, lamp: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    make_environment([lamp], first)
    # as the agent makes the next one: from its own environment, by its own code
    code = f"from pathlib import Path; from agent.upkeep.wheels import *; make_environment([], Path({str(second)!r}))"
    run(first, code)

    there = (packages_of(second) / BASE).read_text().splitlines()
    assert str(packages_of(first)) not in there
    assert {Path(each) for each in (packages_of(first) / BASE).read_text().splitlines()} == {Path(e) for e in there}
    assert sys.prefix != str(second)
