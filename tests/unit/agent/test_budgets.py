"""What a component may take of a device, as its owner set it."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent.config import Budget, Config, read_config
from agent.deployment.fit import check_budget
from skerry.errors import Rejected


def test_a_component_has_its_own_budget_or_the_default(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        "[budgets.lamps]\ndisk_bytes = 5\nmemory_bytes = 7\n[budgets.default]\nmemory_bytes = 9\n"
    )
    config = read_config(tmp_path, {})

    assert config.budget("lamps") == Budget(disk_bytes=5, memory_bytes=7)
    assert config.budget("doors") == config.budget("") == Budget(memory_bytes=9)
    assert Config().budget("lamps") == Budget()


@pytest.mark.parametrize(("own", "other", "least"), [(0, 0, 0), (5, 0, 5), (0, 5, 5), (5, 4, 4), (4, 5, 4)])
def test_the_smaller_limit_of_memory_holds_and_none_is_no_limit(own: int, other: int, least: int) -> None:
    assert Budget(memory_bytes=own).least_memory(other) == least


def test_a_limit_below_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[budgets.lamps]\ndisk_bytes = -1\n")
    with pytest.raises(Rejected, match="disk_bytes: expected 0 or more"):
        read_config(tmp_path, {})


@pytest.mark.parametrize(("limit", "fits"), [(30, True), (29, False), (0, True)])
def test_what_stays_in_the_slots_counts_against_the_budget(tmp_path: Path, limit: int, *, fits: bool) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "model.onnx").write_bytes(b"x" * 10)
    manifest = SimpleNamespace(model="lamps", version=2, files=[SimpleNamespace(length=20)])
    refused = pytest.raises(Rejected, match="expected at most 29 bytes in its slots, got 30")
    with nullcontext() if fits else refused:
        check_budget(manifest, tmp_path, "a", budget=Budget(disk_bytes=limit))  # type: ignore[arg-type] # all it reads
