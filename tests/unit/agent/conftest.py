"""What several files of the agent's unit tests begin with."""

from pathlib import Path

import pytest

from tests.unit.agent.trust_case import Case


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """Two repositories that agree on a first assignment."""
    return Case(tmp_path / "trust")
