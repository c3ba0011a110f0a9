"""The power-cut matrix: a thousand and more disks that a power cut may leave of a story, and no device is lost."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from skerry.delivery.slots import Mark, Slots
from tests.integration.agent.shore import Device, wait_for
from tests.power.check import check_cuts
from tests.power.conftest import Story
from tests.power.cuts import choose, find_cuts, near, walk
from tests.power.disk import write_tree
from tests.power.without import CALLS

pytestmark = [pytest.mark.long, pytest.mark.broker, pytest.mark.timeout(1200)]
CUTS = 2000
WHOLE = 40
FIGURES = Path("build/power_cuts.json")
# where to look for what a missing sync loses; everywhere, where that is not said
AROUND = {"slots": "slots/.pointer.json.new", "partial": "fetch/", "outbox": "outbox.db"}


def test_no_cut_of_a_whole_story_loses_the_device(
    tell: Callable[..., Story], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    story = tell()
    recording = story.recording
    found = find_cuts(recording.initial, recording.operations)
    cuts = choose(found, CUTS)

    faults = check_cuts(recording, cuts, tmp_path)

    FIGURES.parent.mkdir(exist_ok=True)
    FIGURES.write_text(json.dumps({"cuts": len(cuts), "lost": len(faults)}) + "\n")
    with capsys.disabled():
        of = f"{len(found)} distinct ones after {len(recording.operations)} operations"
        print(f"\npower cuts: {len(cuts)} of {of}, {len(faults)} devices lost")
    assert len(cuts) >= 1000
    assert not faults, "\n".join(map(str, faults[:10]))


def test_a_real_agent_that_starts_on_a_cut_commits_what_is_assigned_next(
    tell: Callable[..., Story], tmp_path: Path
) -> None:
    story = tell()
    recording, shore, name = story.recording, story.shore, story.device.name
    last = shore.order(name, 2)
    every = choose(find_cuts(recording.initial, recording.operations), CUTS)
    cuts = sorted(random.Random(6).sample(every, WHOLE), key=lambda cut: cut.at)
    for number, (cut, tree) in enumerate(walk(recording.initial, recording.operations, cuts)):
        folder = tmp_path / f"cut-{number}"
        write_tree(tree, folder)
        heard = recording.promises.heard(cut.at)
        # the same past may have another future now: only what was heard before the cut still binds
        shore.entries = {(name, epoch, each): (row.kind, row.body) for (epoch, each), row in heard.items()}
        shore.reported.pop(name, None)
        device = story.device.again(folder)
        try:
            _wait_until_committed(story, device, last)
        except AssertionError as error:
            raise AssertionError(f"cut {cut.digest[:12]} at {cut.at}: {error}\n{device.log.read_text()}") from error
        finally:
            device.kill()
        slots = Slots(folder / "slots")
        assert slots.read(slots.active).version == 2
        assert shore.conflicts == 0, cut


def _wait_until_committed(story: Story, device: Device, last: str) -> None:
    shore, name = story.shore, device.name

    def committed() -> bool:
        said = shore.reported.get(name)
        wanted = (True, "committed", last, "strokes-2")
        return said is not None and (said.online, said.state, said.deployment, said.release) == wanted

    device.start()
    wait_for(committed, why=f"{last} to be committed", timeout_s=60)
    # the lifecycle is saved, and said, before the slot is marked
    wait_for(lambda: _mark(device) == Mark.GOOD.value, why="a good slot")
    assert device.stop() == 0
    wait_for(lambda: not shore.reported[name].online, why="a farewell")


def _mark(device: Device) -> str:
    pointer = Slots(device.folder / "slots").pointer
    return pointer.slot(pointer.active).mark


@pytest.mark.parametrize("call", CALLS)
def test_without_one_sync_devices_are_lost(tell: Callable[..., Story], tmp_path: Path, call: str) -> None:
    recording = tell(call).recording
    found = find_cuts(recording.initial, recording.operations)
    cuts = choose(near(found, recording.operations, AROUND.get(call, "")), 500)

    assert check_cuts(recording, cuts, tmp_path)
