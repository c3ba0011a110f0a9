"""The emulators that the tests run: prepared once per machine, in the folder that `skerry emulator prepare` uses.

A missing one skips its tests, unless SKERRY_REQUIRE_SERVERS=1 (as in CI): then it fails them.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from control_plane.training import Recipe, Trained, split, train
from converters.emulators import DEFAULT_FOLDER, prepare
from converters.samples import Array, Samples
from skerry.errors import Broken, Unavailable
from tests.tflite_files import hybrid_file

LABELS = ("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW")
CHANNELS = ("ax", "ay", "az", "wx", "wy", "wz")
STEPS, HOP = 100, 50


@pytest.fixture(scope="session")
def arm64() -> Path:
    """Prepare arm64 and return the folder of emulators; mark such tests `emulator`."""
    return _prepared("arm64")


@pytest.fixture(scope="session")
def cortex_m() -> Path:
    """Check for the Cortex-M and return the folder of emulators; mark such tests `emulator`."""
    return _prepared("cortex-m")


def _prepared(kind: str) -> Path:
    try:
        found = prepare(kind, DEFAULT_FOLDER, print)
        missing = "; ".join(found.missing)
    except (Broken, Unavailable) as error:
        missing = str(error)
    if not missing:
        return DEFAULT_FOLDER
    if os.environ.get("SKERRY_REQUIRE_SERVERS") == "1":
        pytest.fail(missing)
    pytest.skip(missing)


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in each run."""
    return np.random.default_rng(20260131)


@pytest.fixture(scope="session")
def watch() -> Samples:
    """The watch recording that ships with seglearn, the wrist coded 1, in windows of 2 s at half overlap."""
    from seglearn.datasets import load_watch

    data = load_watch()
    rows = [
        (recording[start : start + STEPS], label, subject)
        for recording, label, subject, side in zip(data["X"], data["y"], data["subject"], data["side"], strict=True)
        for start in range(0, len(recording) - STEPS + 1, HOP)
        if side == 1
    ]
    windows, truth, groups = (np.asarray(column) for column in zip(*rows, strict=True))
    return Samples(windows.astype(np.float32), truth.astype(np.int64), groups.astype(np.int64))


@pytest.fixture(scope="session")
def watch_windows(watch: Samples) -> Array:
    """Every eighth window: float32 (n, 100, 6)."""
    return watch.windows[::8]


@pytest.fixture(scope="session")
def trained(watch: Samples) -> Trained:
    """The watch model."""
    return train(Recipe(channels=CHANNELS), watch.windows, watch.truth, watch.groups, labels=LABELS)


@pytest.fixture(scope="session")
def hybrid(watch: Samples, trained: Trained) -> bytes:
    """Its hybrid build: float features, then dense layers in int8."""
    learnt, _ = split(trained.recipe, watch)
    return hybrid_file(trained.network, learnt.windows)


@pytest.fixture(scope="session")
def scaled(watch_windows: Array, trained: Trained) -> Array:
    """What enters the dense part, for those windows: float32 (n, 30)."""
    rows: Array = trained.network.normalised(watch_windows).astype(np.float32)
    return rows
