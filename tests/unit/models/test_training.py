"""Training is deterministic, stores without pickle, and says what is wrong with data and recipes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from control_plane.training import Recipe, Trained, fit, recipe_from, split, train
from converters.network import Network
from converters.samples import Samples
from skerry.errors import Rejected

LABELS = ("still", "slow", "fast")


def test_training_twice_gives_the_same_bytes(tiny: Samples, trained: Trained) -> None:
    again = train(trained.recipe, tiny.windows, tiny.truth, tiny.groups, labels=LABELS)
    assert again.to_bytes() == trained.to_bytes()


def test_stored_and_read_again_it_is_the_same(trained: Trained) -> None:
    again = Trained.from_bytes(trained.to_bytes())
    assert again.to_bytes() == trained.to_bytes()
    assert (again.recipe, again.metrics, again.lineage) == (trained.recipe, trained.metrics, trained.lineage)


def test_the_network_gives_what_the_pipeline_gives(tiny: Samples, trained: Trained) -> None:
    learnt, held_out = split(trained.recipe, tiny)
    expected = fit(trained.recipe, learnt).predict_proba(held_out.windows)
    assert np.abs(trained.network.forward(held_out.windows).probabilities - expected).max() < 1e-5


def test_two_classes_give_what_the_logistic_pipeline_gives(tiny: Samples) -> None:
    two = tiny.where(tiny.truth < 2)
    recipe = Recipe(hidden=(4,), max_iter=50, validation_groups=(2,))
    network = train(recipe, two.windows, two.truth, two.groups, labels=LABELS[:2]).network
    expected = fit(recipe, split(recipe, two)[0]).predict_proba(two.windows)
    assert np.abs(network.forward(two.windows).probabilities - expected).max() < 1e-5


def test_held_out_groups_are_never_learnt_from(tiny: Samples, trained: Trained) -> None:
    learnt, held_out = split(trained.recipe, tiny)
    assert set(held_out.groups) == {2}
    assert 2 not in learnt.groups
    assert trained.metrics["rows_learnt"] + trained.metrics["rows_held_out"] == len(tiny)


def test_without_named_groups_a_share_of_them_is_drawn_by_seed(tiny: Samples) -> None:
    recipe = Recipe(hidden=(4,), max_iter=5, validation_share=0.5)
    drawn = train(recipe, tiny.windows, tiny.truth, tiny.groups, labels=LABELS).recipe.validation_groups
    assert len(drawn) == 2
    assert train(recipe, tiny.windows, tiny.truth, tiny.groups, labels=LABELS).recipe.validation_groups == drawn


def test_progress_is_told_line_by_line(tiny: Samples) -> None:
    lines: list[str] = []
    recipe = Recipe(hidden=(4,), max_iter=5)
    train(recipe, tiny.windows, tiny.truth, tiny.groups, labels=LABELS, log=lines.append)
    assert len(lines) == 2


def test_a_recipe_comes_from_a_json_object() -> None:
    assert recipe_from({"hidden": [16], "seed": 3}) == Recipe(hidden=(16,), seed=3)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"hiden": [16]}, "expected keys of .* got hiden"),
        ({"hidden": 16}, "hidden: expected a list, got 16"),
        ({"kind": "transformer"}, "kind: expected one of window-features-mlp"),
        ({"features": ["mean", "kurtosis"]}, "features: expected distinct ones of"),
        ({"hidden": []}, "hidden: expected one or more"),
        ({"validation_share": 1.5}, "validation_share: expected a share"),
    ],
)
def test_a_wrong_recipe_says_what_is_wrong(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(Rejected, match=message):
        recipe_from(tree)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"windows": np.zeros((240, 20), dtype=np.float32)}, "expected windows as numbers of shape"),
        ({"truth": np.zeros(10, dtype=np.int64)}, "expected 240 whole numbers as truth"),
        ({"truth": np.full(240, 3)}, "expected truth from 0 to 2 .3 labels., got 3 to 3"),
        ({"groups": np.zeros(240)}, "expected 240 whole numbers as groups, got float64"),
        ({"windows": np.full((240, 20, 2), np.nan, dtype=np.float32)}, "240 windows with NaN"),
        ({"groups": np.full(240, 2)}, "all of .2. held out"),
        ({"groups": np.full(240, 9)}, r"expected some of \[9\], got \[2\] without rows"),
        ({"truth": np.zeros(240, dtype=np.int64)}, "got none to learn from of slow, fast"),
    ],
)
def test_wrong_data_says_what_is_wrong(tiny: Samples, change: dict[str, Any], message: str) -> None:
    samples = replace(tiny, **change)
    with pytest.raises(Rejected, match=message):
        train(
            Recipe(validation_groups=(2,), hidden=(4,), max_iter=5),
            samples.windows,
            samples.truth,
            samples.groups,
            labels=LABELS,
        )


def test_channels_must_fit_the_windows(tiny: Samples) -> None:
    with pytest.raises(Rejected, match="channels: expected 2 distinct names"):
        train(Recipe(channels=("x",)), tiny.windows, tiny.truth, tiny.groups, labels=LABELS)


@pytest.mark.parametrize("read", [Trained.from_bytes, Network.from_bytes])
@pytest.mark.parametrize("data", [b"", b"not an npz", b"PK\x03\x04 broken"])
def test_bytes_that_are_no_bundle_are_rejected(read: Any, data: bytes) -> None:
    with pytest.raises(Rejected, match="expected"):
        read(data)
