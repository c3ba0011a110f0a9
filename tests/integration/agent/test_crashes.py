"""Models that crash and hang, in real processes: a good one answers all along, and what is bad does not stay."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.local.serving_port import Reply
from skerry.errors import Rejected, Unavailable
from skerry.runtimes import open_session
from tests.integration.agent.shore import wait_for
from tests.integration.agent.spoilt import POISON, Callers, Stranded

FINE = 0.25


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Stranded]:
    """A device that is not yet awake."""
    device = Stranded(tmp_path)
    yield device
    device.close()


def kill_worker(device: Stranded) -> None:
    """Let the worker of what runs end as by a native crash."""
    running = device.engine.running
    assert running is not None
    os.kill(running.worker.pid, signal.SIGSEGV)  # type: ignore[attr-defined] # a real one


@pytest.mark.parametrize(("mark", "words"), [("crash", "by SIGSEGV"), ("hang", "the model hangs")])
def test_a_model_that_crashes_or_hangs_on_trial_is_rolled_back_while_the_good_one_answers(
    device: Stranded, mark: str, words: str
) -> None:
    device.patience_s(1.5 if mark == "hang" else 20.0)
    good = device.commit(1)
    device.wake()
    device.stage(2, mark=mark)
    callers = Callers(device, (POISON, POISON))

    device.drive(lambda: device.phase == "failed")
    callers.go_on()
    callers.stop()

    assert callers.errors == []
    assert {(reply.status, reply.manifest) for _, reply in callers.replies} == {(200, good)}
    state = device.runner.state
    assert (state.good.manifest, state.attempts) == (good, 3)
    assert words in state.reason
    assert device.engine.word == "up"


def test_a_model_that_crashes_at_its_first_load_never_runs(device: Stranded) -> None:
    good = device.commit(1)
    device.wake()
    device.stage(2, mark="load")

    device.drive(lambda: device.phase == "failed")

    assert "model.onnx" in device.runner.state.reason
    assert "by SIGSEGV" in device.runner.state.reason
    assert device.infer(FINE).manifest == good


def test_a_model_that_takes_more_memory_than_its_budget_never_runs(device: Stranded) -> None:
    good = device.commit(1)
    device.wake()
    device.stage(2, memory_budget_bytes=1000)

    device.drive(lambda: device.phase == "failed")

    assert "expected a model that takes at most 1000 bytes" in device.runner.state.reason
    assert device.infer(FINE).manifest == good


def test_a_model_that_answers_its_callers_passes_its_trial_on_them(device: Stranded) -> None:
    device.commit(1)
    device.wake()
    digest = device.stage(2, memory_budget_bytes=256 << 20)
    callers = Callers(device, (FINE, FINE))

    # the last good one is there until the commit is done
    device.drive(lambda: [served.manifest for served in device.engine.serving()] == [digest])
    callers.stop()

    assert callers.errors == []
    assert (device.phase, callers.replies[-1][1].manifest) == ("committed", digest)


def test_a_committed_model_that_crashes_is_started_again_and_its_callers_notice_nothing(device: Stranded) -> None:
    good = device.commit(1)
    device.wake()
    callers = Callers(device, (FINE,) * 4)
    callers.go_on()

    kill_worker(device)
    wait_for(lambda: device.engine.crashes == 1 and device.engine.word == "up", why="another worker")
    callers.go_on()
    callers.stop()

    assert callers.errors == []
    assert {(reply.status, reply.manifest) for _, reply in callers.replies} == {(200, good)}
    assert device.phase == "committed"


def test_a_request_that_crashes_the_model_twice_is_refused_and_the_next_one_is_answered(device: Stranded) -> None:
    device.commit(1, mark="crash")
    device.wake()

    with pytest.raises(Unavailable, match=r"got twice: .* by SIGSEGV"):
        device.infer(POISON)

    assert device.infer(FINE).status == 200
    assert (device.engine.crashes, device.phase) == (2, "committed")


def test_three_crashes_roll_a_committed_model_back_to_the_other_slot(device: Stranded) -> None:
    good = device.commit(1)
    device.commit(2, mark="crash")
    device.wake()
    for _ in range(2):
        with pytest.raises(Unavailable):
            device.infer(POISON)

    device.drive(lambda: device.phase == "failed")

    assert device.runner.state.good.manifest == good
    assert "by SIGSEGV" in device.runner.state.reason
    assert device.infer(POISON).manifest == good


def test_a_committed_model_without_another_to_go_back_to_is_started_again_and_again(device: Stranded) -> None:
    good = device.commit(1, mark="crash")
    device.wake()
    for _ in range(2):
        with pytest.raises(Unavailable):
            device.infer(POISON)
    device.drive(lambda: True)

    assert wait_for(lambda: device.engine.word == "up", why="another worker")
    assert (device.infer(FINE).manifest, device.phase) == (good, "committed")


def test_a_committed_model_that_does_not_even_load_leaves_a_device_that_can_be_reached(device: Stranded) -> None:
    device.commit(1, mark="load")
    device.wake()

    assert device.engine.word == "restarting"
    with pytest.raises(Unavailable):
        device.infer(FINE)
    assert device.phase == "committed"


def test_swaps_under_load_drop_no_request_and_mix_no_answers(device: Stranded) -> None:
    """Each answer is that of the manifest which it names: two versions give different ones for the same input."""
    digests = {1: device.commit(1)}
    device.wake()
    values = (0.25, -1.0, 2.0, 0.5, 1.5, -0.75)
    callers = Callers(device, values)
    for version in (2, 3, 4):
        digests[version] = device.stage(version)
        device.drive(lambda: device.phase in ("committed", "failed"))
        assert device.phase == "committed", device.runner.state
        callers.go_on()
    callers.stop()

    assert callers.errors == []
    assert {reply.manifest for _, reply in callers.replies} == set(digests.values())
    expected = {
        (digest, value): chances_of(device, version, value) for version, digest in digests.items() for value in values
    }
    for value, reply in callers.replies:
        assert chances_in(reply) == pytest.approx(expected[reply.manifest, value], abs=1e-5)
    assert len({tuple(each) for (_, value), each in expected.items() if value == 2.0}) == 4


def test_many_rows_are_answered_at_once_by_a_model_of_one_row(device: Stranded) -> None:
    device.commit(1)
    device.wake()

    reply = device.infer(FINE, rows=5)

    tree = json.loads(reply.body)
    assert [output["shape"] for output in tree["outputs"]] == [[5, 3], [5, 6]]
    assert len(reply.rows) == device.engine.inferences == 5
    with pytest.raises(Rejected, match="expected a version"):
        device.infer(FINE, version="7")


def chances_of(device: Stranded, version: int, value: float) -> list[float]:
    """Return what a version gives for a window full of a value, in this process."""
    import numpy as np

    session = open_session("onnxruntime", device.files[version]["model.onnx"])
    outputs = session.run({"window": np.full((1, 100, 6), value, np.float32)})
    return [float(each) for each in outputs["probabilities"].ravel()]


def chances_in(reply: Reply) -> list[float]:
    """Return the probabilities of an answer."""
    outputs = {output["name"]: output["data"] for output in json.loads(reply.body)["outputs"]}
    return [float(each) for each in outputs["probabilities"]]
