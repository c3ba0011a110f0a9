"""The agent updates itself: real wheels of this tree, a real broker, and the launcher between the versions."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from skerry.wire.messages import Component
from tests.integration.agent.several import SeveralShore
from tests.integration.agent.shore import Device, wait_for
from tests.wheels import build_skerry, wheel

pytestmark = [
    pytest.mark.long,
    pytest.mark.broker,
    pytest.mark.parametrize("broker_port", [pytest.param("mosquitto")], indirect=True),
]
# ends by a signal before the agent can say a word, but only as the agent: neither its version nor its check tell
CRASHES = "import os, sys\nif 'run' in sys.argv:\n    os.kill(os.getpid(), 11)\n"
# comes up, may even be committed, and then ends each time
ENDS = """
import os, sys, threading
if 'run' in sys.argv:
    timer = threading.Timer(6.0, os._exit, [9])
    timer.daemon = True
    timer.start()
"""
BREAKS = "raise ImportError('expected a newer Python')\n"


@pytest.fixture
def shore(broker_port: int, tmp_path: Path) -> Iterator[SeveralShore]:
    """A control plane of its own for each test."""
    shore = SeveralShore(broker_port, tmp_path)
    yield shore
    shore.close()


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Wheels of this tree by version: two that work, and others that do not, each in its way."""
    folder = tmp_path_factory.mktemp("wheels")
    versions = {
        "0.2.0": {},
        "0.3.0": {"agent/telling/twin.py": CRASHES},
        "0.4.0": {"agent/daemon.py": BREAKS},
        "0.5.0": {},
        "0.6.0": {"agent/telling/twin.py": ENDS},
    }
    return {name: build_skerry(folder, name, changes=changes).read_bytes() for name, changes in versions.items()}


def agent_of(shore: SeveralShore, device: Device) -> str:
    """Return the version of the agent that reported last."""
    return shore.reported[device.name].agent if device.name in shore.reported else ""


def test_a_version_of_the_agent_is_tried_and_committed_and_a_crashing_one_is_rolled_back_by_itself(
    shore: SeveralShore, device: Device, wheels: dict[str, bytes]
) -> None:
    shore.release_model("strokes", 1)
    shore.release_agent(2, {"skerry.whl": wheels["0.2.0"]})
    shore.release_agent(3, {"skerry.whl": wheels["0.3.0"]})
    model = shore.give(device.name, "", "strokes", 1, trial_inferences=5)
    device.start()
    assert shore.ends(device.name, model).state == "committed"
    installed = agent_of(shore, device)

    good = shore.give(device.name, "agent", "agent", 2)

    end = shore.ends(device.name, good, timeout_s=90)
    assert (end.state, end.component, end.release) == ("committed", "agent", "agent-2"), end
    assert (installed, agent_of(shore, device)) == ("0.1.0", "0.2.0")
    wait_for(lambda: own(shore, device).state == "committed", why="a report of the agent")
    assert own(shore, device).manifest == shore.digest("agent", 2)
    # the model was not touched
    assert shore.reported[device.name].release == "strokes-1"
    before = len(shore.windows(device.name))
    wait_for(lambda: len(shore.windows(device.name)) > before, why="a window of the new version")

    crashing = shore.give(device.name, "agent", "agent", 3)

    end = shore.ends(device.name, crashing, timeout_s=120)
    assert end.state == "failed", end
    assert "3 ends before it was well, the last by SIGSEGV" in end.reason
    wait_for(lambda: shore.reported[device.name].online, why="the version before")
    assert agent_of(shore, device) == "0.2.0"
    assert _running(device) == {"0.2.0"}
    numbers = [window.window for window in shore.windows(device.name)]
    assert numbers == list(range(len(numbers)))
    assert shore.conflicts == 0

    # and the device is as it was: a version after that is taken
    shore.release_agent(5, {"skerry.whl": wheels["0.5.0"]})
    assert shore.ends(device.name, shore.give(device.name, "agent", "agent", 5), timeout_s=90).state == "committed"
    assert agent_of(shore, device) == "0.5.0"
    assert device.stop() == 0


