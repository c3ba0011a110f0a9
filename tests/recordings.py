"""Recordings for whole agents to replay."""

from pathlib import Path
from typing import Any

import numpy as np

from skerry.runtimes.arrays import pack


def write_recording(path: Path, labels: tuple[str, ...]) -> Path:
    """Write 60 windows of 100 steps and 6 axes whose truth is known; return the path."""
    rng = np.random.default_rng(3)
    arrays: dict[str, Any] = {
        "X": rng.normal(size=(60, 100, 6)).astype(np.float32),
        "y": rng.integers(0, len(labels), size=60),
        "labels": np.array(labels),
    }
    path.write_bytes(pack(arrays))
    return path
