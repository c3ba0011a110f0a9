"""The launcher: it starts the version that the pointer names, counts, and goes back by itself; the real program."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from agent import __main__ as program
from agent.upkeep.launcher import DEFAULT_STATE, RESTART, Home, forget_given_up, given_up, home_of, note_healthy
from skerry.delivery.slots import MANIFEST, Mark, Slots
from skerry.wire import codec
from skerry.wire.manifest import PYTHON, Manifest, describe_file
from tests.mounts import mounted
from tests.wheels import ROOT, wheel

# what a version does: notes that it was started, then ends or waits as its wheel says
MAIN = """
import os, signal, sys
from contextlib import suppress
from pathlib import Path
state = Path(sys.argv[sys.argv.index("--state") + 1])
with suppress(OSError), (state / "started").open("a") as file:
    file.write("{name} " + os.environ["SKERRY_AGENT_MANIFEST"][:8] + "\\n")
{does}
"""
CRASHES = "os.kill(os.getpid(), signal.SIGSEGV)"
WAITS = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("ready", flush=True)
while True:
    signal.pause()
"""


def stage(home: Home, name: str, does: str) -> str:
    """Bring a version into the inactive slot and point at it; return its manifest."""
    data = wheel("skerry", name, {"agent/__init__.py": "", "agent/__main__.py": MAIN.format(name=name, does=does)})
    manifest = Manifest(
        model="agent",
        version=1,
        profile="gateway",
        runtime=PYTHON,
        model_file="skerry.whl",
        golden_file="",
        gate_file="",
        inputs=(),
        outputs=(),
        labels=(),
        tolerances={},
        observe={},
        monitor={},
        files=(describe_file("skerry.whl", data),),
        latency_budget_ms=0,
        created="",
    )
    slots = Slots(home.pointer_file.parent)
    encoded = codec.encode(manifest)
    slots.stage({MANIFEST: encoded, "skerry.whl": data}, release=f"agent-{name}", deployment=name)
    slots.activate()
    return hashlib.sha256(encoded).hexdigest()


def commit(home: Home) -> None:
    """Declare what the pointer names good."""
    Slots(home.pointer_file.parent).commit()


def start(state: Path) -> "subprocess.Popen[str]":
    """Start the launcher."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-m", "agent.upkeep.launcher", "run", "--state", str(state)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def started(state: Path) -> list[str]:
    """Return which versions were started, in order."""
    file = state / "started"
    return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []


def wait_for(text: str, stream: IO[str] | None) -> None:
    """Read until a line of this text comes."""
    assert stream is not None
    for line in stream:
        if line.strip() == text:
            return
    pytest.fail(f"expected {text!r} before the end")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Return a state folder in which nobody is enrolled: the installed version says so and ends with 2."""
    path = tmp_path / "state"
    path.mkdir()
    return path


def pointer(state: Path) -> Slots:
    """Return the slots as they are now."""
    return Slots(home_of(state).pointer_file.parent)


def test_without_a_version_that_was_delivered_the_installed_one_runs(state: Path) -> None:
    child = start(state)
    _, said = child.communicate(timeout=60)

    assert child.returncode == 2
    assert "run skerry-agent init first" in said


def test_every_other_verb_is_the_installed_versions(state: Path) -> None:
    home = home_of(state)
    stage(home, "one", CRASHES)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "agent.upkeep.launcher", "--version"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("skerry-agent ")
    assert started(state) == []


def test_a_signal_reaches_the_version_and_its_end_is_the_launchers(state: Path) -> None:
    manifest = stage(home_of(state), "one", WAITS)
    child = start(state)
    wait_for("ready", child.stdout)

    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=30)

    assert child.returncode == 7
    assert started(state) == ["one"]
    assert pointer(state).pointer.slot("a").manifest == manifest
    assert given_up(home_of(state), manifest) == ""


def test_one_that_crashes_at_each_start_is_given_up_for_the_installed_one(state: Path) -> None:
    home = home_of(state)
    manifest = stage(home, "one", CRASHES)

    child = start(state)
    _, said = child.communicate(timeout=120)

    assert started(state) == ["one"] * 3
    assert "run skerry-agent init first" in said
    assert child.returncode == 2
    slots = pointer(state)
    assert (slots.active, slots.pointer.a.mark) == ("", Mark.BAD.value)
    assert given_up(home, manifest) == "expected the agent to run, got 3 ends before it was well, the last by SIGSEGV"
    forget_given_up(home, manifest)
    assert given_up(home, manifest) == ""


