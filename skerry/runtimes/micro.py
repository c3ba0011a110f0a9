"""TFLite Micro behind the session port; only ever imported in the child process, because its interpreter may crash."""

import os
import struct
from typing import Any

from tflite_micro import runtime
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

from skerry.errors import Rejected
from skerry.runtimes.session import Signature, Tensor, distinct

Arrays = dict[str, Any]
ARENA_BYTES = 4 << 20


class MicroSession:
    """A model in the TFLite Micro interpreter, with an arena of `arena_bytes`."""

    def __init__(self, data: bytes, *, arena_bytes: int = ARENA_BYTES) -> None:
        if data[4:8] != b"TFL3":
            raise Rejected(f"expected a TFLite model (TFL3 at byte 4), got {data[:8]!r}")
        try:
            self._interpreter = runtime.Interpreter.from_bytes(data, arena_size=arena_bytes)
        # the last three are what its Python reader of the flatbuffer raises on broken offsets
        except (ValueError, RuntimeError, TypeError, IndexError, struct.error) as error:
            raise Rejected(f"expected a model that fits {arena_bytes} bytes of arena, got: {_line(error)}") from error
        graph = schema.Model.GetRootAsModel(data, 0).Subgraphs(0)
        # the interpreter knows its tensors by position alone; their names are in the file
        self._inputs = distinct([_name(graph.Tensors(graph.Inputs(i))) for i in range(graph.InputsLength())])
        self._outputs = distinct([_name(graph.Tensors(graph.Outputs(i))) for i in range(graph.OutputsLength())])

    def signature(self) -> Signature:
        """Return the model's inputs and outputs."""
        get = self._interpreter
        return Signature(
            inputs=tuple(_tensor(name, get.get_input_details(i)) for i, name in enumerate(self._inputs)),
            outputs=tuple(_tensor(name, get.get_output_details(i)) for i, name in enumerate(self._outputs)),
        )

    def run(self, inputs: Arrays) -> Arrays:
        """Run one inference."""
        if sorted(inputs) != sorted(self._inputs):
            raise Rejected(f"inputs: expected {sorted(self._inputs)}, got {sorted(inputs)}")
        try:
            for index, name in enumerate(self._inputs):
                self._interpreter.set_input(inputs[name], index)
            self._interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise Rejected(f"expected inputs that the model takes, got a refusal: {_line(error)}") from error
        # copied: the array is a view of the arena, which the next inference overwrites
        return {name: self._interpreter.get_output(index).copy() for index, name in enumerate(self._outputs)}

    def close(self) -> None:
        """Let go of the interpreter."""
        del self._interpreter


def least_arena(data: bytes, inputs: Arrays) -> int:
    """Return the smallest arena, to 256 bytes, in which the model loads and runs once."""
    low, high = 0, ARENA_BYTES
    while high - low > 256:
        middle = (low + high) // 2 // 16 * 16
        if _runs_in(data, inputs, arena_bytes=middle):
            high = middle
        else:
            low = middle
    return high


def _runs_in(data: bytes, inputs: Arrays, *, arena_bytes: int) -> bool:
    """Try one arena in a process of its own: in one that is barely too small the interpreter may write past its end."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # it says at length what did not fit
            MicroSession(data, arena_bytes=arena_bytes).run(inputs)
            code = 0
        except Rejected:
            pass
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) == 0


def _name(tensor: Any) -> str:
    return (tensor.Name() or b"").decode(errors="replace")


def _tensor(name: str, details: dict[str, Any]) -> Tensor:
    import numpy as np

    quantised = details["quantization_parameters"]
    # per-channel parameters have no one number, and are of constants: an input or output has one scale or none
    scales, zero_points = quantised["scales"], quantised["zero_points"]
    single = len(scales) == 1
    return Tensor(
        name=name,
        shape=tuple(int(size) for size in details["shape"]),
        dtype=np.dtype(details["dtype"]).name,
        scale=float(scales[0]) if single else 0.0,
        zero_point=int(zero_points[0]) if single else 0,
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
