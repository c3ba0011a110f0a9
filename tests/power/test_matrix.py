"""The power-cut matrix: some thousands of disks that a power cut may leave of a few stories, and no device is lost.

A whole agent is recorded on a broker; updates of several components and of the agent itself, the end of the device, its
enrolment, and the putting right of what the disk has spoilt, are recorded of the agent's own parts.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from skerry.delivery.slots import Mark, Slots
from tests.integration.agent.shore import Device, wait_for
from tests.power.check import check_cuts
from tests.power.conftest import Story
from tests.power.cuts import Cut, choose, find_cuts, near, walk
from tests.power.disk import write_tree
from tests.power.enrolment import record_enrolment
from tests.power.pieces import record_components
from tests.power.restart import Updates
from tests.power.rot import record_rot
from tests.power.without import CALLS
from tests.power.world import Recording

pytestmark = [pytest.mark.long, pytest.mark.broker, pytest.mark.timeout(1200)]
CUTS = 1200
WHOLE = 40
FIGURES = Path("build/power_cuts.json")
# where in the story of the components a cut is worth more than elsewhere, and how many are looked at there
WORTH = {"components/agent/.launch": 150, "leaving": 100, "device.key": 100, "identity.json": 100}
# where to look for what a missing sync loses; everywhere, where that is not said
AROUND = {"slots": "slots/.pointer.json.new", "partial": "fetch/", "outbox": "outbox.db"}
# in which story, and where
ELSEWHERE = {
    "components": (record_components, "components"),
    "launcher": (record_components, "components/agent/.launch"),
    "leaving": (record_components, "device.key"),
    "wiped": (record_components, "leaving"),
}

Chosen = list[tuple[Recording, list[Cut]]]


def test_no_cut_of_any_story_loses_the_device(
    tell: Callable[..., Story], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tell().recording
    chosen: Chosen = [(whole, choose(find_cuts(whole.initial, whole.operations), CUTS))]
    chosen += [_with_components(tmp_path), _all_of(record_enrolment(_folder(tmp_path, "enrolment")), 200)]
    chosen += [_all_of(each, 40) for each in record_rot(_folder(tmp_path, "rot"))]

    faults = check_cuts(chosen, tmp_path)

    count = sum(len(cuts) for _, cuts in chosen)
    FIGURES.parent.mkdir(exist_ok=True)
    FIGURES.write_text(json.dumps({"cuts": count, "lost": len(faults)}) + "\n")
    with capsys.disabled():
        of = ", ".join(f"{len(cuts)} of {recording.name}" for recording, cuts in chosen)
        print(f"\npower cuts: {count}, {len(faults)} devices lost ({of})")
    assert count >= 1000
    assert not faults, "\n".join(map(str, faults[:10]))


def _with_components(folder: Path) -> tuple[Recording, list[Cut]]:
    recording = record_components(_folder(folder, "components"))
    found = find_cuts(recording.initial, recording.operations)
    chosen = {cut.digest: cut for cut in choose(found, CUTS)}
    for path, most in WORTH.items():
        chosen.update((cut.digest, cut) for cut in choose(near(found, recording.operations, path), most))
    return recording, sorted(chosen.values(), key=lambda cut: (cut.at, cut.digest))


def _all_of(recording: Recording, most: int) -> tuple[Recording, list[Cut]]:
    return recording, choose(find_cuts(recording.initial, recording.operations), most)


def _folder(above: Path, name: str) -> Path:
    folder = above / name
    folder.mkdir()
    return folder


def test_a_real_agent_that_starts_on_a_cut_commits_what_is_assigned_next(
    tell: Callable[..., Story], tmp_path: Path
) -> None:
    story = tell()
    recording, shore, name = story.recording, story.shore, story.device.name
    judge = recording.judge
    assert isinstance(judge, Updates)
    last = shore.order(name, 2)
    every = choose(find_cuts(recording.initial, recording.operations), CUTS)
    cuts = sorted(random.Random(6).sample(every, WHOLE), key=lambda cut: cut.at)
    for number, (cut, tree) in enumerate(walk(recording.initial, recording.operations, cuts)):
        folder = tmp_path / f"cut-{number}"
        write_tree(tree, folder)
        heard = judge.promises.heard(cut.at)
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

    assert check_cuts([(recording, cuts)], tmp_path)


@pytest.mark.parametrize("call", ELSEWHERE)
def test_without_one_sync_a_component_an_agent_or_a_wipe_is_lost(tmp_path: Path, call: str) -> None:
    record, around = ELSEWHERE[call]
    recording = record(tmp_path, without=call)
    found = find_cuts(recording.initial, recording.operations)
    cuts = choose(near(found, recording.operations, around), 150)

    assert check_cuts([(recording, cuts)], tmp_path)


@pytest.mark.parametrize("call", ["file", "folder"])
def test_without_one_sync_an_enrolment_is_lost(tmp_path: Path, call: str) -> None:
    recording = record_enrolment(tmp_path, without=call)

    assert check_cuts([_all_of(recording, 200)], tmp_path)


def test_without_one_sync_what_is_put_right_is_lost(tmp_path: Path) -> None:
    recordings = record_rot(tmp_path, without="file")

    assert check_cuts([_all_of(recording, 20) for recording in recordings], tmp_path)
