"""The doctor and the machine that a device is: its disk and its runtime, with each fault made for real."""

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.inference import runtime_fit
from skerry.errors import Broken
from skerry.runtimes import Found
from tests.integration.agent.ailing import (
    Authority,
    Patient,
    make_patient,
    one,
)

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["/bin/mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("expected to mount a file system, got no permission")
    yield folder
    subprocess.run(["/bin/umount", "-l", str(folder)], check=True)


def test_a_full_disk_and_a_read_only_one_are_found(small_disk: Path, authority: Authority) -> None:
    patient = make_patient(small_disk / "state", authority, broker_port=1, server_port=1)
    patient.configure("quota_bytes = 524288\n")
    level, _, said = one(patient, "disk")
    assert (level, "little for a new model" in said) == ("warn", True)

    (small_disk / "ballast").write_bytes(bytes(700_000))
    level, status, said = one(patient, "disk")
    assert (level, status) == ("fail", 4)
    assert "bytes free for the outbox" in said

    subprocess.run(["/bin/mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "read-only file system" in one(patient, "disk")[2]


def test_a_quota_is_found_by_writing(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_handle: int) -> None:
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", refuse)
    level, status, said = one(patient, "disk")
    assert (level, status) == ("fail", 4)
    assert "Disk quota exceeded" in said


def test_little_room_is_a_doubt_and_less_than_the_outbox_may_want_a_fault(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for free, level in ((1 << 30, "ok"), (32 << 20, "warn"), (4096, "fail")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _path, free=free: Usage(1 << 40, 0, free))
        assert one(patient, "disk")[0] == level, free


# --- the runtime


def test_another_architecture_is_refused_and_a_simulated_one_is_not(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.upkeep.checks.platform.machine", lambda: "aarch64")
    level, status, said = one(patient, "runtime")
    assert (level, status) == ("fail", 2)
    assert "expected x86_64, as x86-64-gateway is, got aarch64" in said


def test_a_missing_runtime_names_what_to_install(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    level, status, said = one(patient, "runtime")
    assert (level, status) == ("fail", 4)
    assert "pip install 'skerry[onnx]'" in said


@pytest.mark.parametrize(
    ("version", "bound", "fits"),
    [
        ("1.20", ">=1.20", True),
        ("1.19.2", ">=1.20", False),
        ("1.31.1", ">=1.20", True),
        ("2.4.0", "<2.4", False),
        ("2.3.9", "<2.4", True),
        ("unknown", ">=1.20", True),
    ],
)
def test_a_version_is_within_its_bounds_or_not(version: str, bound: str, fits: bool) -> None:
    assert runtime_fit.within(version, bound) is fits


def test_a_runtime_that_is_too_old_or_cannot_be_imported_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Broken, match=r"expected onnxruntime>=.*, got 0\.4; pip install"):
        runtime_fit.check_runtime("onnxruntime", Found(sys.executable, "0.4"))
    broken = tmp_path / "onnxruntime"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('x.so: wrong ELF class: ELFCLASS32')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(Broken, match="wrong ELF class"):
        runtime_fit.check_runtime("onnxruntime", Found(sys.executable, "1.31.1"))
