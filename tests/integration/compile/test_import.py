"""A model that is brought along: uploaded, checked in a child, versioned and compiled; or refused with its reason."""

import io
import json
from typing import Any

import numpy as np
import onnx
import pytest
from sklearn.ensemble import RandomForestClassifier

from converters.samples import Array
from converters.trees import from_trees
from skerry.runtimes.arrays import pack
from tests.integration.fleet.conftest import Coast, recordings

LABELS = ["low", "high"]


def _model() -> tuple[bytes, Array, Array]:
    values = np.random.default_rng(1).normal(size=(120, 4)).astype(np.float32)
    truth = (values.sum(axis=1) > 0).astype(np.int64)
    forest = RandomForestClassifier(5, max_depth=4, random_state=1).fit(values, truth)
    return from_trees(forest, labels=tuple(LABELS)).data, values, truth


def _upload(model: bytes, options: dict[str, Any] | None = None, **samples: Array) -> bytes:
    npz = io.BytesIO()
    np.savez(npz, **samples)  # type: ignore[arg-type] # its stub reads the names as options
    members = {"model": model, "samples": npz.getvalue(), "options": json.dumps(options or {}).encode()}
    return pack({name: np.frombuffer(data, dtype=np.uint8) for name, data in members.items()})


def test_a_model_is_imported_compiled_and_shown(coast: Coast) -> None:
    data, values, truth = _model()
    body = _upload(data, {"labels": LABELS}, X=values, y=truth)
    asked = coast.ask("POST", "/v1/models/sums/import", content=body)
    job = coast.job(asked)
    assert job["state"] == "done", job["error"]
    assert job["result"]["version"] == 1
    assert job["result"]["metrics"]["accuracy"] > 0.8
    assert coast.ask("POST", "/v1/models/sums/import", content=body)["job"] == asked["job"]

    profiles = {"profiles": ["x86-64-gateway"]}
    compiled = coast.job(coast.ask("POST", "/v1/models/sums/versions/1/compile", json=profiles))
    assert compiled["state"] == "done", compiled["error"]
    model = coast.ask("GET", "/v1/models/sums/versions/1")
    assert model["recipe"]["kind"] == "import"
    (build,) = model["builds"]
    assert build["gate"] == "passed", build["report"]
    manifest = json.loads(coast.plane.blobs.get(build["manifest"]))
    assert manifest["labels"] == LABELS
    assert manifest["lineage"]["file_sha256"]
    assert all(candidate["recipe"] for candidate in build["report"]["candidates"] if "size_bytes" in candidate)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (b"hello, I am not a model", "expected"),
        (b"", "expected"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(500), "expected"),
    ],
)
def test_a_hostile_file_is_refused_with_its_reason(coast: Coast, model: bytes, reason: str) -> None:
    values = np.zeros((20, 4), dtype=np.float32)
    job = coast.job(coast.ask("POST", "/v1/models/sums/import", content=_upload(model, X=values)))
    assert job["state"] == "failed"
    assert reason in job["error"]
    assert "\n" not in job["error"]


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ({"Y": np.zeros((20, 4))}, "expected an array for each input, x too, got Y"),
        ({"X": np.zeros((20, 5))}, "expected x as (rows, 4), got (20, 5)"),
        ({"X": np.full((20, 4), np.nan)}, "expected finite numbers as x"),
        ({"X": np.zeros((3, 4))}, "8 or more"),
        ({"X": np.zeros((20, 4)), "y": np.full(20, 2)}, "expected y from 0 to 1, one of the labels, got 2 to 2"),
        ({"X": np.zeros((20, 4)), "y": np.zeros(19, dtype=np.int64)}, "expected 20 whole numbers as y"),
    ],
)
def test_samples_that_do_not_fit_are_refused(coast: Coast, samples: dict[str, Array], reason: str) -> None:
    data, _, _ = _model()
    body = _upload(data, {"labels": LABELS}, **samples)
    job = coast.job(coast.ask("POST", "/v1/models/sums/import", content=body))
    assert job["state"] == "failed"
    assert reason in job["error"]


def test_an_upload_that_is_none_is_refused_at_once(coast: Coast) -> None:
    for body in (
        b"",
        b"no npz",
        pack({"model": np.zeros(4, dtype=np.uint8)}),
        _upload(b"x", {"label": "a"}, X=np.ones(9)),
    ):
        answer = coast.client.post("/v1/models/sums/import", content=body)
        assert answer.status_code == 422, answer.text
        assert "\n" not in answer.json()["detail"]


def _version(coast: Coast, model: bytes, values: Array, truth: Array | None, *, dataset: str = "") -> int:
    samples = {"X": values} if truth is None else {"X": values, "y": truth}
    path = "/v1/models/sums/import" + (f"?dataset={dataset}" if dataset else "")
    job = coast.job(coast.ask("POST", path, content=_upload(model, {"labels": LABELS}, **samples)))
    assert job["state"] == "done", job["error"]
    return int(job["result"]["version"])


def _report(coast: Coast, version: int) -> dict[str, Any]:
    path = f"/v1/models/sums/versions/{version}"
    compiled = coast.job(coast.ask("POST", f"{path}/compile", json={"profiles": ["x86-64-gateway"]}))
    assert compiled["state"] == "done", compiled["error"]
    (build,) = coast.ask("GET", path)["builds"]
    report: dict[str, Any] = build["report"]
    return report


