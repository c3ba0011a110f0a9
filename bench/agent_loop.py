"""`python -m bench.agent_loop RUNTIME STATE ROUNDS CALLS`: one model asked in five ways, in short blocks.

    bare        the runtime in a loop, as `bench.agent_bare` opens it
    in_process  `skerry.Model`, its 16 features counted by the agent of STATE
    bound       the same, on arrays that are bound to the session
    child       a supervised worker asked over its socket pair (`agent.inference.workers`)
    socket      the agent of STATE asked over its unix socket, Open Inference Protocol with binary tensors

Prints one line of JSON: for each way, microseconds of its calls: the median, the 99th percentile, and that of the calls
during which nobody took the processor away; on a shared machine that one says more. Blocks are
short and in a random order, so that whatever else the machine does falls on all of them alike.
"""

import json
import random
import resource
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import skerry
from agent.inference.frames import Request, Verb, write_head
from agent.inference.workers import Given, Worker, check_answer, start_worker
from bench.agent_bare import open_bare
from skerry.delivery.slots import MANIFEST, Slots
from skerry.inference.local_socket import connect

SEED = 20261
WARM_UP = 5
SETTLE_S = 0.005
LENGTH = "Inference-Header-Content-Length"


class Ways:
    """The model in STATE, opened in each of the five ways."""

    def __init__(self, runtime: str, state: Path) -> None:
        slots = Slots(state / "slots")
        manifest = slots.read(slots.active)
        folder = slots.folder(slots.active)
        file = folder / manifest.model_file
        self._window = window = np.random.default_rng(3).normal(size=(1, 50, 8)).astype(np.float32)
        self._model = skerry.Model(manifest.model, state=state)
        self._worker = start_worker(Given((folder / MANIFEST).read_bytes(), runtime, file))
        self._socket = connect(state / "serve.sock", timeout_s=10)
        bare, model = open_bare(runtime, str(file)), self._model
        self.calls: dict[str, Callable[[], Any]] = {
            "bare": lambda: bare(window),
            "in_process": lambda: model(window),
            "bound": model.bind(window.copy()),
            "child": self._child_call(self._worker),
            "socket": self._socket_call(self._socket, manifest.model),
        }

    def close(self) -> None:
        """End what was started."""
        self._socket.close()
        self._worker.close()
        self._model.close()

    def _child_call(self, worker: Worker) -> Callable[[], Any]:
        line, data = request_body(self._window)
        head = write_head({LENGTH.lower(): str(len(line))})

        def ask() -> None:
            check_answer(worker.ask(Request(Verb.INFER, head, line + data), patience_s=10))

        return ask

    def _socket_call(self, connection: socket.socket, model: str) -> Callable[[], Any]:
        line, data = request_body(self._window)
        request = http_request(model, line, data)

        def ask() -> Any:
            connection.sendall(request)
            return read_answer(connection)

        return ask


def request_body(window: Any) -> tuple[bytes, bytes]:
    """Return the JSON and the bytes of a request with a binary tensor, that asks for binary outputs."""
    data = window.tobytes()
    tensor = {
        "name": "window",
        "shape": list(window.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(data)},
    }
    return json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode(), data


def http_request(model: str, line: bytes, data: bytes) -> bytes:
    """Return a whole request."""
    head = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: localhost\r\n"
        f"{LENGTH}: {len(line)}\r\nContent-Length: {len(line) + len(data)}\r\n\r\n"
    )
    return head.encode() + line + data


def read_answer(connection: socket.socket) -> bytes:
    """Read one answer and return its body; raises `OSError` when it is none, or an error."""
    data = connection.recv(65536)
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            raise OSError("expected an answer, got the end")
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise OSError(f"expected an answer of 200, got {data[:200]!r}")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    length = int(lengths[0].partition(b":")[2])
    while len(body) < length:
        body += connection.recv(65536)
    return body


def time_calls(call: Callable[[], Any], count: int) -> list[tuple[float, bool]]:
    """Return the microseconds of each call, and whether this thread had its processor taken away meanwhile."""
    for _ in range(WARM_UP):
        call()
    taken = []
    for _ in range(count):
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
        began = time.perf_counter_ns()
        call()
        took = (time.perf_counter_ns() - began) / 1000
        taken.append((took, resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw != before))
    return taken


def summary(taken: list[tuple[float, bool]]) -> list[float]:
    """Return median and 99th percentile, and the 99th percentile of the calls that were left their processor."""
    everything = [took for took, _ in taken]
    quiet = [took for took, disturbed in taken if not disturbed] or everything
    return [*np.percentile(everything, (50, 99)).tolist(), float(np.percentile(quiet, 99))]


def main() -> None:
    """Time blocks of calls in turn, each way first in another round."""
    runtime, state, rounds, calls = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    ways = Ways(runtime, state)
    measured: dict[str, list[tuple[float, bool]]] = {name: [] for name in ways.calls}
    turns = list(ways.calls.items())
    order = random.Random(SEED)  # noqa: S311 -- who comes after whom, the same in every run
    for _ in range(rounds):
        order.shuffle(turns)
        for name, call in turns:
            measured[name] += time_calls(call, calls)
            # what is still to be sent and counted is nobody else's
            time.sleep(SETTLE_S)
    ways.close()
    print(json.dumps({name: summary(taken) for name, taken in measured.items()}))


if __name__ == "__main__":
    main()
