"""What scikit-learn's and PyTorch's exporters write is imported and computes the same.

PyTorch is large and lives in an environment of its own: SKERRY_TORCH_PYTHON names its interpreter.
"""

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from converters.source import import_model, run_reference
from converters.trees import from_trees
from skerry.errors import Rejected

RNG = np.random.default_rng(8)
ROWS = RNG.normal(size=(200, 5)).astype(np.float32)
NUMBERS = (ROWS[:, 0] + ROWS[:, 1] * ROWS[:, 2] > 0).astype(int) + (ROWS[:, 3] > 0.8)
NAMES = np.array(["still", "slow", "fast"])[NUMBERS]
EXPORT = """
import sys, torch
from torch import nn
torch.manual_seed(1)
net = nn.Sequential(
    nn.Conv1d(3, 8, 5, padding=2), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 16, 3), nn.GELU(),
    nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Dropout(), nn.Linear(16, 4),
).eval()
row = torch.randn(1, 3, 40, generator=torch.Generator().manual_seed(2))
file, opset, dynamo = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "dynamo"
more = {"external_data": False} if dynamo else {"dynamic_axes": {"x": {0: "batch"}, "y": {0: "batch"}}}
torch.onnx.export(net, (row,), file, input_names=["x"], output_names=["y"], opset_version=opset, dynamo=dynamo, **more)
import numpy
numpy.savez(file + ".npz", x=row.numpy(), y=net(row).detach().numpy())
"""


@pytest.mark.parametrize("truth", [NUMBERS, NAMES], ids=["numbers", "names"])
@pytest.mark.parametrize(
    "model",
    [
        RandomForestClassifier(4, random_state=1),
        GradientBoostingClassifier(n_estimators=4, random_state=1),
        make_pipeline(StandardScaler(), LogisticRegression()),
        make_pipeline(StandardScaler(), MLPClassifier((8,), max_iter=3000, alpha=1, random_state=1)),
    ],
    ids=["forest", "boosting", "logistic", "dense"],
)
def test_what_skl2onnx_writes_is_imported_as_a_classifier(model: Any, truth: Any) -> None:
    skl2onnx = pytest.importorskip("skl2onnx")
    model.fit(ROWS, truth)
    opsets = {"": 17, "ai.onnx.ml": 3}
    exported = skl2onnx.to_onnx(model, ROWS[:1], options={"zipmap": False}, target_opset=opsets)
    source = import_model(exported.SerializeToString(), labels=tuple(map(str, model.classes_)))
    got = run_reference(source, {source.inputs[0].name: ROWS[:40]})
    assert list(got) == ["probabilities"]
    assert np.abs(got["probabilities"] - model.predict_proba(ROWS[:40])).max() < 1e-5


def test_the_map_that_skl2onnx_writes_by_default_is_refused_with_the_way_out() -> None:
    skl2onnx = pytest.importorskip("skl2onnx")
    exported = skl2onnx.to_onnx(RandomForestClassifier(2).fit(ROWS, NUMBERS), ROWS[:1])
    with pytest.raises(Rejected, match=r"ai\.onnx\.ml\.ZipMap: export it with zipmap=False"):
        import_model(exported.SerializeToString())


def test_our_own_trees_survive_being_brought_along_again() -> None:
    model = RandomForestClassifier(4, random_state=1).fit(ROWS, NAMES)
    ours = from_trees(model)
    source = import_model(ours.data)
    assert (source.data, source.probabilities, source.labels) == (ours.data, "probabilities", ("0", "1", "2"))


@pytest.mark.torch
@pytest.mark.parametrize(("opset", "exporter"), [(17, "script"), (18, "dynamo"), (20, "dynamo"), (23, "dynamo")])
def test_what_torch_exports_is_imported_and_computes_the_same(opset: int, exporter: str, tmp_path: Path) -> None:
    python = os.environ.get("SKERRY_TORCH_PYTHON", "")
    if not python:
        pytest.skip("expected SKERRY_TORCH_PYTHON, the Python of an environment with torch, onnx and onnxscript")
    file = tmp_path / "net.onnx"
    done = subprocess.run(
        [python, "-W", "ignore", "-c", EXPORT, str(file), str(opset), exporter],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    source = import_model(file.read_bytes())
    with np.load(f"{file}.npz") as expected:
        got = run_reference(source, {"x": expected["x"]})
        assert np.allclose(got["y"], expected["y"], atol=1e-5)
    classifier = import_model(file.read_bytes(), labels=("a", "b", "c", "d"))
    assert classifier.outputs[0].name == classifier.probabilities == "probabilities"
