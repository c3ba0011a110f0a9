"""A face in front of a fake, what to ask it, and requests that hang in its model: what tests of the face share."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent.local.serving import Face
from tests.integration.serving.clients import UnixConnection
from tests.integration.serving.fake import FakeModels

INFER = "/v2/models/watch/infer"


def request_of(value: float = 2.0) -> dict[str, Any]:
    return {
        "inputs": [
            {"name": "window", "shape": [1, 3], "datatype": "FP32", "data": [value, 0, 1]},
            {"name": "age", "shape": [1], "datatype": "INT64", "data": [3]},
        ],
        "outputs": [{"name": "scaled"}],
    }


BODY = json.dumps(request_of()).encode()


POST = b"POST /v2/models/watch/infer HTTP/1.1\r\nHost: localhost\r\n"


class Served:
    """A face that listens on both."""

    def __init__(self, models: FakeModels, path: Path, **settings: Any) -> None:
        self.models = models
        self.path = path
        self.face = Face(models, **settings)
        self.port = self.face.start(path, port=0) or 0

    def ask(self, method: str, path: str, body: Any = None, *, unix: bool = False, **headers: str) -> "Heard":
        connection = (
            UnixConnection(self.path) if unix else http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        )
        try:
            named = {key.replace("_", "-"): value for key, value in headers.items()}
            connection.request(method, path, body=body, headers=named)
            answer = connection.getresponse()
            return Heard(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def say(self, data: bytes) -> bytes:
        """Send bytes over TCP and return all that comes until the face closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: client.recv(65536), b""))


class Heard:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, {key.lower(): value for key, value in headers.items()}, body

    @property
    def tree(self) -> Any:
        return json.loads(self.body)


def until(what: Callable[[], Any], *, why: str) -> None:
    deadline = time.monotonic() + 10
    while not what():
        assert time.monotonic() < deadline, f"waited 10 s for {why}"
        time.sleep(0.005)


class Held:
    """Requests that hang in the model until they are let go."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.go = threading.Event()
        self.statuses: list[int] = []
        self.threads: list[threading.Thread] = []

    def begin(self, count: int) -> None:
        before = self.served.models.runs
        self.threads += [threading.Thread(target=self._ask) for _ in range(count)]
        for thread in self.threads[-count:]:
            thread.start()
        until(lambda: self.served.models.runs == before + count, why="the model to be asked")

    def _ask(self) -> None:
        self.statuses.append(self.served.ask("POST", INFER, BODY).status)

    def wait(self) -> None:
        assert self.go.wait(10)

    def end(self) -> None:
        self.go.set()
        for thread in self.threads:
            thread.join(10)


@contextmanager
def held(served: Served) -> Iterator[Held]:
    others = Held(served)
    served.models.before_run = others.wait
    try:
        yield others
    finally:
        others.end()
