"""`skerry profile` needs no server: it lists, shows and checks, and names the line of a mistake."""

import json
from pathlib import Path

import pytest

from control_plane.cli.program import main
from firmware_profiles import list_profiles
from firmware_profiles.loader import FOLDER


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("SKERRY_HOME", "SKERRY_URL", "SKERRY_TOKEN", "SKERRY_TFLITE_RUNTIME_PYTHON"):
        monkeypatch.delenv(name, raising=False)


def test_the_list_has_every_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(list_profiles())
    assert next(line for line in lines if line.startswith("armv7-legacy")).split()[3:5] == ["not", "run"]


def test_a_profile_is_shown_with_its_budgets_and_limits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "show", "arm64-gateway-512mb"]) == 0
    text = capsys.readouterr().out
    for line in (
        "emulator      arm64",
        "[budgets]",
        "size_bytes     2,097,152",
        "chunk_bytes    32,768",
        "cpu          C",
    ):
        assert line in text


def test_as_json_it_is_the_profile_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "profile", "show", "cortex-m"]) == 0
    assert json.loads(capsys.readouterr().out)["budgets"]["ram_bytes"] == 65_536


def test_a_right_file_is_one_and_a_wrong_one_says_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "esp32-s3.toml"
    text = (FOLDER / file.name).read_text(encoding="utf-8")
    file.write_text(text, encoding="utf-8")
    assert main(["profile", "check", str(file)]) == 0
    file.write_text(text.replace("agreement = 0.975", 'agreement = "high"'), encoding="utf-8")
    assert main(["profile", "check", str(file)]) == 2
    number = 1 + next(i for i, line in enumerate(text.splitlines()) if line.startswith("agreement"))
    expected = f'skerry: {file}:{number}: budgets.agreement: expected float, got "high"\n'
    assert capsys.readouterr().err == expected


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "show", "toaster"]) == 2
    assert "expected one of arm64-board" in capsys.readouterr().err


def test_a_runtime_that_lives_beside_ours_needs_nothing_prepared(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "prepare", "cortex-m"]) == 0
    assert "needs no environment of its own" in capsys.readouterr().out
