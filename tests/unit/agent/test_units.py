"""The units of a device that has not been started: which of them can be asked to load its model anew."""

from pathlib import Path

import pytest

from agent.config import Config
from agent.daemon import Daemon
from agent.deployment.units import Units
from agent.identity.folder import StateFolder
from skerry.errors import Rejected
from skerry.wire import codec
from tests.unit.agent.test_daemon import ANCHOR, IDENTITY


@pytest.fixture
def units(tmp_path: Path) -> Units:
    """The units of a device with a model beside its own and a version of the agent, none of which is committed."""
    folder = StateFolder(tmp_path)
    folder.keep(IDENTITY, anchor=codec.encode(ANCHOR), key=b"", certificate="", broker_ca="")
    assert folder.begin(("lamps", "agent"))
    assert not folder.begin(("lamps",))
    return Daemon(folder, Config()).units


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("doors", r"expected a component of this device \(lamps\), got 'doors'"),
        ("agent", r"expected a component of this device \(lamps\), got 'agent'"),
        ("lamps", "expected a committed model, got none"),
        ("", "expected a committed model, got none"),
    ],
)
def test_what_runs_no_model_is_not_restarted(units: Units, name: str, says: str) -> None:
    with pytest.raises(Rejected, match=says):
        units.restart(name)
