"""A device's story on a real broker: assigned, committed, counted, heard; and what goes wrong on the way."""

import hashlib
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from tests.integration.agent.shore import WINDOW_ROWS, Device, Shore, wait_for
from tests.relay import Relay

PHASES = ("assigned", "fetching", "verified", "staged", "replaying", "trial", "committed")
BROKERS = pytest.mark.parametrize(
    "broker_port", ["embedded", pytest.param("mosquitto", marks=pytest.mark.broker)], indirect=True
)


@BROKERS
def test_an_assigned_artifact_is_committed_and_its_windows_are_heard(shore: Shore, device: Device) -> None:
    shore.release(1)
    deployment = shore.assign(device.name, 1)
    device.start()

    end = shore.ends(device.name, deployment)

    assert end.state == "committed", end
    passed = [event.state for event in shore.states(device.name, deployment)]
    assert passed == ["assigned", "fetching", "verified", "staged", "replaying", "trial", "committed"]
    sealed = (shore.sealed_files[hashlib.sha256(data).hexdigest()] for data in shore.artifacts[1].values())
    assert end.bytes_received == sum(len(chunk) for chunks in sealed for chunk in chunks)
    windows = wait_for(lambda: shore.windows(device.name)[2:] and shore.windows(device.name), why="three windows")
    assert [window.window for window in windows] == list(range(len(windows)))
    assert {window.rows for window in windows} == {window.labelled for window in windows} == {WINDOW_ROWS}
    assert all(sum(table) == WINDOW_ROWS for window in windows for table in window.tables[:8])
    wait_for(lambda: shore.reported[device.name].release, why="a report")
    reported = shore.reported[device.name]
    assert (reported.online, reported.state, reported.release) == (True, "committed", "strokes-1")


def test_an_outage_loses_no_window_and_repeats_none(shore: Shore, device: Device, relay: Relay) -> None:
    shore.release(1)
    deployment = shore.assign(device.name, 1)
    device.port = relay.port
    device.start()
    shore.ends(device.name, deployment)
    before = len(wait_for(lambda: shore.windows(device.name), why="a window"))

    relay.cut()
    wait_for(lambda: not shore.reported[device.name].online, why="the last will")
    wait_for(lambda: _depth(device) >= 5, why="windows to pile up")
    relay.mend()

    wait_for(lambda: len(shore.windows(device.name)) >= before + 5, why="the windows of the outage")
    numbers = [window.window for window in shore.windows(device.name)]
    assert numbers == list(range(len(numbers)))
    assert shore.conflicts == 0
    assert shore.reported[device.name].online


@pytest.mark.parametrize("phase", ["fetching", "replaying", "trial"])
def test_a_device_that_loses_power_ends_on_a_good_model(shore: Shore, device: Device, phase: str) -> None:
    shore.release(1)
    deployment = shore.assign(device.name, 1)
    device.start(rate=20)
    # a phase may be over before it is seen; every moment is cut, one by one, in the unit tests of the runner
    wait_for(lambda: device.state() in PHASES[PHASES.index(phase) :], why=phase)

    device.kill()
    device.start()

    assert shore.ends(device.name, deployment).state == "committed"
    wait_for(lambda: len(shore.windows(device.name)) >= 2, why="windows")
    numbers = [window.window for window in shore.windows(device.name)]
    assert numbers == list(range(len(numbers)))
    assert shore.conflicts == 0


def test_an_open_window_is_continued_after_a_stop(shore: Shore, device: Device) -> None:
    shore.release(1)
    deployment = shore.assign(device.name, 1)
    device.start()
    shore.ends(device.name, deployment)
    wait_for(lambda: shore.windows(device.name), why="a window")

    assert device.stop() == 0
    wait_for(lambda: not shore.reported[device.name].online, why="a farewell")
    device.start()

    before = len(shore.windows(device.name))
    wait_for(lambda: len(shore.windows(device.name)) > before + 1, why="more windows")
    windows = shore.windows(device.name)
    assert [window.window for window in windows] == list(range(len(windows)))
    assert all(later.start > earlier.end for earlier, later in pairwise(windows))


def test_an_assignment_that_the_image_repository_does_not_list_fails_and_the_last_good_one_runs_on(
    shore: Shore, device: Device
) -> None:
    shore.release(1)
    first = shore.assign(device.name, 1)
    device.start()
    assert shore.ends(device.name, first).state == "committed"

    forged = shore.artifacts[1]["manifest.json"].replace(b"strokes", b"strakes")
    second = shore.assign(device.name, 1, manifest=forged)

    end = shore.ends(device.name, second)
    assert end.state == "failed"
    assert "agree on length and hashes" in end.reason
    before = len(shore.windows(device.name))
    wait_for(lambda: len(shore.windows(device.name)) > before, why="another window of the last good one")
    assert shore.reported[device.name].release == "strokes-1"


