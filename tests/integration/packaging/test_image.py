"""The arm64 image, in the emulator: its agent enrols with a real control plane and commits its first model."""

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from demo import watch
from demo.__main__ import found_control_plane
from demo.programs import Programs
from tests.conftest import Mosquitto
from tests.integration.packaging.conftest import EPOCH, ROOT, Machine, needed

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(600)]
PROFILE = "arm64-gateway-512mb"
STATE = "/var/lib/skerry-agent"
QEMU = "/qemu-aarch64-static"
# the agent starts Python again and again, and the kernel here runs no arm64 program: but it runs a script
STUB = f"""#!{QEMU} /bin/dash
exec {QEMU} -0 "$0" /usr/bin/python3.11.arm64 "$@"
"""


@pytest.fixture(scope="module")
def board(packages: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """An arm64 machine from the image, with the emulator put into it."""
    if os.geteuid() != 0:
        pytest.skip("expected root: the image has users")
    qemu = needed("qemu-aarch64-static", "qemu-user-static")
    needed("mmdebstrap", "mmdebstrap")
    folder = tmp_path_factory.mktemp("image")
    image, root = folder / "skerry-agent-arm64.tar", folder / "root"
    done = subprocess.run(
        [str(ROOT / "packaging/image/build"), "arm64", str(packages("arm64")), str(image)],
        env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    root.mkdir()
    subprocess.run(["/bin/tar", "-C", str(root), "-xf", str(image)], check=True)
    image.unlink()
    shutil.copy(qemu, root / QEMU[1:])
    python = root / "usr/bin/python3.11"
    python.rename(root / "usr/bin/python3.11.arm64")
    python.write_text(STUB)
    python.chmod(0o755)
    # what every machine has and no image: nothing of it is this test's to try
    for name, number in (("null", 3), ("urandom", 9)):
        os.mknod(root / "dev" / name, stat.S_IFCHR | 0o666, os.makedev(1, number))
        (root / "dev" / name).chmod(0o666)
    (root / "dev/fd").symlink_to("/proc/self/fd")
    subprocess.run(["/bin/mount", "-t", "proc", "proc", str(root / "proc")], check=True)
    try:
        yield Machine(root, ("/usr/sbin/chroot", "--userspec=999:999", str(root), QEMU, "/bin/sh"))
    finally:
        subprocess.run(["/bin/umount", "-l", str(root / "proc")], check=True)
        shutil.rmtree(root)


def test_the_image_has_an_agent_that_says_what_it_lacks(board: Machine) -> None:
    assert board.run("/usr/bin/skerry-agent", "--version").stdout.startswith("skerry-agent 0.")
    told = board.run("/usr/bin/skerry-agent", "doctor", "--state", STATE, check=False)
    assert told.returncode == 2
    assert "run skerry-agent init first" in told.stdout


@pytest.mark.broker
def test_it_enrols_and_commits_its_first_model(board: Machine, mosquitto: Mosquitto, tmp_path: Path) -> None:
    with Programs(home=tmp_path / "server", logs=tmp_path / "logs") as programs:
        found_control_plane(programs, tmp_path / "keys", broker_url=mosquitto.url)
        windows = watch.load()
        watch.write(tmp_path / "data.npz", windows, windows.where(wearers=watch.TRAIN_WEARERS, wrist="right"))
        watch.write(board.root / "tmp/worn.npz", windows, windows.where(wearers=(8,), wrist="right"))
        (board.root / "tmp/worn.npz").chmod(0o644)
        programs.skerry("data", "add", "watch", str(tmp_path / "data.npz"))
        recipe = Path(watch.__file__).with_name("recipe.toml")
        programs.skerry("model", "train", "watch", "--data", "watch", "--recipe", str(recipe))
        programs.skerry("model", "compile", "watch", "1", f"--profile={PROFILE}")
        programs.skerry("release", "create", "watch", "1")
        programs.skerry("release", "sign", "watch-1", "--keys", str(tmp_path / "keys"))

        join = programs.skerry("device", "invite", "--profile", PROFILE, "--name", "board")["join"]
        told = board.run("/usr/bin/skerry-agent", "init", join, "--profile", PROFILE, "--state", STATE)
        assert told.stdout.startswith("enrolled as ")
        # an emulated worker is slow to load, and its latency says nothing of a device's
        (board.root / STATE[1:] / "config.toml").write_text("infer_timeout_s = 120.0\nfetch_timeout_s = 30.0\n")
        run = ("/usr/bin/skerry-agent", "run", "--state", STATE, "--replay", "/tmp/worn.npz", "--rate", "20")
        with (tmp_path / "agent.log").open("wb") as log:
            agent = subprocess.Popen([*board.enter, *run, "--event-step", "60"], stderr=log, stdout=log)
        try:
            rollout = programs.skerry("rollout", "create", "watch-1", "--wave=all=rest")["id"]
            done = programs.skerry("rollout", "wait", str(rollout), "--timeout", "300")
            # one of two: where the board measures both builds, the one that it found faster follows as a second
            assert {(each["device"], each["state"]) for each in done["deployments"]} == {("board", "committed")}
            # while it runs, and it is the emulated doctor that looks
            told = board.run("/usr/bin/skerry-agent", "doctor", "--state", STATE, check=False)
            assert "ok    model" in told.stdout, told.stdout
            assert "the agent runs and answers on" in told.stdout
        finally:
            agent.terminate()
            agent.wait(60)
            print((tmp_path / "agent.log").read_text()[-4000:])
