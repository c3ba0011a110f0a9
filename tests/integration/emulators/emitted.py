"""Emitted C compiled by this machine's compiler and called from Python, and the interpreter to compare it with."""

import ctypes
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.c_source import Face, face_of
from converters.samples import Array
from tests.conftest import required

STRICT = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wno-sign-conversion", "-Werror"]


@dataclass(frozen=True, slots=True, eq=False)
class Compiled:
    """Emitted C as a shared library."""

    face: Face
    library: ctypes.CDLL

    def predict(self, rows: Array) -> Array:
        """Return the outputs of rows (n, width)."""
        return self._each(f"{self.face.name}_predict", rows, np.dtype(self.face.element))

    def predict_float(self, rows: Array) -> Array:
        """Return the real outputs of real rows of a dense net."""
        return self._each(f"{self.face.name}_predict_float", rows, np.dtype(np.float32))

    def labels(self, rows: Array) -> Array:
        """Return the label of each row."""
        function = getattr(self.library, f"{self.face.name}_label")
        rows = np.ascontiguousarray(rows, dtype=self.face.element)
        return np.asarray([function(row.ctypes.data_as(ctypes.c_void_p)) for row in rows])

    def _each(self, function: str, rows: Array, dtype: np.dtype[Any]) -> Array:
        rows = np.ascontiguousarray(rows, dtype=dtype)
        out = np.zeros((len(rows), self.face.outputs), dtype=dtype)
        for row, result in zip(rows, out, strict=True):
            pointers = (row.ctypes.data_as(ctypes.c_void_p), result.ctypes.data_as(ctypes.c_void_p))
            getattr(self.library, function)(*pointers)
        return out


def build(sources: Mapping[str, bytes], folder: Path) -> Path:
    """Write emitted files and compile them without a warning; returns the shared library."""
    compiler = required("gcc", package="gcc libc6-dev")
    for name, data in sources.items():
        (folder / name).write_bytes(data)
    files = [str(folder / name) for name in sources if name.endswith(".c")]
    library = folder / "emitted.so"
    command = [compiler, *STRICT, "-shared", "-fPIC", "-o", str(library), *files, "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return library


def compiled(sources: Mapping[str, bytes], folder: Path) -> Compiled:
    """Compile emitted C and load it."""
    return Compiled(face_of(sources), ctypes.CDLL(str(build(sources, folder))))


def micro(model: bytes, rows: Array, folder: Path) -> Array:
    """Return the first output of TFLite Micro for rows, run in a child."""
    (folder / "model.tflite").write_bytes(model)
    np.save(folder / "rows.npy", rows)
    child = Path(__file__).parent / "micro_child.py"
    command = [sys.executable, str(child), *(str(folder / name) for name in ("model.tflite", "rows.npy", "out.npy"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    outputs: Array = np.load(folder / "out.npy")
    return outputs
