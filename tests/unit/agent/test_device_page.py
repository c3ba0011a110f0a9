"""The page for devices names every setting, verb and check, and their defaults as they are."""

import json
import re
import tomllib
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from agent.config import Config
from agent.upkeep.doctor import CHECKS

PAGE = (Path(__file__).parents[3] / "docs/device.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `([a-z_]+)` \| (.+?) \|", PAGE, re.MULTILINE))


@pytest.mark.parametrize("setting", fields(Config), ids=lambda setting: setting.name)
def test_a_setting_is_there_with_its_default(setting: object) -> None:
    name, default, factory = (getattr(setting, each) for each in ("name", "default", "default_factory"))
    value = factory() if factory is not MISSING else default
    assert name in ROWS, f"docs/device.md: expected the setting {name} in the table, got none"
    said = tomllib.loads(f"value = {ROWS[name].strip('`')}")["value"]
    assert json.dumps(said) == json.dumps(value)


def test_no_setting_and_no_check_is_there_that_does_not_exist() -> None:
    known = {setting.name for setting in fields(Config)} | set(CHECKS) | {"run", "status", "doctor"}
    assert set(ROWS) - known == set()
    assert set(CHECKS) - set(ROWS) == set()