def test_an_assignment_for_another_device_is_refused(shore: Shore, device: Device) -> None:
    shore.release(1)
    deployment = shore.assign(device.name, 1, names="watch-of-somebody-else")
    device.start()

    wait_for(lambda: _error(shore, device), why="a refusal")

    assert "expected an assignment for" in _error(shore, device)
    assert shore.states(device.name, deployment) == []
    assert device.state() in ("", "idle")


def test_a_model_that_fails_its_golden_replay_never_runs(shore: Shore, device: Device) -> None:
    shore.release(1)
    shore.release(2, wrong_golden=True)
    first = shore.assign(device.name, 1)
    device.start()
    assert shore.ends(device.name, first).state == "committed"
    wait_for(lambda: shore.windows(device.name), why="a window")

    second = shore.assign(device.name, 2)

    end = shore.ends(device.name, second)
    assert end.state == "failed"
    assert "golden replay" in end.reason
    assert "trial" not in [event.state for event in shore.states(device.name, second)]
    assert len({window.manifest for window in shore.windows(device.name)}) == 1


def test_a_first_deployment_that_fails_leaves_a_device_that_can_be_reached(shore: Shore, device: Device) -> None:
    shore.release(1, wrong_golden=True)
    shore.release(2)
    device.start()
    assert shore.ends(device.name, shore.assign(device.name, 1)).state == "failed"

    assert shore.ends(device.name, shore.assign(device.name, 2)).state == "committed"


def test_a_spoilt_chunk_is_not_believed_and_a_mended_one_is(shore: Shore, device: Device) -> None:
    shore.release(1)
    model = shore.artifacts[1]["model.onnx"]
    shore.spoil_chunk(model, 1)
    deployment = shore.assign(device.name, 1)
    device.start()

    end = shore.ends(device.name, deployment)
    assert end.state == "failed"
    assert "got other bytes" in end.reason

    shore.chunks(model)
    again = shore.assign(device.name, 1)
    assert shore.ends(device.name, again).state == "committed"


def test_a_content_key_of_another_device_fails_the_deployment_with_a_reason(
    shore: Shore, device: Device, tmp_path: Path
) -> None:
    shore.release(1)
    Device(shore, "gull", tmp_path / "gull", device.recording)
    deployment = shore.assign(device.name, 1, content=shore.content("gull", 1))
    device.start()

    end = shore.ends(device.name, deployment)

    assert end.state == "failed"
    assert end.reason == (
        f"content key: expected one sealed to the key of watch.{device.name}, got one that it does not open;"
        " renew its certificate, then assign again"
    )
    assert shore.ends(device.name, shore.assign(device.name, 1)).state == "committed"


def test_an_artifact_that_was_sealed_anew_is_fetched_by_the_assignment_that_says_so(
    shore: Shore, device: Device
) -> None:
    """A server that was restored from a copy has lost the ciphertext, and seals the artifact once more."""
    shore.release(1)
    gone = dict.fromkeys(shore.artifacts[1], "0" * 64)
    deployment = shore.assign(device.name, 1, content=replace(shore.content(device.name, 1), files=gone))
    device.start()
    wait_for(lambda: device.state() == "assigned", why="a device that waits for chunks")

    shore._deployments -= 1  # the same deployment, signed anew
    assert shore.assign(device.name, 1) == deployment

    assert shore.ends(device.name, deployment).state == "committed"


def test_an_assignment_without_a_content_key_fails_with_a_reason(shore: Shore, device: Device) -> None:
    shore.release(1)
    deployment = shore.assign(device.name, 1, content=None)
    device.start()

    end = shore.ends(device.name, deployment)
    assert (end.state, end.reason.partition(",")[0]) == ("failed", "assignment: expected a content key")


def test_an_older_version_is_refused_unless_it_is_a_rollback(shore: Shore, device: Device) -> None:
    shore.release(1)
    shore.release(2)
    device.start()
    assert shore.ends(device.name, shore.assign(device.name, 2)).state == "committed"

    refused = shore.ends(device.name, shore.assign(device.name, 1))
    assert (refused.state, "expected a newer version" in refused.reason) == ("failed", True)
    assert shore.ends(device.name, shore.assign(device.name, 1, rollback=True)).state == "committed"


def test_a_repeated_assignment_changes_nothing(shore: Shore, device: Device) -> None:
    shore.release(1)
    deployment = shore.assign(device.name, 1)
    device.start()
    shore.ends(device.name, deployment)
    events = len(shore.states(device.name, deployment))

    device.stop()
    device.start()
    before = len(shore.windows(device.name))

    wait_for(lambda: len(shore.windows(device.name)) > before + 1, why="more windows")
    assert len(shore.states(device.name, deployment)) == events


def _depth(device: Device) -> int:
    from agent.telling.outbox import look

    return sum(look(device.folder / "outbox.db").rows.values())


def _error(shore: Shore, device: Device) -> str:
    reported = shore.reported.get(device.name)
    return reported.last_error if reported else ""


def test_the_state_of_a_device_can_be_read_by_a_program(shore: Shore, device: Device) -> None:
    tree = json.loads(device.status("--json"))

    assert tree["identity"]["device"] == device.name
    assert tree["lifecycle"]["phase"] == "idle"
