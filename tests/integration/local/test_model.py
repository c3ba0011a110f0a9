"""`skerry.Model` on real runtimes: answers, refusals, swaps and counts."""

import contextlib
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import skerry
from agent.fetching.rest import RestVault
from skerry.delivery.slots import Slots
from skerry.errors import Broken, Rejected, Unavailable
from skerry.inference.local_socket import address_of
from skerry.local.post import Agent
from skerry.local.tally import BATCH_ROWS
from skerry.runtimes import open_session
from skerry.runtimes.session import Refused
from skerry.wire.manifest import Manifest
from tests.artifacts import LABELS, commit, make_artifact, make_windows, with_manifest, write_recurring_model

from .conftest import RUNTIMES, StubAgent, artifact, serve, wait_until


def expected(runtime: str, windows: Any, version: int = 1) -> dict[str, Any]:
    files = artifact(runtime, version)
    session = open_session(runtime, next(data for name, data in files.items() if name.startswith("model.")))
    outputs = [session.run({"window": window[None]}) for window in windows]
    return {name: np.concatenate([each[name] for each in outputs]) for name in outputs[0]}


# --- answers


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_it_answers_as_the_bare_runtime_does(state: Path, runtime: str) -> None:
    commit(state, artifact(runtime))
    windows = make_windows(3)
    right = expected(runtime, windows)
    with skerry.Model("watch", state=state) as model:
        for given in (windows[:1], windows[0], {"window": windows[:1]}):
            np.testing.assert_array_equal(model(given)["probabilities"], right["probabilities"][:1])
        batch = model(windows)
        assert batch["features"].shape == (3, 16)
        np.testing.assert_array_equal(batch["probabilities"], right["probabilities"])
        assert model.manifest.version == 1


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_bound_call_reads_in_place_and_writes_the_same_arrays(state: Path, runtime: str) -> None:
    commit(state, artifact(runtime))
    windows = make_windows(3)
    right = expected(runtime, windows)
    buffer = np.empty_like(windows[:1])
    with skerry.Model("watch", state=state) as model:
        call = model.bind(buffer)
        first = call()
        for index, window in enumerate(windows):
            buffer[0] = window
            outputs = call(truth="rest")
            np.testing.assert_array_equal(outputs["probabilities"], right["probabilities"][index : index + 1])
            assert outputs["probabilities"] is first["probabilities"]


def test_a_batch_goes_at_once_into_a_model_whose_rows_are_open(state: Path, stub: StubAgent) -> None:
    data = write_recurring_model(width=8, layers=1, batch="rows")
    commit(state, make_artifact("onnxruntime", data=data))
    windows = make_windows(5)
    right = open_session("onnxruntime", data).run({"window": windows})
    with skerry.Model("watch", state=state) as model:
        loaded = model._following.loaded
        assert loaded is not None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loaded, "run", None)  # what a batch would be run by, row by row
            outputs = loaded._run_rows({"window": windows}, ["rest", None, "lift", "turn", "wave"])
        np.testing.assert_array_equal(outputs["probabilities"], right["probabilities"])
        call = model.bind(windows[:1].copy())
        np.testing.assert_allclose(call()["features"], right["features"][:1], rtol=1e-6)
    assert sum(stub.rows.values()) == 6
    assert sorted(row[18] for row in stub.rows) == [-1, -1, 0, 1, 2, 3]


def test_a_models_component_is_found_beside_the_devices_one_model(state: Path) -> None:
    commit(state, with_manifest(artifact("onnxruntime"), model="other"))
    commit(state / "components" / "watch", artifact("onnxruntime", 2))
    with skerry.Model("watch", state=state) as model:
        assert model.manifest.version == 2


def test_the_state_folder_is_the_environments_when_none_is_given(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(state, artifact("onnxruntime"))
    monkeypatch.setenv("SKERRY_STATE", str(state))
    with skerry.Model("watch") as model:
        assert model.manifest.model == "watch"


def test_the_state_folder_is_the_one_beside_the_program_when_nothing_says_otherwise(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(state, artifact("onnxruntime"))
    monkeypatch.delenv("SKERRY_STATE", raising=False)
    monkeypatch.chdir(state.parent)
    with skerry.Model("watch") as model:
        assert model.manifest.model == "watch"


def test_importing_the_public_face_imports_no_numpy() -> None:
    program = "import sys, skerry; assert callable(skerry.Model); sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0


# --- refusals


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (make_windows(1).astype(np.float64), r"expected float32 1 x 50 x 8 .*, got float64 1 x 50 x 8"),
        (make_windows(1)[:, :49], r"expected float32 1 x 50 x 8 or rows of it, got float32 1 x 49 x 8"),
        (make_windows(1)[:0], "got float32 0 x 50 x 8"),
        (np.float32(1).reshape(()), "got float32 a single number"),
        ({"windows": make_windows(1)}, "expected window, got windows"),
        ({}, "expected window, got none"),
        ([[1.0]], "expected a NumPy array of float32 1 x 50 x 8, got list"),
    ],
)
def test_a_wrong_input_is_refused_by_what_the_model_takes(state: Path, given: Any, says: str) -> None:
    commit(state, artifact("onnxruntime"))
    with skerry.Model("watch", state=state) as model:
        with pytest.raises(Rejected, match=says):
            model(given)
        assert model(make_windows(1))


