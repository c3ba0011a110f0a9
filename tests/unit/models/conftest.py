"""A tiny labelled data set that trains in a blink: three classes of noisy waves, four wearers, two axes."""

import numpy as np
import pytest

from control_plane.training import Recipe, Trained, train
from converters.samples import Samples

LABELS = ("still", "slow", "fast")


@pytest.fixture(scope="session")
def tiny() -> Samples:
    """240 windows of 20 steps and 2 axes; the label sets frequency and offset, the wearer the amplitude."""
    rng = np.random.default_rng(7)
    truth = np.arange(240) % 3
    groups = np.arange(240) // 60 + 1
    time = np.arange(20) / 20
    wave = np.sin(2 * np.pi * np.array([0, 1, 4])[truth][:, None] * time) * (1 + 0.1 * groups[:, None])
    windows = np.stack([wave, wave + 0.5 * truth[:, None]], axis=2) + 0.2 * rng.normal(size=(240, 20, 2))
    return Samples(windows=windows.astype(np.float32), truth=truth, groups=groups)


@pytest.fixture(scope="session")
def trained(tiny: Samples) -> Trained:
    """A small network trained on it, wearer 2 held out."""
    recipe = Recipe(hidden=(8, 6), max_iter=150, validation_groups=(2,), channels=("x", "y"))
    return train(recipe, tiny.windows, tiny.truth, tiny.groups, labels=LABELS)
