"""The Debian packages: the same bytes twice, installed for real in a Debian of their own, used, and purged."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.packaging.conftest import EPOCH, ROOT, Machine, build, needed

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
PROGRAM = "/usr/bin/skerry-agent"


@pytest.fixture(scope="module")
def machine(packages: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A Debian with Python, and the packages in its /tmp: this machine's own packages are left alone."""
    if os.geteuid() != 0:
        pytest.skip("expected root: packages make users")
    debs, root = packages("amd64"), tmp_path_factory.mktemp("debian") / "root"
    command = [needed("mmdebstrap", "mmdebstrap"), "--quiet", "--variant=apt", "--include=python3,passwd"]
    done = subprocess.run(
        [*command, "--format=directory", "bookworm", str(root)],
        env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for deb in debs.glob("*.deb"):
        shutil.copy(deb, root / "tmp")
    yield Machine(root, ("/usr/sbin/chroot", str(root)))
    shutil.rmtree(root)


def test_they_install_work_without_a_network_and_purge(machine: Machine) -> None:
    debs = sorted(f"/tmp/{deb.name}" for deb in (machine.root / "tmp").glob("*.deb"))
    installed = machine.run("dpkg", "-i", *debs, check=False)
    assert installed.returncode == 0, installed.stdout + installed.stderr

    assert machine.run(PROGRAM, "--version").stdout.startswith("skerry-agent 0.")
    assert machine.run("stat", "-c", "%U %a", "/var/lib/skerry-agent").stdout.strip() == "skerry-agent 710"
    told = machine.run(PROGRAM, "doctor", "--state", "/var/lib/skerry-agent", check=False)
    assert (told.returncode, "run skerry-agent init first" in told.stdout) == (2, True), told.stderr
    # whatever a child imports is there, and none of it is the server's
    every = "daemon trust.trust_child identity.proof_child fetching.unseal_child inference.worker upkeep.doctor"
    ours = (f"agent.{each}" for each in every.split())
    imports = "; ".join(f"import {each}" for each in (*ours, "onnxruntime", "socks"))
    path = "PYTHONPATH=/opt/skerry-agent/lib:/opt/skerry-agent/onnx"
    machine.run("env", path, "python3", "-P", "-c", imports)
    for absent in ("control_plane", "fastapi", "converters"):
        assert machine.run("env", path, "python3", "-P", "-c", f"import {absent}", check=False).returncode == 1
    listed = machine.run("dpkg", "-L", "skerry-agent").stdout.splitlines()
    assert "/usr/lib/systemd/system/skerry-agent.service" in listed
    assert "/usr/share/doc/skerry-agent/device.md" in listed  # the unit names it
    assert (
        machine.run("dpkg-query", "-W", "-f=${Conffiles}", "skerry-agent").stdout.split()[0].startswith("/etc/default/")
    )

    machine.run("dpkg", "--purge", "skerry-agent-onnx", "skerry-agent")
    left = [
        name
        for name in ("opt/skerry-agent", "var/lib/skerry-agent", "etc/default/skerry-agent")
        if (machine.root / name).exists()
    ]
    assert left == []


def test_they_are_the_same_bytes_wherever_they_are_built(tmp_path: Path) -> None:
    parts = ("agent", "control_plane", "converters", "docs", "firmware_profiles", "locks", "packaging", "skerry")
    first, second = tmp_path / "here", tmp_path / "somewhere" / "else"
    first.mkdir()
    for part in parts:
        shutil.copytree(ROOT / part, first / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, first)
    # other times and modes, as another checkout has them
    shutil.copytree(first, second, copy_function=shutil.copyfile)
    (second / "packaging/deb/build").chmod(0o755)

    made = [digests(build(tmp_path / sources.name / "dist", "amd64", sources=sources)) for sources in (first, second)]

    assert made[0] == made[1]
    assert len(made[0]) == 2


def digests(folder: Path) -> dict[str, str]:
    """Return the digest of each package by its name."""
    return {deb.name: hashlib.sha256(deb.read_bytes()).hexdigest() for deb in folder.glob("*.deb")}
