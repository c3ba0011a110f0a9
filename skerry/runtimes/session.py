"""The port to a runtime: what a session is, which runtimes there are, and how to open one.

Arrays go in and come out by name, in the model's own dtypes: float32 or fp16, or int8 and uint8 where the model was
built so, and then `Tensor.scale` and `Tensor.zero_point` say what they stand for. Nothing is converted on the way.

A session may have a state. A model that keeps one inside (TFLite variables, a streaming model) answers a row by what
came before it in the same session; a model that hands its state out takes it back as one more input. Both give equal
outputs for equal rows in equal order from a fresh session, which is what replay, golden vectors and the check for
determinism rely on; whoever needs a fresh state opens a fresh session.
"""

import importlib.util
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from skerry.errors import Broken, Rejected

if TYPE_CHECKING:
    import numpy as np

    Arrays = dict[str, np.ndarray[Any, Any]]

MAX_MODEL_BYTES = 256 << 20
PROBE_S = 30.0


class Session(Protocol):
    """A loaded model."""

    def run(self, inputs: "Arrays") -> "Arrays":
        """Run one inference: arrays by input name in, arrays by output name out; raises `Rejected` on a wrong input."""

    def close(self) -> None:
        """Let go of the model's memory."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output of a loaded model: name, shape (-1 where it is open) and NumPy dtype.

    Where `scale` is not 0, an integer q stands for the number scale * (q - zero_point).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float = 0.0
    zero_point: int = 0


@dataclass(frozen=True, slots=True)
class Signature:
    """What a loaded model takes and gives, in its own order."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class Bound(Protocol):
    """A session joined to arrays: `run` reads its inputs where they stand and writes `outputs` in place."""

    outputs: "Arrays"

    def run(self) -> None:
        """Run one inference on what the inputs hold now."""


class Described(Session, Protocol):
    """A session that also says what its model takes and gives; every adapter here is one."""

    def signature(self) -> Signature:
        """Return the model's inputs and outputs."""


class Bindable(Described, Protocol):
    """A session that can be joined to arrays; those that run in this process are."""

    def bind(self, inputs: "Arrays") -> Bound:
        """Join these arrays to the session, for inferences that allocate nothing.

        Raises:
            Rejected: they are not all the inputs, or one is not as the model takes it, or not C-contiguous.
        """


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
    """Which Python module and distribution a runtime is, and how to come by it."""

    module: str
    distribution: str
    remedy: str


_ADAPTERS = {
    "onnxruntime": _Adapter("onnxruntime", "onnxruntime", "pip install 'skerry[onnx]'"),
    "litert": _Adapter("ai_edge_litert", "ai-edge-litert", "pip install 'skerry[litert]'"),
    "tflite-micro": _Adapter("tflite_micro", "tflite-micro", "pip install 'skerry[mcu]'"),
    "tflite-runtime": _Adapter("tflite_runtime", "tflite-runtime", "skerry profile prepare armv7-legacy"),
}


def probe(runtime: str) -> RuntimeInfo | Refused:
    """Say whether a runtime is installed for this Python and in which version, without importing it here.

    The legacy `tflite-runtime` imports beside NumPy 2 and fails at the first interpreter, so it is asked for one.
    """
    refused = _missing(runtime)
    if refused is not None:
        return refused
    adapter = _ADAPTERS[runtime]
    if runtime == "tflite-runtime":
        return probe_elsewhere(sys.executable)
    return RuntimeInfo(runtime=runtime, version=_version(adapter))


def _version(adapter: _Adapter) -> str:
    """Return the version of what is installed, "unknown" for one that came under another distribution's name.

    It is part of a folder's name (PEP 427), beside the module; `importlib.metadata` costs a device a megabyte for that.
    """
    spec = importlib.util.find_spec(adapter.module)
    beside = Path(spec.origin).parent.parent if spec is not None and spec.origin else Path()
    start = f"{adapter.distribution.replace('-', '_')}-"
    found = sorted(path.name for path in beside.glob(f"{start}*.dist-info"))
    if found:
        return found[-1].removeprefix(start).removesuffix(".dist-info")
    from importlib import metadata

    try:
        return metadata.version(adapter.distribution)
    except metadata.PackageNotFoundError:
        return "unknown"  # such as onnxruntime-gpu


def _missing(runtime: str) -> Refused | None:
    """Say why a runtime cannot be imported here; None when it can."""
    adapter = _ADAPTERS.get(runtime)
    if adapter is None:
        return Refused(f"runtime: expected one of {', '.join(_ADAPTERS)}, got {runtime!r}")
    if importlib.util.find_spec(adapter.module) is None:
        return Refused(f"expected the runtime {runtime}, got none: {adapter.remedy}")
    return None


@cache
def probe_elsewhere(python: str) -> RuntimeInfo | Refused:
    """Build an interpreter of `tflite-runtime` in another process of a Python, and return its version."""
    import subprocess

    program = Path(__file__).with_name("tflite_runtime.py")
    # -I: our PYTHONPATH must not lend another Python our NumPy; -P: this file's folder is not searched for modules
    command = [python, "-P" if python == sys.executable else "-I", str(program)]
    try:
        # the file itself and not the module: that Python need not have Skerry installed
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_S, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return Refused(f"expected a Python with tflite-runtime at {python}, got {type(error).__name__}")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1][:160]
        return Refused(f"expected an interpreter of tflite-runtime (NumPy 1, Python 3.11) from {python}, got: {last}")
    return RuntimeInfo(runtime="tflite-runtime", version=done.stdout.strip()[:40])


def open_session(runtime: str, model: Path | bytes, *, threads: int = 1) -> Bindable:
    """Load a model, a file or its bytes, into this process.

    Raises:
        Rejected: the file is missing, too long or not a model of this runtime; TFLite Micro is asked for, whose
            interpreter may crash and therefore runs in a child alone (`run_in_child`).
        Broken: the runtime is not installed, or is one for another Python or machine; the message names the extra.
    """
    # NumPy 2 and a legacy runtime that is there all the same do not go together: that one is tried
    found = probe(runtime) if runtime == "tflite-runtime" else _missing(runtime)
    if isinstance(found, Refused):
        raise Broken(found.reason)
    data = model if isinstance(model, bytes) else read_model(model)
    try:
        return _open(runtime, data, threads=threads)
    except ImportError as error:
        got = " ".join(str(error).split())[:200]
        remedy = _ADAPTERS[runtime].remedy
        raise Broken(f"expected a runtime {runtime} for this Python and machine, got: {got}: {remedy}") from error


def _open(runtime: str, data: bytes, *, threads: int) -> Bindable:
    if runtime == "onnxruntime":
        from skerry.runtimes.onnx import OnnxSession

        return OnnxSession(data, threads=threads)
    if runtime == "litert":
        from skerry.runtimes.litert import open_litert

        return open_litert(data, threads=threads)
    if runtime == "tflite-runtime":
        from skerry.runtimes.tflite_runtime import open_tflite_runtime

        return open_tflite_runtime(data, threads=threads)
    raise Rejected(
        f"runtime: expected onnxruntime, litert or tflite-runtime in this process, got {runtime}: use run_in_child"
    )


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


def distinct(names: list[str]) -> list[str]:
    """Return names by which tensors can be told apart: an empty or repeated one becomes NAME#POSITION."""
    return [name if name and names.count(name) == 1 else f"{name}#{position}" for position, name in enumerate(names)]