def test_one_that_crashes_is_given_up_for_the_last_good_one(state: Path) -> None:
    home = home_of(state)
    stage(home, "one", WAITS)
    commit(home)
    stage(home, "two", CRASHES)

    child = start(state)
    wait_for("ready", child.stdout)
    child.terminate()
    child.communicate(timeout=30)

    assert started(state) == ["two"] * 3 + ["one"]
    assert (pointer(state).active, child.returncode) == ("a", 7)


def test_starts_are_counted_over_restarts_of_the_launcher_until_it_is_well(state: Path) -> None:
    home = home_of(state)
    manifest = stage(home, "one", WAITS)
    for _ in range(2):
        child = start(state)
        wait_for("ready", child.stdout)
        # the power goes: nobody has said a word
        child.kill()
        os.kill(_child_of(state), signal.SIGKILL)
        child.communicate(timeout=30)
    assert json.loads(home.launch_file.read_bytes())["starts"] == 2

    note_healthy(home, manifest)
    assert json.loads(home.launch_file.read_bytes())["starts"] == 0
    assert given_up(home, manifest) == ""


def _child_of(state: Path) -> int:
    """Return the process that runs a version on a state folder."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"agent" in arguments and str(state).encode() in arguments:
            return int(folder.name)
    raise AssertionError("expected a version that runs")


def test_one_that_asks_for_another_start_after_the_pointer_moved_is_no_failure(state: Path) -> None:
    home = home_of(state)
    # what the agent does when it activates a version: it moves the pointer, then ends with the status for that
    moves = f"""
import json
file = Path({str(home.pointer_file)!r})
pointer = json.loads(file.read_text())
file.write_text(json.dumps({{**pointer, "active": "b"}}))
sys.exit({RESTART})
"""
    stage(home, "one", moves)
    commit(home)
    stage(home, "two", WAITS)
    tree = json.loads(home.pointer_file.read_text())
    home.pointer_file.write_text(json.dumps({**tree, "active": "a"}))

    child = start(state)
    wait_for("ready", child.stdout)
    child.terminate()
    child.communicate(timeout=30)

    assert started(state) == ["one", "two"]


def test_wheels_that_are_no_longer_what_was_signed_are_not_started(state: Path) -> None:
    home = home_of(state)
    stage(home, "one", WAITS)
    with (home.slot("a") / "skerry.whl").open("ab") as file:
        file.write(b"more")

    child = start(state)
    _, said = child.communicate(timeout=120)

    assert started(state) == []
    assert "other bytes in skerry.whl than were signed" in said
    assert child.returncode == 2


def test_damage_to_what_was_unpacked_is_mended_before_the_start(state: Path) -> None:
    home = home_of(state)
    stage(home, "one", WAITS)
    for _ in range(2):
        child = start(state)
        wait_for("ready", child.stdout)
        child.terminate()
        child.communicate(timeout=30)
        for file in home.environment("a").rglob("__main__.py"):
            file.write_text("raise SystemExit(1)\n")

    assert started(state) == ["one", "one"]


def test_another_agent_on_the_folder_is_no_fault_of_the_version(state: Path) -> None:
    home = home_of(state)
    stage(home, "one", WAITS)
    first = start(state)
    wait_for("ready", first.stdout)

    second = start(state)
    _, said = second.communicate(timeout=60)
    assert (second.returncode, "expected to be the only agent here" in said) == (4, True)

    first.terminate()
    first.communicate(timeout=30)
    # nobody counts an end that was asked for
    assert json.loads(home.launch_file.read_bytes())["starts"] == 0


def test_a_device_that_wiped_itself_ends_with_its_version(state: Path) -> None:
    stage(home_of(state), "one", "import shutil; shutil.rmtree(state / 'components'); sys.exit(0)")

    child = start(state)
    child.communicate(timeout=60)

    assert child.returncode == 0
    assert not (state / "components").exists()


def test_both_programs_mean_the_same_folder() -> None:
    assert program.DEFAULT_STATE == DEFAULT_STATE


@pytest.mark.parametrize("committed", [True, False])
def test_on_a_read_only_disk_a_committed_version_runs_and_for_one_on_trial_the_installed_one(
    state: Path, committed: bool
) -> None:
    home = home_of(state)
    stage(home, "one", WAITS)
    with mounted(state) as disk:
        if committed:
            commit(home)
            child = start(state)
            wait_for("ready", child.stdout)
            child.terminate()
            child.communicate(timeout=30)
        disk.make_read_only()
        child = start(state)
        if committed:
            wait_for("ready", child.stdout)
            child.terminate()
        _, said = child.communicate(timeout=60)

        assert child.returncode == (7 if committed else 2)
        assert ("run skerry-agent init first" in said) != committed
        assert "Traceback" not in said