def test_a_bound_array_must_have_the_models_own_shape(state: Path) -> None:
    commit(state, artifact("onnxruntime"))
    with skerry.Model("watch", state=state) as model:
        for given in (make_windows(2), make_windows(2)[:1, :, ::-1].astype(np.float64), make_windows(2)[::2][:, ::-1]):
            with pytest.raises(Rejected):
                model.bind(given)


def test_as_many_truths_as_rows_are_expected(state: Path) -> None:
    commit(state, artifact("onnxruntime"))
    with skerry.Model("watch", state=state) as model, pytest.raises(Rejected, match="expected 3 labels"):
        model(make_windows(3), truth="rest")


@pytest.mark.parametrize("truths", [np.array(["rest", "turn", "lift"]), ["rest", np.str_("turn"), "lift"]])
def test_labels_may_be_numpys_own(state: Path, stub: StubAgent, truths: Any) -> None:
    commit(state, artifact("onnxruntime"))
    with skerry.Model("watch", state=state) as model:
        model(make_windows(3), truth=truths)
        model(make_windows(1), truth=truths[1])
    assert Counter(row[-2] for row in stub.rows.elements()) == Counter(
        LABELS.index(each) for each in [*truths, truths[1]]
    )


def test_a_truth_that_is_no_label_is_refused_and_not_counted_as_wrong(state: Path, stub: StubAgent) -> None:
    commit(state, artifact("onnxruntime"))
    with skerry.Model("watch", state=state) as model:
        for given, truth in ((1, 2), (1, np.int64(2)), (3, np.arange(3)), (3, ["rest", None, 1])):
            with pytest.raises(Rejected, match=r"truth: expected a label as a string, got int"):
                model(make_windows(given), truth=truth)  # type: ignore[arg-type]
        with pytest.raises(Rejected, match=r"truth: expected a label as a string, got int 2"):
            model.bind(make_windows(1))(truth=2)  # type: ignore[arg-type]
    assert not stub.rows


def test_no_agents_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(Broken, match=r"expected the state folder of an agent in .*skerry-agent init"):
        skerry.Model("watch", state=tmp_path)


def test_nothing_committed_is_said(state: Path) -> None:
    with pytest.raises(Unavailable, match="expected a committed model, got none; assign watch"):
        skerry.Model("watch", state=state)


def test_an_artifact_on_trial_is_not_committed(state: Path) -> None:
    slots = Slots(state / "slots")
    slots.stage(artifact("onnxruntime"), release="r", deployment="d")
    slots.activate()
    with pytest.raises(Unavailable, match=r"got one on trial; .*over the socket serve\.sock"):
        skerry.Model("watch", state=state)
    slots.commit()
    with skerry.Model("watch", state=state) as model:
        slots.stage(artifact("onnxruntime", 2), release="r", deployment="d")
        slots.activate()
        with skerry.Model("watch", state=state) as other:
            assert model.digest == other.digest


def test_another_models_name_is_said(state: Path) -> None:
    commit(state, artifact("onnxruntime"))
    commit(state / "components" / "lamps", with_manifest(artifact("onnxruntime"), model="lamps"))
    for name in ("gesture", "../watch", "g" * 300, "\0"):
        with pytest.raises(Rejected, match=r"expected the model .*, got lamps, watch; ask for one that is here"):
            skerry.Model(name, state=state)


def test_a_model_that_is_sealed_at_rest_sends_its_reader_to_the_socket(state: Path) -> None:
    key = state.parent / "rest.key"
    key.write_text("5a" * 32)
    vault = RestVault(key)
    slots = Slots(state / "slots", vault)
    slots.stage(artifact("onnxruntime"), release="r", deployment="d")
    slots.activate()
    slots.commit()
    vault.close()
    with pytest.raises(Broken, match=r"sealed with the rest key .*serve\.sock"):
        skerry.Model("watch", state=state)


