"""TFLite Micro behind the session port; only ever imported in the child process, because its interpreter may crash."""

import struct
from typing import Any

from tflite_micro import runtime
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

from skerry.errors import Rejected

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
        self._inputs = [graph.Tensors(graph.Inputs(i)).Name().decode() for i in range(graph.InputsLength())]
        self._outputs = [graph.Tensors(graph.Outputs(i)).Name().decode() for i in range(graph.OutputsLength())]

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
    try:
        session = MicroSession(data, arena_bytes=arena_bytes)
        session.run(inputs)
    except Rejected:
        return False
    return True


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
