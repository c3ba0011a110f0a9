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
        self._outputs = [output.name for output in self._session.get_outputs()]

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
            raise Rejected(f"expected inputs that the model takes, got a refusal: {_line(error)}") from error

    def close(self) -> None:
        """Let go of the session."""
        del self._session


def _tensor(node: Any) -> Tensor:
    written = node.type.removeprefix("tensor(").removesuffix(")")
    # a dimension without a number is a name, or None
    shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
    return Tensor(name=node.name, shape=shape, dtype=_DTYPES.get(written, written))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