def _field(report: dict[str, Any]) -> dict[str, str]:
    return next(check for check in report["candidates"][0]["checks"] if check["name"] == "field")


def _poor(values: Array) -> bytes:
    """Return a model that labels by another rule than the first one's."""
    forest = RandomForestClassifier(2, max_depth=2, random_state=1).fit(values, (values[:, 0] > 0).astype(int))
    return from_trees(forest, labels=tuple(LABELS)).data


def test_an_imported_second_version_is_held_against_the_first_on_its_own_labelled_samples(coast: Coast) -> None:
    data, values, truth = _model()
    first = _version(coast, data, values, truth)
    assert not [check for check in _report(coast, first)["candidates"][0]["checks"] if check["name"] == "field"]
    worse = _report(coast, _version(coast, _poor(values), values, truth))
    assert worse["verdict"] == "refused"
    assert _field(worse)["outcome"] == "refused"
    assert "of the model's own held-out samples (previous version:" in _field(worse)["got"]
    unknown = _report(coast, _version(coast, _poor(values), values, None))
    assert unknown["verdict"] == "passed"
    assert _field(unknown) == {
        "name": "field",
        "outcome": "not run",
        "expected": "no worse than the previous version",
        "got": "there are no labelled windows from the field, and the model's samples have no truth",
    }


def test_with_a_data_set_an_imported_version_is_held_against_the_first_on_its_windows_from_the_field(
    coast: Coast,
) -> None:
    recording = recordings(groups=2, rows=30, seed=1)
    arrays = dict(np.load(io.BytesIO(recording)))
    # the classes in another order than the data set's: which is which is told by their names
    labels = arrays["labels"].tolist()[::-1]
    windows, truth = arrays["X"], len(labels) - 1 - arrays["y"]
    coast.ask("POST", "/v1/datasets/moves/parts?role=gate", content=recording)
    columns = windows.reshape(len(windows), -1)
    versions = []
    for rows in (slice(0, None), slice(0, 6)):
        forest = RandomForestClassifier(8, random_state=1).fit(columns[rows], truth[rows])
        model = _over_windows(from_trees(forest, labels=tuple(labels)).data, windows.shape[1:])
        body = _upload(model, {"labels": labels}, X=windows)
        job = coast.job(coast.ask("POST", "/v1/models/sums/import?dataset=moves", content=body))
        assert job["state"] == "done", job["error"]
        versions.append(job["result"]["version"])
    report = _report(coast, versions[1])
    assert f"of {len(windows)} labels of the labelled windows from the field (previous" in _field(report)["got"]
    assert _field(report)["outcome"] == "refused"
    assert report["reference"]["previous_field_accuracy"] > 0.95
    assert report["reference"]["previous_field_accuracy"] > report["candidates"][0]["field_accuracy"]
    assert coast.ask("GET", f"/v1/models/sums/versions/{versions[1]}")["dataset"] == "moves"


def _over_windows(data: bytes, shape: tuple[int, ...]) -> bytes:
    """Return the model with windows as its input, flattened."""
    model = onnx.ModelProto.FromString(data)
    model.graph.node.insert(0, onnx.helper.make_node("Flatten", ["window"], ["x"], axis=1))
    model.graph.ClearField("input")
    model.graph.input.append(onnx.helper.make_tensor_value_info("window", onnx.TensorProto.FLOAT, (1, *shape)))
    return bytes(model.SerializeToString())


def test_a_data_set_that_cannot_judge_the_model_is_refused_at_the_import(coast: Coast) -> None:
    data, values, truth = _model()
    body = _upload(data, {"labels": LABELS}, X=values, y=truth)
    assert coast.client.post("/v1/models/sums/import?dataset=none", content=body).status_code == 404
    coast.ask("POST", "/v1/datasets/moves/parts", content=recordings(groups=2, rows=20, seed=1))
    job = coast.job(coast.ask("POST", "/v1/models/sums/import?dataset=moves", content=body))
    assert job["state"] == "failed"
    assert "data set: expected a model of one input, float32" in job["error"]


def test_trees_are_trained_over_the_features_of_windows(coast: Coast) -> None:
    coast.ask("POST", "/v1/datasets/moves/parts", content=recordings(groups=6, rows=40, seed=1))
    recipe = {"kind": "trees", "ensemble": "gradient-boosting", "trees": 5, "depth": 3, "validation_groups": [4, 5]}
    body = {"dataset": "moves", "recipe": recipe}
    trained = coast.job(coast.ask("POST", "/v1/models/moves/train", json=body))
    assert trained["state"] == "done", trained["error"]
    assert trained["result"]["metrics"]["accuracy"] > 0.8
    profiles = {"profiles": ["x86-64-gateway"]}
    compiled = coast.job(coast.ask("POST", "/v1/models/moves/versions/1/compile", json=profiles))
    assert compiled["state"] == "done", compiled["error"]
    (build,) = coast.ask("GET", "/v1/models/moves/versions/1")["builds"]
    assert build["gate"] == "passed", build["report"]
    manifest = json.loads(coast.plane.blobs.get(build["manifest"]))
    assert manifest["observe"]["features"] == "features"
