"""The Dockerfile, built by buildah: its agent lives in a container that lets it write its state and nothing else.

No registry is asked: what stands in for `python:3.11-slim-bookworm` is a Debian with Python where that image has it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Mosquitto
from tests.integration.packaging.conftest import EPOCH, ROOT, Machine, expect_success, needed
from tests.integration.packaging.first_model import STATE, committed, is_well, lacks_an_enrolment

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
BASE = "docker.io/library/python:3.11-slim-bookworm"
# `docker run --read-only --cap-drop ALL --security-opt no-new-privileges -v ...`, of what every Debian has
CONFINE = """
root=$1 state=$2 && shift 2
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount --bind "$root$state" "$root$state" && mount -o remount,bind,rw "$root$state"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null urandom; do : >"$root/dev/$device" && mount --bind "/dev/$device" "$root/dev/$device"; done
ln -s /proc/self/fd "$root/dev/fd"
exec chroot "$root" "$@"
"""


@dataclass(frozen=True, slots=True)
class Buildah:
    """buildah with a store of its own: this machine's images and containers are left alone."""

    program: str
    folder: Path

    def __call__(self, verb: str, *arguments: str) -> str:
        """Run a verb to its end and return what it printed."""
        store = ("--storage-driver=vfs", f"--root={self.folder / 'store'}", f"--runroot={self.folder / 'run'}")
        done = subprocess.run(
            [self.program, *store, verb, *arguments],
            env={**os.environ, "TMPDIR": str(self.folder)},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        expect_success(done)
        return done.stdout.strip()


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    """Return buildah with an empty store."""
    if os.geteuid() != 0:
        pytest.skip("expected root: images have users")
    found = Buildah(needed("buildah", "buildah"), tmp_path_factory.mktemp("buildah"))
    yield found
    shutil.rmtree(found.folder)


@pytest.fixture(scope="module")
def base(buildah: Buildah) -> str:
    """Return the image that stands in for Docker Hub's: Python in /usr/local/bin, and none in /usr/bin by that name."""
    mmdebstrap = needed("mmdebstrap", "mmdebstrap")
    container = buildah("from", "scratch")
    root = Path(buildah("mount", container))
    command = [mmdebstrap, "--quiet", "--variant=minbase", "--include=python3.11,python3-pip,ca-certificates"]
    subprocess.run(
        [*command, "--format=directory", "bookworm", str(root)],
        env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH},
        check=True,
        timeout=300,
    )
    (root / "usr/bin/python3").unlink()
    (root / "usr/lib/python3.11/EXTERNALLY-MANAGED").unlink()
    (root / "usr/local/bin/python3").symlink_to("/usr/bin/python3.11")
    buildah("commit", "--quiet", "--rm", container, BASE)
    return BASE


@pytest.fixture(scope="module")
def image(buildah: Buildah, base: str) -> str:
    """Return the image that the Dockerfile makes, by the package index that this machine's pip uses."""
    how = pip_settings()
    settings = buildah.folder / "pip.conf"
    settings.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in how.items()))
    volumes = [f"--volume={settings}:/etc/pip.conf:ro"]
    if "cert" in how:
        volumes.append(f"--volume={how['cert']}:{how['cert']}:ro")
    # Docker's own format: the other one knows no HEALTHCHECK
    plain = ("--isolation=chroot", "--network=host", "--pull-never", "--format=docker", f"--build-arg=BASE={base}")
    file = ROOT / "packaging/docker/Dockerfile"
    buildah("build", *plain, *volumes, f"--file={file}", "--tag=skerry-agent", str(ROOT))
    return "localhost/skerry-agent"


def pip_settings() -> dict[str, str]:
    """Return how this machine's pip reaches its index; its environment comes before its files."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, str] = {}
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        name = name.rpartition(".")[2]
        # what lies on this machine's disk does not lie in a container
        value = " ".join(each for each in value.strip("'\"").split() if not each.startswith("file:"))
        if value and name in ("index-url", "extra-index-url", "cert", "proxy", "trusted-host", "timeout"):
            found[name] = value
    return found


@pytest.fixture(scope="module")
def says(buildah: Buildah, image: str) -> dict[str, Any]:
    """Return what the image says of how it is run."""
    inspected = json.loads(buildah("inspect", "--type=image", image))
    return dict(inspected["Docker"]["config"])


@pytest.fixture(scope="module")
def container(buildah: Buildah, image: str, says: dict[str, Any]) -> Machine:
    """A container from the image; each program run in it is its first process, as with `docker run`."""
    name = buildah("from", "--pull-never", image)
    root = Path(buildah("mount", name))
    (folder,) = says["Volumes"]
    alone = ("/usr/bin/unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-euc", CONFINE, "confine")
    return Machine(root, (*alone, str(root), folder, *as_its_user(says)))


def as_its_user(says: dict[str, Any]) -> tuple[str, ...]:
    """Return how a program is started as the image's user, without a capability and with none to be had."""
    user, group = says["User"].split(":")
    bare = ("/usr/bin/setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs")
    nothing = ("--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all")
    return (*bare, *nothing, "/usr/bin/env", "-i", f"--chdir={says['WorkingDir']}", *says["Env"])


def test_the_image_has_an_agent_that_says_what_it_lacks_and_can_write_its_state_alone(container: Machine) -> None:
    lacks_an_enrolment(container)
    tried = container.run("sh", "-c", "touch /x; touch /tmp/x; touch x && grep CapBnd /proc/self/status; id -u")
    assert tried.stdout.split() == ["CapBnd:", "0" * 16, "999"]
    assert tried.stderr.count("Read-only file system") == 2


@pytest.mark.broker
def test_it_enrols_commits_its_first_model_is_healthy_and_stops_when_told(
    container: Machine, says: dict[str, Any], mosquitto: Mosquitto, tmp_path: Path
) -> None:
    start = (*says["Entrypoint"], *says["Cmd"])
    assert STATE in start
    kind, *healthy = says["Healthcheck"]["Test"]
    assert kind == "CMD"
    assert container.run(*healthy, check=False).returncode == 1, "nothing runs yet"

    with committed(container, mosquitto, tmp_path, profile="x86-64-gateway", start=start) as agent:
        # as `docker exec` and `docker stop` do
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
        first = int(children[0])
        enter = ("/usr/bin/nsenter", f"--target={first}", "--mount", "--pid", "--root", *as_its_user(says))
        beside = replace(container, enter=enter)
        assert beside.run("cat", "/proc/1/comm").stdout.strip() == "python3"
        assert beside.run(*healthy).returncode == 0
        is_well(beside)
        os.kill(first, signal.SIGTERM)
        assert agent.wait(10) == 0
    for line in (tmp_path / "agent.log").read_text().splitlines():
        assert json.loads(line)["level"]


def test_nothing_reaches_the_build_but_what_it_is_built_from(buildah: Buildah, tmp_path: Path) -> None:
    context = tmp_path / "checkout"
    for name in (".git/config", ".venv/bin/python", "build/x", "offline-keys/root", "agent/__pycache__/x.pyc"):
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).touch()
    for name in (".dockerignore", "agent/daemon.py", "pyproject.toml", "locks/dev.txt"):
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, context / name)
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    buildah("build", f"--file={tmp_path / 'Dockerfile'}", "--tag=context", str(context))

    container = buildah("from", "--pull-never", "localhost/context")
    root = Path(buildah("mount", container))
    found = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())

    assert found == ["agent/daemon.py", "locks/dev.txt", "pyproject.toml"]
