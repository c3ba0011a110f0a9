"""A TFLite interpreter behind the session port: LiteRT and the legacy runtime have the same face."""

from collections.abc import Callable
from typing import Any

from skerry.errors import Rejected
from skerry.runtimes.session import Signature, Tensor, distinct

Arrays = dict[str, Any]


class TfliteSession:
    """A model in an interpreter on the CPU; tensors are known by their names in the model."""

    def __init__(self, interpreter: Any, data: bytes, *, threads: int, runtime: str) -> None:
        if data[4:8] != b"TFL3":
            raise Rejected(f"expected a TFLite model (TFL3 at byte 4), got {data[:8]!r}")
        try:
            self._interpreter = interpreter(model_content=data, num_threads=threads)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise Rejected(f"expected a TFLite model, got a file that {runtime} refuses: {_line(error)}") from error
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self._signature = Signature(inputs=_tensors(inputs), outputs=_tensors(outputs))
        self._inputs = {
            tensor.name: detail["index"] for tensor, detail in zip(self._signature.inputs, inputs, strict=True)
        }
        self._outputs = {
            tensor.name: detail["index"] for tensor, detail in zip(self._signature.outputs, outputs, strict=True)
        }

    def signature(self) -> Signature:
        """Return the model's inputs and outputs."""
        return self._signature

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

    def bind(self, inputs: Arrays) -> "TfliteBound":
        """Join arrays to the interpreter: its outputs are read through views of its memory, and copied once."""
        import numpy as np

        if inputs.keys() != self._inputs.keys():
            raise Rejected(f"inputs: expected {sorted(self._inputs)}, got {sorted(inputs)}")
        outputs = {tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in self._signature.outputs}
        joined = [(self._inputs[name], array) for name, array in inputs.items()]
        views = [(self._interpreter.tensor(self._outputs[name]), array) for name, array in outputs.items()]
        return TfliteBound(self._interpreter, joined, views, outputs)

    def close(self) -> None:
        """Let go of the interpreter."""
        del self._interpreter


class TfliteBound:
    """An interpreter joined to arrays.

    Its memory cannot be an array of the caller's: an interpreter refuses to run while anyone holds a view of it. So an
    input is written once, and an output copied once, out of a view that lives no longer than that.
    """

    def __init__(
        self,
        interpreter: Any,
        inputs: list[tuple[int, Any]],
        views: list[tuple[Callable[[], Any], Any]],
        outputs: Arrays,
    ) -> None:
        self.outputs = outputs
        self._interpreter = interpreter
        self._inputs = inputs
        self._views = views

    def run(self) -> None:
        """Run one inference on what the inputs hold now."""
        try:
            for index, array in self._inputs:
                self._interpreter.set_tensor(index, array)
            self._interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise Rejected(f"expected inputs that the model takes, got a refusal: {_line(error)}") from error
        for view, array in self._views:
            array[...] = view()


def _tensors(details: list[dict[str, Any]]) -> tuple[Tensor, ...]:
    import numpy as np

    names = distinct([detail["name"] for detail in details])
    return tuple(
        Tensor(
            name=name,
            shape=tuple(int(size) for size in detail["shape"]),
            dtype=np.dtype(detail["dtype"]).name,
            scale=float(detail["quantization"][0]),
            zero_point=int(detail["quantization"][1]),
        )
        for name, detail in zip(names, details, strict=True)
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
