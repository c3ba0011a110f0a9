"""An agent that is not there: a stub of its socket that keeps what it hears, and artifacts made once."""

import json
import os
import socketserver
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.artifacts import make_artifact

RUNTIMES = ("onnxruntime", "litert")


@cache
def artifact(runtime: str, version: int = 1) -> dict[str, bytes]:
    """Return an artifact, the same one in every test."""
    return make_artifact(runtime, version=version)


def wait_until(what: Callable[[], Any], *, why: str, timeout_s: float = 20.0) -> None:
    """Wait until something is true, or fail."""
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, f"expected {why} within {timeout_s} s"
        time.sleep(0.01)


@dataclass
class StubAgent:
    """What was posted, and what is answered."""

    status: int = 204
    rows: Counter[tuple[float, ...]] = field(default_factory=Counter)
    by_manifest: Counter[str] = field(default_factory=Counter)
    widths: set[int] = field(default_factory=set)
    dropped: int = 0
    crashed: list[dict[str, str]] = field(default_factory=list)
    on_crash: Callable[[dict[str, str]], object] = lambda _: None

    def hear(self, path: str, body: bytes) -> int:
        if self.status != 204:
            return self.status
        if path == "/skerry/v1/crashed":
            self.crashed.append(json.loads(body))
            self.on_crash(self.crashed[-1])
        else:
            assert path == "/skerry/v1/observations"
            line, _, data = body.partition(b"\n")
            head = json.loads(line)
            assert head.keys() <= {"manifest", "width", "dropped"}
            rows = list(struct.iter_unpack(f"<{head['width']}d", data))
            self.rows.update(rows)
            self.by_manifest[head["manifest"]] += len(rows)
            self.widths.add(head["width"])
            self.dropped += head["dropped"]
        return 204


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def __init__(self, path: Path, stub: StubAgent) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(stub.hear(self.path, body))
                self.send_header("Content-Length", "0")
                self.end_headers()

            def address_string(self) -> str:
                return "unix"

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(str(path), Handler)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """An agent's state folder in which nothing was ever staged."""
    folder = tmp_path / "skerry-agent"
    (folder / "slots").mkdir(parents=True)
    return folder


@pytest.fixture
def stub(state: Path) -> Iterator[StubAgent]:
    """A stub of the agent, on the socket in the state folder."""
    with serve(state) as stub:
        yield stub


class serve:  # noqa: N801 -- reads as a verb where it is used
    """Answer on the socket of a state folder, while the block lasts."""

    def __init__(self, state: Path) -> None:
        # the path of a test's folder may be longer than a socket's address
        self._folder = os.open(state, os.O_RDONLY | os.O_DIRECTORY)
        self._stub = StubAgent()
        self._server = _Server(Path(f"/proc/self/fd/{self._folder}/serve.sock"), self._stub)
        self._path = state / "serve.sock"

    def __enter__(self) -> StubAgent:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self._stub

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._path.unlink()
        os.close(self._folder)
