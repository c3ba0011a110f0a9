"""`skerry.Model` where it refuses: inputs, truths, folders and artifacts that are not what it takes."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import skerry
from agent.fetching.rest import RestVault
from skerry.delivery.slots import Slots
from skerry.errors import Broken, Rejected, Unavailable
from skerry.runtimes.session import Refused
from tests.artifacts import LABELS, commit, make_windows, with_manifest

from .conftest import StubAgent, artifact


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
