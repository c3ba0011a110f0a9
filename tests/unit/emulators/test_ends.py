"""Where an emulator is missing: "not run" with the way to get it, never outputs."""

from pathlib import Path

import numpy as np
import pytest

from control_plane.cli import emulators as verbs
from converters import emulators
from converters.c_source import emit_dense
from converters.emulators import NotRun, arm64_root, cortex_m, prepare, programs, run_arm64, run_cortex_m, status
from skerry.errors import Broken, Rejected
from tests.unit.emulators.nets import Layer, random_net

ROWS = {"x": np.zeros((2, 3), dtype=np.float32)}


def _no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (programs, cortex_m, arm64_root):
        monkeypatch.setattr(module, "find", lambda _program: None)


def test_a_model_is_not_run_on_an_arm64_that_was_never_prepared(tmp_path: Path) -> None:
    ended = run_arm64(tmp_path, "onnxruntime", b"model", ROWS)
    assert isinstance(ended, NotRun)
    assert f"skerry emulator prepare arm64 --folder {tmp_path}" in ended.reason


def test_a_runtime_without_aarch64_wheels_is_not_run(tmp_path: Path) -> None:
    ended = run_arm64(tmp_path, "tflite-micro", b"model", ROWS)
    assert ended == NotRun("expected a runtime with aarch64 wheels (onnxruntime, litert), got tflite-micro")


def test_emitted_c_is_not_run_without_compiler_and_emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _no_programs(monkeypatch)
    sources = emit_dense(random_net(np.random.default_rng(1), 3, [Layer(2)]))
    ended = run_cortex_m(tmp_path, sources, np.zeros((1, 3), dtype=np.int8))
    assert isinstance(ended, NotRun)
    assert "gcc-arm-none-eabi" in ended.reason
    assert "qemu-system-arm" in ended.reason


def test_rows_that_do_not_fit_the_c_are_refused(tmp_path: Path) -> None:
    sources = emit_dense(random_net(np.random.default_rng(1), 3, [Layer(2)]))
    with pytest.raises(Rejected, match=r"expected int8 \(n, 3\) for model, got float32 \(1, 3\)"):
        run_cortex_m(tmp_path, sources, np.zeros((1, 3), dtype=np.float32))
    with pytest.raises(Rejected, match=r"got int8 \(1, 4\)"):
        run_cortex_m(tmp_path, sources, np.zeros((1, 4), dtype=np.int8))


@pytest.mark.parametrize("kind", emulators.KINDS)
def test_preparing_without_the_programs_names_the_packages_and_touches_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _no_programs(monkeypatch)
    with pytest.raises(Broken, match="apt-get install --no-install-recommends"):
        prepare(kind, tmp_path / "folder", print)
    assert not (tmp_path / "folder").exists()


def test_installing_needs_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(Broken, match="as root on Debian"):
        programs.install(["qemu-system-arm"], print)


def test_a_folder_of_another_recipe_is_not_ready(tmp_path: Path) -> None:
    made = tmp_path / "arm64"
    made.mkdir()
    (made / "prepared.json").write_text('{"recipe": "of yesterday", "files": {}}', encoding="utf-8")
    assert any("in today's versions" in line for line in status("arm64", tmp_path).missing)


@pytest.mark.parametrize("record", ["", "[]", '"x"', "{"])
def test_a_broken_record_is_as_good_as_none(tmp_path: Path, record: str) -> None:
    (tmp_path / "arm64").mkdir()
    (tmp_path / "arm64" / "prepared.json").write_text(record, encoding="utf-8")
    assert any("prepare arm64" in line for line in status("arm64", tmp_path).missing)


def test_a_kind_that_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="expected arm64 or cortex-m, got 'riscv'"):
        status("riscv", tmp_path)


def test_the_command_line_and_the_package_know_the_same_kinds_and_folder() -> None:
    assert (verbs.KINDS, verbs.DEFAULT_FOLDER) == (emulators.KINDS, emulators.DEFAULT_FOLDER)
