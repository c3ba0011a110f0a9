"""The watch recording that ships with seglearn, cut into windows, and a model trained on it once per session."""

from dataclasses import dataclass

import numpy as np
import pytest

from control_plane.training import Recipe, Trained, split, train
from converters.cache import Cache
from converters.compile import BuildOutcome, compile_model
from converters.samples import Samples, join_samples
from converters.source import from_network
from firmware_profiles import list_profiles, load_profile

LABELS = ("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW")
CHANNELS = ("ax", "ay", "az", "wx", "wy", "wz")
STEPS, HOP = 100, 50


@dataclass(frozen=True, slots=True)
class Watch:
    """Windows of both wrists: `worn` is the wrist coded 1, on which version 1 is trained, `moved` the other."""

    worn: Samples
    moved: Samples


def wearers(samples: Samples, first: int, last: int) -> Samples:
    """Return the rows of some wearers."""
    return samples.where((samples.groups >= first) & (samples.groups <= last))


@pytest.fixture(scope="session")
def watch() -> Watch:
    """The recording in windows of 2 s at half overlap."""
    from seglearn.datasets import load_watch

    data = load_watch()
    rows = [
        (recording[start : start + STEPS], label, subject, side)
        for recording, label, subject, side in zip(data["X"], data["y"], data["subject"], data["side"], strict=True)
        for start in range(0, len(recording) - STEPS + 1, HOP)
    ]
    windows, truth, groups, sides = (np.asarray(column) for column in zip(*rows, strict=True))
    everything = Samples(windows.astype(np.float32), truth.astype(np.int64), groups.astype(np.int64))
    return Watch(worn=everything.where(sides == 1), moved=everything.where(sides == 0))


def _train(samples: Samples) -> Trained:
    recipe = Recipe(channels=CHANNELS)
    return train(recipe, samples.windows, samples.truth, samples.groups, labels=LABELS)


@pytest.fixture(scope="session")
def first(watch: Watch) -> Trained:
    """Version 1: wearers 1 to 7, the wrist coded 1."""
    return _train(wearers(watch.worn, 1, 7))


@pytest.fixture(scope="session")
def second(watch: Watch) -> Trained:
    """Version 2: wearers 1 to 7, both wrists."""
    return _train(join_samples(wearers(watch.worn, 1, 7), wearers(watch.moved, 1, 7)))


@pytest.fixture(scope="session")
def learnt(watch: Watch, first: Trained) -> Samples:
    """The rows that version 1 learnt from."""
    return split(first.recipe, wearers(watch.worn, 1, 7))[0]


@pytest.fixture(scope="session")
def unseen(watch: Watch) -> Samples:
    """Wearers 8 to 10 on the wrist coded 1: never seen in training, never held out."""
    return wearers(watch.worn, 8, 10)


@pytest.fixture(scope="session")
def outcomes(watch: Watch, first: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildOutcome]:
    """Version 1 compiled for every profile; those of one runtime share what was measured."""
    cache = Cache(tmp_path_factory.mktemp("cache"))
    calibration, holdout = split(first.recipe, wearers(watch.worn, 1, 7))
    return {
        name: compile_model(
            from_network(first.network),
            load_profile(name),
            name="watch",
            version=1,
            created="2026-01-01T00:00:00Z",
            calibration=calibration.rows(),
            holdout=holdout.rows(),
            lineage=first.lineage,
            parallel=2,
            cache=cache,
        )
        for name in list_profiles()
    }