def test_a_version_that_cannot_start_here_is_refused_before_anything_changes(
    shore: SeveralShore, device: Device, wheels: dict[str, bytes]
) -> None:
    shore.release_model("strokes", 1)
    shore.release_agent(4, {"skerry.whl": wheels["0.4.0"]})
    model = shore.give(device.name, "", "strokes", 1, trial_inferences=5)
    device.start()
    shore.ends(device.name, model)
    process = device._process

    end = shore.ends(device.name, shore.give(device.name, "agent", "agent", 4), timeout_s=60)

    assert end.state == "failed"
    assert "expected a newer Python" in end.reason
    assert "trial" not in [event.state for event in shore.states(device.name, end.deployment)]
    assert process is not None
    assert process.poll() is None
    assert agent_of(shore, device) == "0.1.0"


def test_what_else_a_version_needs_travels_beside_it_and_without_a_good_one_the_installed_one_comes_back(
    shore: SeveralShore, device: Device, wheels: dict[str, bytes]
) -> None:
    brought = wheel("onlyhere", "1", {"onlyhere/__init__.py": "VERSION = '1'\n"})
    shore.release_agent(2, {"skerry.whl": wheels["0.2.0"], "onlyhere.whl": brought})
    shore.release_agent(3, {"skerry.whl": wheels["0.3.0"]})
    device.start()

    crashing = shore.give(device.name, "agent", "agent", 3)
    assert shore.ends(device.name, crashing, timeout_s=120).state == "failed"
    assert agent_of(shore, device) == "0.1.0"
    assert _running(device) == set()

    good = shore.give(device.name, "agent", "agent", 2)
    assert shore.ends(device.name, good, timeout_s=90).state == "committed"
    packages = next((device.folder / "components" / "agent" / "environments").glob("*/lib/*/site-packages/onlyhere"))
    assert (packages / "__init__.py").read_text() == "VERSION = '1'\n"


def test_a_version_that_was_committed_and_ends_again_and_again_is_given_up_and_told_of(
    shore: SeveralShore, device: Device, wheels: dict[str, bytes]
) -> None:
    shore.release_agent(2, {"skerry.whl": wheels["0.2.0"]})
    shore.release_agent(6, {"skerry.whl": wheels["0.6.0"]})
    device.start()
    good = shore.give(device.name, "agent", "agent", 2)
    assert shore.ends(device.name, good, timeout_s=90).state == "committed"

    ending = shore.give(device.name, "agent", "agent", 6)

    wait_for(
        lambda: any(event.state == "failed" for event in shore.states(device.name, ending)),
        why="the version to be given up",
        timeout_s=120,
    )
    failed = shore.states(device.name, ending)[-1]
    assert "exit status 9" in failed.reason or "restarted while trial" in failed.reason
    wait_for(lambda: agent_of(shore, device) == "0.2.0", why="the version before", timeout_s=30)
    wait_for(lambda: own(shore, device).manifest == shore.digest("agent", 2), why="a report of the agent")


def own(shore: SeveralShore, device: Device) -> Component:
    """Return what was last reported of the agent itself."""
    return (shore.reported[device.name].components or {}).get("agent", Component(state=""))


def _running(device: Device) -> set[str]:
    """Return the versions of the environments that processes of this device run from."""
    found = set()
    for folder in Path("/proc").iterdir():
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        environment = str(device.folder / "components" / "agent" / "environments")
        if arguments[0].decode(errors="replace").startswith(environment) and b"run" in arguments:
            packages = Path(arguments[0].decode()).parent.parent / "lib"
            (init,) = packages.glob("*/site-packages/skerry/__init__.py")
            found.add(init.read_text().partition('__version__ = "')[2].partition('"')[0])
    return found
