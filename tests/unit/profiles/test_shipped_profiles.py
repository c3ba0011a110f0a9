"""What ships covers the devices that Skerry speaks of, and a broken line of it is found."""

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firmware_profiles import list_profiles, load_profile, load_profile_file
from firmware_profiles.loader import FOLDER
from skerry.errors import Rejected
from skerry.wire import codec
from skerry.wire.profile import PROVIDERS, Profile

PROFILES = {name: load_profile(name) for name in list_profiles()}


def test_the_classes_of_device_are_covered() -> None:
    assert set(PROFILES) >= {
        "x86-64-gateway-vnni", "x86-64-gateway", "raspberry-pi-5", "raspberry-pi-4", "raspberry-pi-zero-2",
        "arm64-gateway-512mb", "arm64-board", "armv7-legacy", "cortex-m", "cortex-m4f-256kb", "cortex-m7-512kb",
        "cortex-m55", "esp32-s3",
    }  # fmt: skip


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES.keys())
def test_every_profile_is_whole(profile: Profile) -> None:
    assert profile.hardware is not None
    assert profile.providers[-1] == "cpu"
    assert profile.budgets.agreement >= 0.975
    assert "float32" in profile.precision
    assert bool(profile.transports) == profile.agent
    assert profile.agent or profile.operators


def test_only_one_gateway_has_vnni() -> None:
    assert [name for name, each in PROFILES.items() if "vnni" in each.features] == ["x86-64-gateway-vnni"]


def test_execution_providers_are_named_even_where_they_cannot_be_run() -> None:
    named = {provider for each in PROFILES.values() for provider in each.providers}
    assert named == set(PROVIDERS)


def test_the_legacy_runtime_says_what_it_needs_of_its_surroundings() -> None:
    legacy = PROFILES["armv7-legacy"]
    assert (legacy.runtime_version, legacy.environment) == ("==2.14", {"python": "3.11", "numpy": "<2"})


def test_a_set_of_operators_is_spelled_out() -> None:
    operators = PROFILES["cortex-m55"].operators
    assert {"FULLY_CONNECTED", "VAR_HANDLE"} < set(operators)
    assert not any(each.startswith("@") for each in operators)
    assert len(set(operators)) == len(operators)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES.keys())
def test_a_profile_survives_the_wire(profile: Profile) -> None:
    assert codec.decode(Profile, codec.encode(profile)) == profile


def test_a_profile_of_the_first_schema_still_reads() -> None:
    old = b"""{"name": "a", "description": "b", "architecture": "x86_64", "runtime": "litert", "runtime_version": "any",
    "precision": ["float32"], "budgets": {"size_bytes": 1, "ram_bytes": 1, "latency_ms": 1.0}, "v": 1}"""
    profile = codec.decode(Profile, old)
    assert (profile.prefer, profile.budgets.slice_drop, profile.hardware) == ("order", 0.05, None)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("transports = []", 'transports = ["lora"]', r":\d+: transports: expected one of mqtt, https, got 'lora'"),
        ('"cmsis-nn", "cpu"', '"npu"', r":\d+: providers: expected one of .*, got 'npu'"),
        ('"@tflite-micro"', '"@tflm"', r":\d+: operators: expected a set of @tflite-micro, got '@tflm'"),
        ('"int8-hybrid", "float32"', '"int8-qdq"', r":\d+: precision: expected one of .*, got 'int8-qdq'"),
        ('"int8-hybrid", "float32"', '"int8"', r":\d+: precision: expected one or more, each once, got"),
        ('prefer = "smaller"', 'prefer = "cheaper"', r":\d+: prefer: expected one of order, smaller, faster, got"),
        ('emulator = "cortex-m"', 'emulator = "riscv"', r":\d+: emulator: expected one of arm64, cortex-m, got"),
        ('runtime_version = "any"', 'runtime_version = "~2"', r":\d+: runtime_version: expected 'any' or a range"),
        ("[hardware]", "[hardwear]", r":\d+: expected only fields .* 'hardwear' \(did you mean hardware\?\)"),
        ("cores = 1", "cores = 0", r":\d+: hardware: cores: expected a number above 0, got 0"),
        ('cpu = "Cortex-M55 at 160 MHz"\n', "", r":\d+: hardware.cpu: expected a value, got none"),
        ("ram_bytes = 1_048_576", "ram_bytes = 9_999_999", r":\d+: budgets.ram_bytes: expected at most the device's"),
        ("agreement = 0.975", "agreement = 97.5", r":\d+: budgets: agreement: expected a share .* got 97.5"),
        ("agent = false", "v = 2", r":\d+: v: expected version 1 of the schema, got 2: install a newer skerry"),
        (
            "agent = false",
            "agent = false\ntransport = {chunk_bytes = 1}",
            r":\d+: transport: chunk_bytes: expected 1024",
        ),
    ],
)
def test_what_is_wrong_is_found_on_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (FOLDER / "cortex-m55.toml").read_text(encoding="utf-8")
    assert old in text
    changed = text.replace(old, new, 1)
    file = tmp_path / "cortex-m55.toml"
    file.write_text(changed, encoding="utf-8")
    with pytest.raises(Rejected, match=message) as caught:
        load_profile_file(file)
    said = int(re.search(r"\.toml:(\d+):", str(caught.value))[1])  # type: ignore[index] # the message has matched
    line = changed.splitlines()[said - 1]
    assert line == "[hardware]" or new.splitlines()[-1].split(" = ")[0] in line


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(PROFILES)), st.integers(0, 10_000), st.text(max_size=6))
def test_any_damage_is_one_line_or_a_profile(tmp_path: Path, name: str, at: int, junk: str) -> None:
    text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    at %= len(text)
    file = tmp_path / f"{name}.toml"
    file.write_bytes((text[:at] + junk + text[at + len(junk) :]).encode(errors="replace"))
    said = ""
    try:
        load_profile_file(file)
    except Rejected as error:
        said = str(error)
    assert not said or (said.startswith(str(file)) and "expected" in said)
