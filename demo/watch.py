"""The smartwatch recording that `seglearn` ships, cut into windows and written as .npz files a user would bring.

Ten wearers, both wrists, six axes at 50 Hz, seven shoulder exercises (Burns et al., Physiological Measurement 39(7),
2018; BSD). The package's own loader reads it: nothing here unpickles. A window is 2 s (100 samples), each begins 1 s
after the one before it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

WINDOW = 100
STEP = 50
TRAIN_WEARERS = (1, 2, 3, 4, 5, 6, 7)
FLEET_WEARERS = (8, 9, 10)
WRISTS = {"right": 1, "left": 0}  # the two codes of the recording's `side`; which is which hand it does not say


@dataclass(frozen=True, slots=True)
class Windows:
    """All windows: `x` float32 (n, 100, 6), `y` int64 (n,), `wearer` and `wrist` int64 (n,), names of the classes."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    wearer: NDArray[np.int64]
    wrist: NDArray[np.int64]
    labels: tuple[str, ...]

    def where(self, *, wearers: tuple[int, ...], wrist: str) -> NDArray[np.int64]:
        """Return the row numbers of those wearers on that wrist."""
        chosen = np.isin(self.wearer, wearers) & (self.wrist == WRISTS[wrist])
        return np.flatnonzero(chosen)


def load() -> Windows:
    """Load the recording and cut it."""
    from seglearn.datasets import load_watch

    raw = load_watch()
    cut, truth, wearer, wrist = [], [], [], []
    for series, label, subject, side in zip(raw["X"], raw["y"], raw["subject"], raw["side"], strict=True):
        for start in range(0, len(series) - WINDOW + 1, STEP):
            cut.append(series[start : start + WINDOW])
            truth.append(int(label))
            wearer.append(int(subject))
            wrist.append(int(side))
    return Windows(
        x=np.asarray(cut, dtype=np.float32),
        y=np.asarray(truth, dtype=np.int64),
        wearer=np.asarray(wearer, dtype=np.int64),
        wrist=np.asarray(wrist, dtype=np.int64),
        labels=tuple(str(name) for name in raw["y_labels"]),
    )


def write(path: Path, windows: Windows, rows: NDArray[np.int64]) -> None:
    """Write those rows as one .npz (X, y, group, labels), replacing the file in one step: agents follow it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # the name must end in .npz, or NumPy appends that itself
    draft = path.with_name(f".{path.stem}.new.npz")
    np.savez(
        draft,
        X=windows.x[rows],
        y=windows.y[rows],
        group=windows.wearer[rows],
        labels=np.asarray(windows.labels),
    )
    draft.replace(path)


def few_of_each(windows: Windows, *, wearers: tuple[int, ...], wrist: str, count: int, seed: int) -> NDArray[np.int64]:
    """Return `count` rows of each wearer on that wrist, drawn by `seed`: what an operator has labelled by hand."""
    draw = np.random.default_rng(seed)
    rows = [draw.choice(windows.where(wearers=(wearer,), wrist=wrist), count, replace=False) for wearer in wearers]
    return np.sort(np.concatenate(rows))
