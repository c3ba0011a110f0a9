"""Bad input through the public faces: one clear line, a non-zero exit, no trace back, nothing lost."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.conftest import Plane

BIN = Path(sys.executable).parent


def refused(*command: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a program that must refuse; return its exit code and its one line."""
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    said = done.stderr.strip()
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    lines = [line for line in said.splitlines() if line.startswith(f"{command[0]}: ")]
    assert len(lines) == 1, said
    return done.returncode, lines[0]


def test_an_unknown_profile_names_the_known_ones(plane: Plane) -> None:
    code, line = refused("skerry", "--home", str(plane.programs.home), "device", "invite", "--profile", "toaster")
    assert code == 2
    assert "toaster" in line
    assert "x86-64-gateway" in line


def test_a_wrong_token_fails_at_enrolment_and_leaves_no_identity(plane: Plane, tmp_path: Path) -> None:
    join = plane.client.invite(profile="x86-64-gateway")["join"]
    url, _, rest = join.partition("#")
    wrong = f"{url}#wrong-token:{rest.rpartition(':')[2]}"
    state = tmp_path / "state"
    code, line = refused(
        "skerry-agent", "init", wrong, "--profile", "x86-64-gateway", "--state", str(state), "--simulate"
    )
    assert code == 2
    assert "token" in line
    assert "wrong-token" not in line
    assert not list(state.rglob("*.crt"))
    # nothing lost: the invitation still works
    plane.programs.run("skerry-agent", "init", join, "--profile", "x86-64-gateway", "--state", str(state), "--simulate")


def test_a_server_with_another_root_is_refused_before_the_token_is_sent(plane: Plane, tmp_path: Path) -> None:
    join = plane.client.invite(profile="x86-64-gateway")["join"]
    other = join[:-64] + "0" * 64
    state = str(tmp_path / "state")
    code, line = refused("skerry-agent", "init", other, "--profile", "x86-64-gateway", "--state", state, "--simulate")
    assert code == 2
    assert "0" * 64 in line or "000000" in line
    # the token was not used up by the refusal
    plane.programs.run("skerry-agent", "init", join, "--profile", "x86-64-gateway", "--state", state, "--simulate")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("device", "accept", "nobody"), "skerry device pending"),
        (("device", "reject", "nobody"), "skerry device pending"),
        (("device", "revoke", "nobody"), "expected one that is enrolled"),
        (("device", "decommission", "nobody"), "expected one that is enrolled"),
        (("device", "create", "Über", "--profile", "x86-64-gateway"), "name: expected"),
        (("device", "invite", "--profile", "x86-64-gateway", "--group", "Lab 1"), "group: expected"),
        (("group", "set", "lab"), "--approve"),
        (("device", "component", "add", "nobody", "lamps"), "expected one that is enrolled"),
        (("device", "component", "remove", "nobody", "lamps"), "expected one that is enrolled"),
        (("device", "request", "nobody", "restart-model", "--arg", "component=lamps"), "expected one that is enrolled"),
        (("agent", "add", "pyproject.toml", "--profile", "x86-64-gateway"), "expected wheels such as skerry-1.0"),
        (("bundle", "create", "--device", "nobody", "--release", "x", "--out", "/no/folder/x"), "expected a file in"),
    ],
)
def test_a_verb_of_the_fleet_that_cannot_be_done_is_one_line(plane: Plane, command: tuple[str, ...], said: str) -> None:
    code, line = refused("skerry", "--home", str(plane.programs.home), *command)
    assert code == 2
    assert said in line


def test_a_device_that_nobody_accepts_goes_on_where_it_ended(plane: Plane, tmp_path: Path) -> None:
    invited = plane.client.invite(profile="x86-64-gateway", name="acceptance-waits", approve="pending")
    profile = ("--profile", "x86-64-gateway", "--simulate")
    init = ("skerry-agent", "init", invited["join"], *profile, "--state", str(tmp_path / "state"), "--wait")
    code, line = refused(*init, "0")
    assert code == 3
    assert "run the same command again" in line
    assert invited["join"].partition("#")[2][:20] not in line
    code, line = refused(*init, "nan")
    assert (code, "--wait: expected" in line) == (2, True)
    plane.client.accept("acceptance-waits")
    plane.programs.run(*init, "0")
    (device,) = [each for each in plane.client.devices() if each["name"] == "acceptance-waits"]
    assert device["state"] == "enrolled"


@pytest.mark.parametrize("profile", ["x86-64-gateway", "arm64-board", "cortex-m"])
def test_a_file_that_is_not_a_model_is_refused(tmp_path: Path, profile: str) -> None:
    file = tmp_path / "holiday.jpg"
    file.write_bytes(b"\xff\xd8\xff\xe0 not a model at all" * 50)
    code, line = refused("skerry", "model", "check", str(file), "--profile", profile)
    assert code == 2
    assert "expected" in line


def test_a_file_that_is_not_data_is_refused_and_nothing_is_kept(plane: Plane, tmp_path: Path) -> None:
    file = tmp_path / "table.npz"
    file.write_bytes(b"a,b,c\n1,2,3\n")
    before = plane.client.datasets()
    code, line = refused("skerry", "--home", str(plane.programs.home), "data", "add", "watch", str(file))
    assert code == 2
    assert ".npz" in line or "npz" in line
    assert plane.client.datasets() == before


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    environment = {"SKERRY_URL": "http://127.0.0.1:9", "SKERRY_TOKEN": "t"}
    code, line = refused("skerry", "device", "list", environment=environment)
    assert code == 3
    assert "http://127.0.0.1:9" in line


def test_a_home_folder_that_is_none_is_named(tmp_path: Path) -> None:
    code, line = refused("skerry", "--home", str(tmp_path), "device", "list")
    assert code == 2
    assert str(tmp_path) in line


def test_a_taken_port_is_named_with_what_to_change(tmp_path: Path) -> None:
    home = tmp_path / "server"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        subprocess.run(
            [BIN / "skerry-server", "init", "--home", home, "--project", "p", "--pages-port", str(port)],
            check=True,
            capture_output=True,
        )
        code, line = refused("skerry-server", "run", "--home", str(home))
    assert code == 4
    assert str(port) in line
    assert "pages" in line


def test_an_external_broker_that_is_not_there_is_named(tmp_path: Path) -> None:
    home = tmp_path / "server"
    subprocess.run(
        [BIN / "skerry-server", "init", "--home", home, "--project", "p", "--broker", "mqtt://127.0.0.1:9"],
        check=True,
        capture_output=True,
    )
    code, line = refused("skerry-server", "run", "--home", str(home))
    assert code == 3
    assert "mqtt://127.0.0.1:9" in line


@pytest.mark.parametrize("program", ["skerry-server", "skerry-agent"])
def test_a_state_folder_of_a_newer_version_is_refused_and_left_as_it_is(program: str, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "VERSION").write_text("999\n")
    option = "--home" if program == "skerry-server" else "--state"
    code, line = refused(program, "run", option, str(state))
    assert code == 4
    assert "999" in line
    assert [path.name for path in state.iterdir()] == ["VERSION"]
