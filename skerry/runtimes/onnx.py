"""ONNX Runtime behind the session port."""

from typing import Any

import onnxruntime

from skerry.errors import Rejected

Arrays = dict[str, Any]


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

    def run(self, inputs: Arrays) -> Arrays:
        """Run one inference."""
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))
        except Exception as error:  # as above
            raise Rejected(f"expected inputs that the model takes, got a refusal: {_line(error)}") from error

    def close(self) -> None:
        """Let go of the session."""
        del self._session


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
