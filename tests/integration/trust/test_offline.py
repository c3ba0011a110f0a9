"""Offline installs: a stick to the server and back, a device that is adopted as it is, and hostile sticks."""

import json
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.__main__ import main as agent
from agent.identity.folder import StateFolder
from agent.trust.assignment import Inbox, Mailbox
from skerry.delivery.bundle import write_bundle
from tests.integration.agent.shore import wait_for
from tests.integration.trust.products import PROFILE, release, train
from tests.integration.trust.sticks import (
    Change,
    World,
    committed,
    files,
    install,
    of_image,
    replaced,
    swapped_blobs,
    without,
    without_a_blob,
)


@pytest.fixture(scope="module")
def world(make_home: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Run a server with two signed releases."""
    folder = tmp_path_factory.mktemp("sticks")
    server = make_home()
    for version in (1, 2):
        train(server.home, folder, version=version)
    train(server.home, folder, version=3, wrong_golden=True)
    train(server.home, folder, version=5, model="lamps")
    train(server.home, folder, version=6, model="lamps", wrong_golden=True)
    server.start()
    try:
        anchor = server.hold_ceremony()["anchor_sha256"]
        for version in (1, 2, 3):
            release(server, version)
        for version in (5, 6):
            release(server, version, model="lamps")
        yield World(server, folder, anchor)
    finally:
        server.stop()


def test_a_device_that_was_never_online_is_installed_and_then_adopted(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    state, request = world.ask("tern-1")
    stick = world.bundle("tern-1", 1, "--request", str(request))
    capfd.readouterr()

    assert install(state, stick) == 0

    shown = capfd.readouterr().out
    assert shown.startswith("installed strokes-1 (manifest ")
    assert shown.count("\n") == 1
    assert committed(state) == "strokes-1"
    before = {name: digest for name, digest in files(state).items() if name.startswith("slots/")}
    device = world.server.get("/v1/devices/tern-1")
    assert (device["state"], device["online"], device["assign_counter"]) == ("enrolled", False, 2)

    # the day the network comes
    command = [sys.executable, "-m", "agent", "run", "--state", str(state)]
    with (state.parent / "tern-1.log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        device = wait_for(
            lambda: (
                (now := world.server.get("/v1/devices/tern-1"))["online"]
                and now["reported"]["release"] == "strokes-1"
                and now["deployments"][0]["state"] == "committed"
                and now
            ),
            why="the device to come home and say what it did",
        )
    finally:
        process.terminate()
        process.wait(20)
    assert world.server.get(f"/v1/rollouts/{device['deployments'][0]['rollout']}")["state"] == "done"
    assert {name: digest for name, digest in files(state).items() if name.startswith("slots/")} == before
    assert len(device["deployments"]) == 1


def test_an_enrolled_device_takes_a_bundle_and_an_older_one_is_a_replay(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    state = world.enrol("gull-1")
    first, second = world.bundle("gull-1", 1), world.bundle("gull-1", 2)

    assert install(state, second) == 0
    assert committed(state) == "strokes-2"
    before = files(state)
    capfd.readouterr()

    assert install(state, first) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "nothing was changed" in said
    assert files(state) == before
    assert install(state, second) == 0
    assert committed(state) == "strokes-2"


def test_a_release_that_fails_here_leaves_the_last_good_one(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    state = world.enrol("gull-2")
    assert install(state, world.bundle("gull-2", 1)) == 0
    capfd.readouterr()

    assert install(state, world.bundle("gull-2", 3)) == 2

    said = capfd.readouterr().err.splitlines()[-1]
    assert "golden replay: expected probabilities within" in said
    assert said.endswith("strokes-1 runs on")
    assert committed(state) == "strokes-1"
    # and the server may try again with another bundle
    assert install(state, world.bundle("gull-2", 2)) == 0


@pytest.mark.long
def test_a_model_beside_another_is_installed_into_slots_of_its_own(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    """A device that was never online gets its one model, then another beside it, then the next of the first."""
    state, request = world.ask("tern-6")
    assert install(state, world.bundle("tern-6", 1, "--request", str(request))) == 0
    assert world.skerry("device", "component", "add", "tern-6", "lamps") == 0
    own = {name: digest for name, digest in files(state).items() if name.startswith("slots/")}
    stick = world.bundle("tern-6", 5, model="lamps")
    capfd.readouterr()

    assert install(state, stick) == 0

    assert capfd.readouterr().out.startswith("installed lamps-5 (manifest ")
    assert (committed(state), committed(state, "lamps")) == ("strokes-1", "lamps-5")
    assert {name: digest for name, digest in files(state).items() if name.startswith("slots/")} == own
    beside = {name: digest for name, digest in files(state).items() if name.startswith("components/lamps/slots/")}
    assert len(beside) > 3
    # nothing is left that would have to be asked of a network
    for component in ("", "lamps"):
        assert Inbox(StateFolder(state).component(component).path, Mailbox(state)).pending() is None

    # one that fails leaves both; and the next of the one model leaves the other
    assert install(state, world.bundle("tern-6", 6, model="lamps")) == 2
    assert capfd.readouterr().err.splitlines()[-1].endswith("lamps-5 runs on")
    assert install(state, world.bundle("tern-6", 2)) == 0
    assert (committed(state), committed(state, "lamps")) == ("strokes-2", "lamps-5")

    # the day the network comes, both are heard of, each as what it is
    with (state.parent / "tern-6.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "agent", "run", "--state", str(state)], stderr=log)
    try:
        wait_for(
            lambda: (
                (now := world.server.get("/v1/devices/tern-6"))["online"]
                and {each["state"] for each in now["deployments"]} == {"committed", "failed"}
                and any(each["manifest"] for each in now["components"])
            ),
            why="the device to come home and say what it did",
            timeout_s=60,
        )
        device = world.server.get("/v1/devices/tern-6")
    finally:
        process.terminate()
        process.wait(20)
    ends = {each["release"]: (each["state"], each["component"]) for each in device["deployments"]}
    assert ends == {
        "strokes-1": ("committed", ""),
        "strokes-2": ("committed", ""),
        "lamps-5": ("committed", "lamps"),
        "lamps-6": ("failed", "lamps"),
    }
    assert device["reported"]["release"] == "strokes-2"
    (lamps,) = device["components"]
    assert lamps["reported"]["release"] == "lamps-5"


@pytest.fixture(scope="module")
def beside(world: World) -> tuple[Path, Path]:
    """Return a state folder with two components, and a stick for the named one."""
    state, request = world.ask("tern-7")
    assert install(state, world.bundle("tern-7", 1, "--request", str(request))) == 0
    assert world.skerry("device", "component", "add", "tern-7", "lamps") == 0
    return state, world.bundle("tern-7", 5, model="lamps")


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("", "expected all files of strokes-1"),
        ("doors", "expected an assignment of a release for doors, got another one; nothing was changed"),
        ("agent", "got one of the agent"),
        ("../lamps", "expected a component's name, got '../lamps'"),
    ],
)
def test_a_stick_that_says_it_is_for_another_component_changes_nothing(
    beside: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], named: str, says: str
) -> None:
    state, stick = beside
    with zipfile.ZipFile(stick) as archive:
        members = {each: archive.read(each) for each in archive.namelist()}
    change = replaced("bundle.json", b'"component":"lamps"', f'"component":"{named}"'.encode())
    with (tmp_path / "stick.zip").open("wb") as file:
        write_bundle(file, change(members))

    refuses(state, tmp_path / "stick.zip", says, capfd)
    assert not (state / "components").exists()


@pytest.fixture(scope="module")
def sticks(world: World) -> dict[str, tuple[Path, Path]]:
    """Return state folders and their bundles: of an enrolled device, and of one that has only asked."""
    known = world.enrol("gull-3")
    new, request = world.ask("tern-2")
    other, _ = world.enrol("gull-4"), None
    return {
        "known": (known, world.bundle("gull-3", 1)),
        "new": (new, world.bundle("tern-2", 1, "--request", str(request))),
        "other": (other, world.bundle("gull-4", 1)),
    }


NAMES, KEPT, OTHERS = "expected names of a bundle", "nothing was changed", "names, got another"
AUTOMATIC = b'"refuse_automatic":'
CHANGES: dict[str, tuple[str, Change, str]] = {
    "a blob that is another": ("known", swapped_blobs, "under the hash of its bytes"),
    "a file that is missing": ("known", without_a_blob, "expected all files"),
    "a member that leaves the folder": ("known", lambda m: m | {"../../etc/cron.d/x": b"x"}, NAMES),
    "a member from the root": ("known", lambda m: m | {"/etc/passwd": b"x"}, NAMES),
    "a document that is too long": ("known", lambda m: m | {"tuf/9.root": bytes(2 << 20)}, "expected at most"),
    "too many members": ("known", lambda m: m | {f"tuf/x{n}": b"" for n in range(600)}, "members"),
    "another device on it": ("known", replaced("bundle.json", b"gull-3", b"gull-4"), "expected one for watch.gull-3"),
    "another format": ("known", replaced("bundle.json", b'"v":1', b'"v":2'), "expected skerry-bundle 1"),
    "an assignment that was changed": ("known", replaced("assign.json", b"strokes-1", b"strokes-9"), KEPT),
    "targets that were changed": ("known", of_image(".targets", b'"expires":"20', b'"expires":"21'), KEPT),
    "a snapshot that was changed": ("known", of_image(".snapshot", b'"expires":"20', b'"expires":"21'), KEPT),
    "a timestamp that was changed": ("known", of_image("timestamp", b'"expires":"20', b'"expires":"21'), KEPT),
    "a timestamp that is missing": ("known", without("tuf/timestamp"), KEPT),
    "no assignment": ("known", without("assign.json"), "expected assign.json in it"),
    "an answer that was changed": ("new", replaced("enrolled.json", AUTOMATIC + b"false", AUTOMATIC + b"true"), OTHERS),
    "a broker elsewhere": ("new", replaced("enrolled.json", b"mqtt://127.0.0.1", b"mqtt://10.0.0.1"), "broker"),
    "another broker here": ("new", replaced("enrolled.json", b"mqtt://127.0.0.1", b"mqtt://localhost"), OTHERS),
    "another server": ("new", replaced("bundle.json", b"https://", b"https://x"), OTHERS),
    "another anchor": ("new", replaced("anchor.json", b"watch", b"wotch"), "was pinned here"),
    "no certificate": ("new", without("enrolled.json"), "expected enrolled.json"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_hostile_stick_is_refused_in_one_line_and_changes_nothing(
    sticks: dict[str, tuple[Path, Path]], tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    which, change, says = CHANGES[name]
    state, stick = sticks[which]
    with zipfile.ZipFile(stick) as archive:
        members = {each: archive.read(each) for each in archive.namelist()}
    hostile = tmp_path / "stick.zip"
    with hostile.open("wb") as file:
        write_bundle(file, change(members))

    refuses(state, hostile, says, capfd)


def refuses(state: Path, stick: Path, says: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Install a stick that must be refused in one line, and leave no trace."""
    before = files(state)
    capfd.readouterr()

    assert install(state, stick) == 2

    said = capfd.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert says in said.err
    assert files(state) == before


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, 0.9999])
def test_a_stick_that_was_pulled_too_early_is_refused(
    sticks: dict[str, tuple[Path, Path]], tmp_path: Path, capfd: pytest.CaptureFixture[str], share: float
) -> None:
    state, stick = sticks["known"]
    data = stick.read_bytes()
    (tmp_path / "cut").write_bytes(data[: int(len(data) * share)])

    refuses(state, tmp_path / "cut", "copy it again", capfd)