def test_a_slot_whose_bytes_changed_is_refused(state: Path) -> None:
    slots = commit(state, artifact("onnxruntime"))
    path = slots.folder(slots.active) / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(Rejected, match="expected the bytes that were signed"):
        skerry.Model("watch", state=state)
    path.unlink()
    with pytest.raises(Rejected, match="expected a file of the slot, got none"):
        skerry.Model("watch", state=state)


def test_a_missing_runtime_names_what_to_install(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(state, artifact("onnxruntime"))
    gone = Refused("expected the runtime onnxruntime, got none: pip install 'skerry[onnx]'")
    monkeypatch.setattr("skerry.runtimes.session._missing", lambda _: gone)
    with pytest.raises(Broken, match="pip install"):
        skerry.Model("watch", state=state)


def test_a_folder_that_may_not_be_read_is_said(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(state, artifact("onnxruntime"))
    real = Path.open

    def refuse(path: Path, *given: Any, **options: Any) -> Any:
        # root, as which tests may run, is refused nothing
        if path.name == "manifest.json":
            raise PermissionError(13, "Permission denied")
        return real(path, *given, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(Broken, match="expected to read it, got no permission; run as the agent's user"):
        skerry.Model("watch", state=state)


def test_a_closed_model_and_one_in_a_forked_child_refuse(state: Path) -> None:
    commit(state, artifact("onnxruntime"))
    model = skerry.Model("watch", state=state)
    following = model._following
    following._pid += 1
    with pytest.raises(Unavailable, match="got a forked one"):
        model(make_windows(1))
    following._pid -= 1
    model.close()
    with pytest.raises(Unavailable, match="got one that was closed"):
        model(make_windows(1))


# --- swaps


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_it_swaps_between_two_calls_and_never_inside_one(state: Path, stub: StubAgent, runtime: str) -> None:
    commit(state, artifact(runtime))
    windows = make_windows(4)
    right = {version: expected(runtime, windows, version)["probabilities"] for version in (1, 2)}
    assert not np.allclose(right[1], right[2])
    answers: list[list[tuple[int, Any]]] = [[] for _ in range(4)]
    stop = threading.Event()
    with skerry.Model("watch", state=state) as model:
        call = model.bind(windows[:1].copy())

        def run(number: int) -> None:
            while not stop.is_set():
                answers[number].append((number, model(windows[number])["probabilities"][0]))

        threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        wait_until(lambda: all(len(each) > 20 for each in answers), why="answers of version 1")
        commit(state, artifact(runtime, 2))
        wait_until(lambda: model.manifest.version == 2, why="version 2")
        more = [len(each) + 20 for each in answers]
        wait_until(lambda: all(map(lambda each, n: len(each) > n, answers, more)), why="answers of version 2")
        stop.set()
        for thread in threads:
            thread.join()
        np.testing.assert_array_equal(call()["probabilities"], right[2][:1])
    for each in answers:
        versions = [
            next(version for version in (1, 2) if np.array_equal(answer, right[version][number]))
            for number, answer in each
        ]
        assert versions == sorted(versions)
        assert set(versions) == {1, 2}
    total = sum(map(len, answers)) + 1
    # every row was counted for the artifact that made it, or is known to be lost
    assert sum(stub.by_manifest.values()) + model.dropped == total
    assert len(stub.by_manifest) == 2


def test_what_cannot_be_loaded_is_said_and_what_runs_runs_on(state: Path) -> None:
    commit(state, artifact("onnxruntime"))
    with skerry.Model("watch", state=state) as model:
        commit(state, with_manifest(artifact("onnxruntime", 2), model="other"))
        wait_until(lambda: model.problem, why="a problem")
        assert "expected the model watch, got other" in model.problem
        assert model.manifest.version == 1
        assert model(make_windows(1))
        commit(state, artifact("onnxruntime", 2))
        wait_until(lambda: not model.problem, why="no problem")
        assert model.manifest.version == 2


def test_a_folder_that_may_be_read_no_more_is_said_and_what_runs_runs_on(
    state: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commit(state, artifact("onnxruntime"))
    real = Path.stat

    def refuse(path: Path, **options: Any) -> Any:
        if "components" in path.parts:
            raise PermissionError(13, "Permission denied")
        return real(path, **options)

    with skerry.Model("watch", state=state) as model:
        monkeypatch.setattr(Path, "stat", refuse)
        wait_until(lambda: model.problem, why="a problem")
        assert "got no permission" in model.problem
        assert model(make_windows(1))
        monkeypatch.undo()
    assert not any(record.exc_info for record in caplog.records)


def test_a_model_that_was_given_up_with_nothing_to_go_back_to_answers_no_more(state: Path) -> None:
    slots = commit(state, artifact("onnxruntime"))
    with skerry.Model("watch", state=state) as model:
        slots.roll_back(slots.pointer.slot(slots.active).manifest)
        wait_until(lambda: model.problem, why="a problem")
        with pytest.raises(Unavailable, match="expected a committed model"):
            model(make_windows(1))
        commit(state, artifact("onnxruntime", 2))
        wait_until(lambda: not model.problem, why="no problem")
        assert model(make_windows(1))


# --- counts


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_row_is_counted_exactly_once(state: Path, stub: StubAgent, runtime: str) -> None:
    commit(state, artifact(runtime))
    windows = make_windows(1500)
    right = expected(runtime, windows)
    with skerry.Model("watch", state=state) as model:
        for window in windows[:900]:
            model(window)
        model(windows[900:], truth=["lift"] * 600)
    assert sum(stub.rows.values()) == 1500
    assert stub.widths == {20}
    assert model.dropped == stub.dropped == 0
    got = np.array(sorted(stub.rows))
    wanted = np.column_stack([right["features"], right["probabilities"].argmax(1), right["probabilities"].max(1)])
    np.testing.assert_array_equal(got[:, :18], np.array(sorted(map(tuple, wanted.astype(np.float64)))))
    assert sum(row[18] == LABELS.index("lift") for row in stub.rows) == 600
    assert min(row[19] for row in stub.rows) > 0


def test_without_an_agent_it_answers_and_counts_what_is_dropped(state: Path) -> None:
    commit(state, artifact("onnxruntime"))
    with skerry.Model("watch", state=state) as model:
        for window in make_windows(30):
            model(window)
    assert model.dropped == 30


def test_rows_wait_for_an_agent_that_comes_late_and_what_did_not_fit_is_told(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skerry.local.tally.MAX_ROWS", 40)
    commit(state, artifact("onnxruntime"))
    with skerry.Model("watch", state=state) as model:
        for window in make_windows(100):
            model(window)
        wait_until(lambda: model.dropped, why="drops")
        dropped = model.dropped
        with serve(state) as stub:
            wait_until(lambda: stub.dropped, why="what was dropped to be told")
            assert stub.dropped == dropped
            wait_until(lambda: sum(stub.rows.values()) + dropped == 100, why="the rest")


def test_an_agent_that_has_no_room_is_asked_again_and_one_that_refuses_is_not(state: Path, stub: StubAgent) -> None:
    commit(state, artifact("onnxruntime"))
    stub.status = 503
    with skerry.Model("watch", state=state) as model:
        model(make_windows(5))
        wait_until(lambda: model._following.loaded.tally._taken, why="the first try")  # type: ignore[union-attr]
        stub.status = 204
        wait_until(lambda: sum(stub.rows.values()) == 5, why="the next try")
        stub.status = 409
        model(make_windows(7))
        wait_until(lambda: model.dropped == 7, why="the refusal")
    assert sum(stub.rows.values()) == 5


def test_an_agent_that_never_answers_does_not_hold_up_a_program_that_ends(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(state, artifact("onnxruntime"))
    monkeypatch.setattr("skerry.local.following.Agent", lambda folder: Agent(folder, timeout_s=0.2))
    with socket.socket(socket.AF_UNIX) as silent, address_of(state / "serve.sock") as address:
        silent.bind(address)
        silent.listen(64)
        silent.settimeout(0.1)
        with skerry.Model("watch", state=state) as model:
            for _ in range(10):
                model(make_windows(BATCH_ROWS))
        asked = 0
        with contextlib.suppress(TimeoutError):
            while True:
                silent.accept()[0].close()
                asked += 1
    assert 1 <= asked <= 5
    assert model.dropped == 10 * BATCH_ROWS


def test_the_socket_may_lie_deeper_than_its_address_is_long(tmp_path: Path) -> None:
    state = tmp_path / ("deep" * 20) / ("deeper" * 10)
    (state / "slots").mkdir(parents=True)
    commit(state, artifact("onnxruntime"))
    with serve(state) as stub, skerry.Model("watch", state=state) as model:
        model(make_windows(1))
        model.close()
        assert sum(stub.rows.values()) == 1


def test_a_model_that_is_only_dropped_ends_by_itself(state: Path, stub: StubAgent) -> None:
    commit(state, artifact("onnxruntime"))
    model = skerry.Model("watch", state=state)
    model(make_windows(2))
    del model
    wait_until(lambda: not list((state / "users").iterdir()), why="no marker")
    assert sum(stub.rows.values()) == 2


def test_the_manifest_is_at_hand(state: Path) -> None:
    commit(state, artifact("onnxruntime"))
    with skerry.Model("watch", state=state) as model:
        assert isinstance(model.manifest, Manifest)
        assert model.manifest.inputs[0].shape == (1, 50, 8)
