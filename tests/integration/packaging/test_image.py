"""The arm64 image, in the emulator: its agent enrols with a real control plane and commits its first model."""

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Mosquitto
from tests.integration.packaging.conftest import EPOCH, ROOT, Machine, needed
from tests.integration.packaging.first_model import PROGRAM, STATE, committed, is_well, lacks_an_enrolment

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(600)]
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
    lacks_an_enrolment(board)


@pytest.mark.broker
def test_it_enrols_and_commits_its_first_model(board: Machine, mosquitto: Mosquitto, tmp_path: Path) -> None:
    # an emulated worker is slow to load, and its latency says nothing of a device's
    config = "infer_timeout_s = 120.0\nfetch_timeout_s = 30.0\n"
    start = (PROGRAM, "run", "--state", STATE)
    with committed(board, mosquitto, tmp_path, profile="arm64-gateway-512mb", start=start, config=config):
        # while it runs, and it is the emulated doctor that looks
        is_well(board)
