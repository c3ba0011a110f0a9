"""Clients of the local face: the standard library's over a unix socket, and tritonclient in a process of its own."""

import http.client
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from skerry.inference.local_socket import address_of

STORY = Path(__file__).with_name("triton_story.py")


class UnixConnection(http.client.HTTPConnection):
    """The standard library's client on a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        with address_of(self.path) as address:
            self.sock.connect(address)


def tell_by_tritonclient(port: int | None, model: str) -> dict[str, Any]:
    """Return what tritonclient saw of a model on a port of 127.0.0.1; a warning in its process is none of ours."""
    command = [sys.executable, "-P", str(STORY), str(port), model]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    story: dict[str, Any] = json.loads(done.stdout)
    return story
