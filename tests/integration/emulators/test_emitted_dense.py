"""An int8 dense net as C, on this machine: the integers of TensorFlow Lite Micro, whatever shape, scale, activation."""

from pathlib import Path

import numpy as np
import pytest

from converters.c_source import c_array, dense_core, dense_front, emit_dense
from converters.samples import Array
from skerry.errors import Rejected
from skerry.runtimes import Refused, run_in_child
from tests.integration.emulators.emitted import build, compiled, micro
from tests.unit.emulators.nets import Layer, random_net

ACTIVATIONS = ("NONE", "RELU", "RELU6", "RELU_N1_TO_1")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ends", ["int8", "float", "softmax"])
def test_random_nets_give_the_integers_of_the_interpreter(seed: int, ends: str, tmp_path: Path) -> None:
    rng = np.random.default_rng([seed, len(ends)])
    apart = bool(seed % 2)
    layers = [
        Layer(
            int(rng.integers(2, 40)),
            per_channel=bool(rng.integers(2)),
            activation=str(rng.choice(ACTIVATIONS[:3] if apart else ACTIVATIONS)),
            bias=bool(rng.integers(2)),
        )
        for _ in range(int(rng.integers(1, 5)))
    ]
    model = random_net(rng, int(rng.integers(1, 60)), layers, ends=ends, apart=apart)
    emitted = compiled(emit_dense(model, "net"), tmp_path)
    rows = rng.integers(-128, 128, (300, emitted.face.width)).astype(np.int8)
    expected = micro(dense_core(model), rows, tmp_path)
    found = emitted.predict(rows)
    assert np.array_equal(found, expected)
    assert len(np.unique(found)) > 1, "expected rows that tell something apart"
    assert np.array_equal(emitted.labels(rows), expected.argmax(axis=1))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_one_layer_is_within_a_step_of_litert(activation: str, rng: np.random.Generator, tmp_path: Path) -> None:
    model = random_net(rng, 40, [Layer(30, per_channel=True, activation=activation)])
    (tmp_path / "model.tflite").write_bytes(model)
    rows = rng.integers(-128, 128, (200, 40)).astype(np.int8)
    ran = run_in_child("litert", tmp_path / "model.tflite", {"input": rows})
    assert not isinstance(ran, Refused), ran
    found = compiled(emit_dense(model, "net"), tmp_path).predict(rows)
    steps = np.abs(found.astype(int) - ran.outputs["hidden_0"])
    assert steps.max() <= 1
    assert (steps == 1).mean() < 0.01


def test_real_rows_give_the_reals_of_the_interpreter(rng: np.random.Generator, tmp_path: Path) -> None:
    model = random_net(rng, 12, [Layer(20, activation="RELU"), Layer(5)], ends="softmax")
    emitted = compiled(emit_dense(model, "net"), tmp_path)
    rows = (rng.normal(size=(200, 12)) * 4).astype(np.float32)
    assert np.abs(emitted.predict_float(rows) - micro(model, rows, tmp_path)).max() < 1e-6


def test_a_row_that_is_not_a_number_ends_in_probabilities(rng: np.random.Generator, tmp_path: Path) -> None:
    model = random_net(rng, 3, [Layer(4)], ends="softmax")
    emitted = compiled(emit_dense(model, "net"), tmp_path)
    rows = np.asarray([[np.nan, np.inf, -np.inf], [3e38, -3e38, 0]], dtype=np.float32)
    assert np.allclose(emitted.predict_float(rows).sum(axis=1), 1, atol=1e-5)


def test_the_watch_model_gives_the_logits_and_probabilities_of_the_interpreter(
    hybrid: bytes, scaled: Array, watch_windows: Array, tmp_path: Path
) -> None:
    emitted = compiled(emit_dense(hybrid, "watch"), tmp_path)
    assert emitted.face.boundary == "scaled"
    entering = micro(dense_front(hybrid), watch_windows, tmp_path)
    expected = micro(dense_core(hybrid), entering, tmp_path)
    assert np.array_equal(emitted.predict(entering), expected)
    whole = micro(hybrid, watch_windows, tmp_path)
    # the features are summed in another order here, so a few values cross to the next integer
    assert (emitted.predict_float(scaled).argmax(axis=1) == whole.argmax(axis=1)).mean() > 0.995


def test_a_c_array_compiles_and_is_the_model(hybrid: bytes, tmp_path: Path) -> None:
    import ctypes

    library = ctypes.CDLL(str(build(c_array(hybrid, "watch"), tmp_path)))
    length = ctypes.c_uint.in_dll(library, "watch_len").value
    found = (ctypes.c_ubyte * length).in_dll(library, "watch")
    assert bytes(found) == hybrid
    assert ctypes.addressof(found) % 16 == 0


def test_a_net_that_takes_integers_has_no_front(rng: np.random.Generator) -> None:
    with pytest.raises(Rejected, match="an int8 input"):
        dense_front(random_net(rng, 3, [Layer(2)]))
