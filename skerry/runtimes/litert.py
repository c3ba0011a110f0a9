"""LiteRT (TFLite's successor) behind the session port; tensors are known by their names in the model."""

from typing import Any

from ai_edge_litert.interpreter import Interpreter

from skerry.errors import Rejected

Arrays = dict[str, Any]


class LiteRtSession:
    """A model in the LiteRT interpreter on the CPU."""

    def __init__(self, data: bytes, *, threads: int) -> None:
        if data[4:8] != b"TFL3":
            raise Rejected(f"expected a TFLite model (TFL3 at byte 4), got {data[:8]!r}")
        try:
            self._interpreter = Interpreter(model_content=data, num_threads=threads)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise Rejected(f"expected a TFLite model, got a file that LiteRT refuses: {_line(error)}") from error
        self._inputs = {tensor["name"]: tensor["index"] for tensor in self._interpreter.get_input_details()}
        self._outputs = {tensor["name"]: tensor["index"] for tensor in self._interpreter.get_output_details()}

    def run(self, inputs: Arrays) -> Arrays:
        """Run one inference."""
        if inputs.keys() != self._inputs.keys():
            raise Rejected(f"inputs: expected {sorted(self._inputs)}, got {sorted(inputs)}")
        try:
            for name, array in inputs.items():
                self._interpreter.set_tensor(self._inputs[name], array)
            self._interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise Rejected(f"expected inputs that the model takes, got a refusal: {_line(error)}") from error
        return {name: self._interpreter.get_tensor(index) for name, index in self._outputs.items()}

    def close(self) -> None:
        """Let go of the interpreter."""
        del self._interpreter


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