def test_a_damaged_byte_is_refused_wherever_it_is(
    sticks: dict[str, tuple[Path, Path]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state, stick = sticks["known"]
    data = stick.read_bytes()
    for place in range(100, len(data) - 64, len(data) // 12):
        (tmp_path / "damaged").write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        refuses(state, tmp_path / "damaged", "bundle: ", capfd)


def test_a_zip_bomb_is_refused_unopened(
    sticks: dict[str, tuple[Path, Path]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state, stick = sticks["known"]
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(stick) as source, zipfile.ZipFile(bomb, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
        with target.open(zipfile.ZipInfo("blob/" + "0" * 64), "w", force_zip64=False) as member:
            member._zinfo.compress_type = zipfile.ZIP_STORED  # type: ignore[attr-defined]
            member.write(b"")
        target.writestr("blob/" + "1" * 64, bytes(64 << 20), compress_type=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 2 << 20

    refuses(state, bomb, "stored as it is", capfd)


def test_a_member_twice_is_refused(
    sticks: dict[str, tuple[Path, Path]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state, stick = sticks["known"]
    twice = tmp_path / "twice.zip"
    shutil.copy(stick, twice)
    with warnings.catch_warnings(), zipfile.ZipFile(twice, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("assign.json", b"{}")

    refuses(state, twice, "each once", capfd)


@pytest.mark.parametrize("which", ["known", "new"])
def test_the_stick_of_another_device_is_refused(
    sticks: dict[str, tuple[Path, Path]], capfd: pytest.CaptureFixture[str], which: str
) -> None:
    says = "expected one for watch.gull-3, got one for watch.gull-4" if which == "known" else "expected enrolled.json"
    refuses(sticks[which][0], sticks["other"][1], says, capfd)


def test_the_stick_of_another_newcomer_is_refused(
    world: World, sticks: dict[str, tuple[Path, Path]], capfd: pytest.CaptureFixture[str]
) -> None:
    """Everything in it is signed, for a device whose key we have not."""
    _, request = world.ask("tern-3")
    theirs = world.bundle("tern-3", 1, "--request", str(request))

    refuses(sticks["new"][0], theirs, "watch.tern-3", capfd)


def test_a_folder_that_has_asked_for_nothing_installs_nothing(
    sticks: dict[str, tuple[Path, Path]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()

    refuses(tmp_path / "empty", sticks["new"][1], "skerry-agent request", capfd)


def test_asking_twice_asks_with_the_same_key(world: World) -> None:
    state, request = world.ask("tern-4")
    first = json.loads(request.read_text())["csr"]
    pinned = ["--anchor-sha256", world.anchor_sha256, "--profile", PROFILE, "--simulate"]
    assert agent(["request", "--out", str(request), *pinned, "--state", str(state)]) == 0

    assert json.loads(request.read_text())["csr"] == first
    assert (state / "device.key").stat().st_mode & 0o777 == 0o600
    assert "PRIVATE" not in request.read_text()
    stick = world.bundle("tern-4", 1, "--request", str(request))
    again = world.bundle("tern-4", 1, "--request", str(request))
    assert install(state, again) == 0
    assert install(state, stick) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--device", "nobody", "--release", "strokes-1"), "expected one of `skerry device list`"),
        (("--device", "gull-3", "--release", "strokes-7"), "release"),
        (("--device", "gull-3", "--release", "strokes-1", "--days", "0"), "expected 1 to 90"),
        (("--device", "gull-3", "--release", "strokes-1", "--request", "README.md"), "EnrolRequest"),
    ],
)
def test_a_bundle_that_cannot_be_made_is_refused_with_a_reason(
    world: World,
    sticks: dict[str, tuple[Path, Path]],
    capfd: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    says: str,
) -> None:
    out = world.folder / "never.zip"
    capfd.readouterr()

    assert world.skerry("bundle", "create", *arguments, "--out", str(out)) == 2

    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert says in said
    assert not out.exists()


def test_another_device_cannot_be_certified_by_a_request(
    world: World, sticks: dict[str, tuple[Path, Path]], capfd: pytest.CaptureFixture[str]
) -> None:
    _, request = world.ask("tern-5")
    out = world.folder / "never.zip"
    arguments = ["--device", "gull-3", "--release", "strokes-1", "--out", str(out), "--request", str(request)]

    assert world.skerry("bundle", "create", *arguments) == 2
    assert "expected one that was named for offline installs" in capfd.readouterr().err
