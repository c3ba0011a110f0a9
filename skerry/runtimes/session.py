"""The port to a runtime: what a session is, which runtimes there are, and how to open one."""

import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from skerry.errors import Broken, Rejected

if TYPE_CHECKING:
    import numpy as np

    Arrays = dict[str, np.ndarray[Any, Any]]

MAX_MODEL_BYTES = 256 << 20


class Session(Protocol):
    """A loaded model."""

    def run(self, inputs: "Arrays") -> "Arrays":
        """Run one inference: arrays by input name in, arrays by output name out; raises `Rejected` on a wrong input."""

    def close(self) -> None:
        """Let go of the model's memory."""


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    """A runtime that can be imported here, and its version."""

    runtime: str
    version: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Something cannot run here; `reason` is one line: expected, got, what to do."""

    reason: str


@dataclass(frozen=True, slots=True)
class _Adapter:
    """Which Python module and distribution a runtime is, and the extra of Skerry that installs it."""

    module: str
    distribution: str
    extra: str


_ADAPTERS = {
    "onnxruntime": _Adapter(module="onnxruntime", distribution="onnxruntime", extra="onnx"),
    "litert": _Adapter(module="ai_edge_litert", distribution="ai-edge-litert", extra="litert"),
    "tflite-micro": _Adapter(module="tflite_micro", distribution="tflite-micro", extra="mcu"),
}


def probe(runtime: str) -> RuntimeInfo | Refused:
    """Say whether a runtime is installed here and in which version, without importing it."""
    adapter = _ADAPTERS.get(runtime)
    if adapter is None:
        return Refused(f"runtime: expected one of {', '.join(_ADAPTERS)}, got {runtime!r}")
    if importlib.util.find_spec(adapter.module) is None:
        return Refused(f"expected the runtime {runtime}, got none: pip install 'skerry[{adapter.extra}]'")
    try:
        version = importlib.metadata.version(adapter.distribution)
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"  # installed under another distribution's name, such as onnxruntime-gpu
    return RuntimeInfo(runtime=runtime, version=version)


def open_session(runtime: str, path: Path, *, threads: int = 1) -> Session:
    """Load a model into this process.

    Raises:
        Rejected: the file is missing, too long or not a model of this runtime; TFLite Micro is asked for, whose
            interpreter may crash and therefore runs in a child alone (`run_in_child`).
        Broken: the runtime is not installed; the message names the extra.
    """
    found = probe(runtime)
    if isinstance(found, Refused):
        raise Broken(found.reason)
    data = read_model(path)
    if runtime == "onnxruntime":
        from skerry.runtimes.onnx import OnnxSession

        return OnnxSession(data, threads=threads)
    if runtime == "litert":
        from skerry.runtimes.litert import LiteRtSession

        return LiteRtSession(data, threads=threads)
    raise Rejected(f"runtime: expected onnxruntime or litert in this process, got {runtime}: use run_in_child")


def read_model(path: Path) -> bytes:
    """Read a model file of at most 256 MiB; raises `Rejected` when it is missing or longer."""
    try:
        with path.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            if length > MAX_MODEL_BYTES:
                raise Rejected(f"{path}: expected a model of at most {MAX_MODEL_BYTES} bytes, got {length}")
            return file.read(MAX_MODEL_BYTES)
    except OSError as error:
        raise Rejected(f"{path}: expected a model file, got {error.strerror}") from error
