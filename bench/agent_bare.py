"""`python -m bench.agent_bare RUNTIME MODEL`: the bare stack that an agent is held against; ends with standard input.

One interpreter that imports the runtime, paho, ssl and sqlite3, holds the model and has run it. It prints the moment of
its first inference on the monotonic clock, which all processes share.
"""

import sqlite3
import ssl
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import paho.mqtt.client

IMPORTED = (sqlite3, ssl, paho.mqtt.client)
RUNS = 50


def open_bare(runtime: str, path: str) -> Callable[[Any], Any]:
    """Open a model as a program does that has nothing but the runtime; one thread."""
    if runtime == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda window: session.run(None, {"window": window})
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=1)
    interpreter.allocate_tensors()
    given = interpreter.get_input_details()[0]["index"]
    wanted = [detail["index"] for detail in interpreter.get_output_details()]

    def run(window: Any) -> Any:
        interpreter.set_tensor(given, window)
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in wanted]

    return run


def main() -> None:
    """Run the model, say when it first had, and wait."""
    run = open_bare(sys.argv[1], sys.argv[2])
    window = np.zeros((1, 50, 8), np.float32)
    run(window)
    print(time.monotonic(), flush=True)
    for _ in range(RUNS):
        run(window)
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
