"""ONNX Runtime behind the session port."""

from typing import Any

import onnxruntime

from skerry.errors import Rejected
from skerry.runtimes.session import Signature, Tensor

Arrays = dict[str, Any]
# how ONNX Runtime writes the types whose NumPy name is another
_DTYPES = {"float": "float32", "double": "float64", "float16": "float16", "string": "object"}


class OnnxSession:
    """A model in ONNX Runtime on the CPU."""

    def __init__(self, data: bytes, *, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # spinning worker threads would win microseconds and cost a gateway its other cores
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # the bytes, never the path: from bytes, ONNX Runtime has no folder to look for external data in
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the binding's exceptions share no other root
            raise Rejected(f"expected an ONNX model, got a file that ONNX Runtime refuses: {_line(error)}") from error
        outputs = self._session.get_outputs()
        self._outputs = [output.name for output in outputs]
        self._open = any(not isinstance(size, int) for output in outputs for size in output.shape)

    def signature(self) -> Signature:
        """Return the model's inputs and outputs."""
        return Signature(
            inputs=tuple(_tensor(each) for each in self._session.get_inputs()),
            outputs=tuple(_tensor(each) for each in self._session.get_outputs()),
        )

    def run(self, inputs: Arrays) -> Arrays:
        """Run one inference."""
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))
        except Exception as error:  # as above
            raise _refused(error) from error

    def bind(self, inputs: Arrays) -> "OnnxBound":
        """Join arrays to the session by I/O binding: neither an input nor an output is copied.

        A model whose outputs have an open dimension is run once, to see how long they are.
        """
        for name, array in inputs.items():
            if not array.flags.c_contiguous:
                raise Rejected(f"input {name}: expected a C-contiguous array, got a strided one; copy it first")
        outputs = self._run_once(inputs) if self._open else self._empty()
        try:
            return OnnxBound(self._session, inputs, outputs)
        except Exception as error:  # as above
            raise _refused(error) from error

    def _empty(self) -> Arrays:
        import numpy as np

        return {tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in self.signature().outputs}

    def _run_once(self, inputs: Arrays) -> Arrays:
        import numpy as np

        # the binding's own arrays may belong to the runtime
        return {name: np.array(array, order="C") for name, array in self.run(inputs).items()}

    def close(self) -> None:
        """Let go of the session."""
        del self._session


class OnnxBound:
    """A session whose inputs and outputs are bound to the memory of arrays; for one thread at a time."""

    def __init__(self, session: onnxruntime.InferenceSession, inputs: Arrays, outputs: Arrays) -> None:
        self.outputs = outputs
        self._session = session
        self._binding = session.io_binding()
        # an OrtValue lends the array's memory and keeps the array alive, and is kept alive here
        self._inputs = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in inputs.items()}
        self._values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in outputs.items()}
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._values.items():
            self._binding.bind_ortvalue_output(name, value)

    def run(self) -> None:
        """Run one inference on what the inputs hold now."""
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # as above
            raise _refused(error) from error


def _refused(error: Exception) -> Rejected:
    return Rejected(f"expected inputs that the model takes, got a refusal: {_line(error)}")


def _tensor(node: Any) -> Tensor:
    written = node.type.removeprefix("tensor(").removesuffix(")")
    # a dimension without a number is a name, or None
    shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
    return Tensor(name=node.name, shape=shape, dtype=_DTYPES.get(written, written))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
