"""Profiles load, and a wrong one says where and why."""

from pathlib import Path

import pytest

from firmware_profiles import list_profiles, load_profile, load_profile_file
from skerry.errors import Rejected

GOOD = """name = "mine"
description = "a board"
architecture = "aarch64"
runtime = "litert"
runtime_version = "any"
precision = ["float32"]

[budgets]
size_bytes = 1000
ram_bytes = 1000
latency_ms = 1.5
"""


def test_every_shipped_profile_loads_under_its_own_name() -> None:
    assert {name: load_profile(name).name for name in list_profiles()} == {name: name for name in list_profiles()}


def test_the_four_runtimes_are_covered() -> None:
    runtimes = {load_profile(name).runtime for name in list_profiles()}
    assert runtimes == {"onnxruntime", "litert", "tflite-micro", "tflite-runtime"}


def test_a_microcontroller_has_no_agent() -> None:
    assert not load_profile("cortex-m").agent


@pytest.mark.parametrize("name", ["nonesuch", "", "../cortex-m", "cortex-m.toml", "operators/tflite-micro"])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(Rejected, match=r"expected one of arm64-board, arm64-gateway-512mb, .*x86-64-gateway-vnni, got"):
        load_profile(name)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('runtime = "litert"', 'runtime = "tensorrt"', r"mine\.toml:4: runtime: expected one of .*, got 'tensorrt'"),
        ("size_bytes = 1000", 'size_bytes = "big"', r"mine\.toml:9: budgets\.size_bytes: expected int, got \"big\""),
        ("latency_ms = 1.5", "latency_ms = -1", r"mine\.toml:11: budgets: latency_ms: expected .* above 0, got -1"),
        (
            "latency_ms = 1.5",
            "latency_sm = 1.5",
            r"mine\.toml:11: .* got 'budgets\.latency_sm' \(did you mean latency_ms",
        ),
        ("ram_bytes = 1000\n", "", r"mine\.toml:8: budgets\.ram_bytes: expected a value, got none"),
        ('runtime = "litert"\n', "", r"mine\.toml: runtime: expected a value, got none"),
        ('precision = ["float32"]', "precision = [8]", r"mine\.toml:6: precision\[0\]: expected str, got 8"),
        ('name = "mine"', 'name = "yours"', r"mine\.toml:1: name: expected the file's name 'mine', got 'yours'"),
        ('name = "mine"', "name = ", r"mine\.toml:1: expected a profile in TOML, got .*"),
        ("latency_ms = 1.5\n", "latency_ms = [", r"mine\.toml:11: expected a profile in TOML, got .*"),
    ],
)
def test_a_wrong_profile_names_file_field_expected_and_got(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(GOOD.replace(old, new), encoding="utf-8")
    with pytest.raises(Rejected, match=message) as caught:
        load_profile_file(file)
    assert "\n" not in str(caught.value)


def test_a_right_profile_of_ones_own_loads(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(GOOD, encoding="utf-8")
    assert load_profile_file(file).budgets.agreement == 0.975


def test_a_missing_profile_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="expected a profile in TOML, got No such file"):
        load_profile_file(tmp_path / "none.toml")
