"""A real control plane in a subprocess, with a home folder of its own."""

import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from control_plane.__main__ import main
from control_plane.keys import hold_ceremony

SERVER = [sys.executable, "-m", "control_plane"]


@dataclass
class Running:
    """A control plane's home folder and its server."""

    home: Path
    port: int
    pages_port: int
    broker_port: int
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the server; returns when it answers and its broker is connected."""
        self.process = subprocess.Popen(
            [*SERVER, "run", "--home", str(self.home)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            self.wait_until_healthy()
        except BaseException:
            self.stop(by=signal.SIGKILL)
            raise

    def wait_until_healthy(self, timeout_s: float = 60.0) -> dict[str, Any]:
        """Wait until the server says that its broker is connected."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                pytest.fail(f"the server ended: {self.process.communicate()}")
            try:
                health: dict[str, Any] = self.get("/v1/health")
            except httpx.HTTPError:
                pass
            else:
                if health["broker"]["connected"]:
                    return health
            time.sleep(0.05)
        pytest.fail("expected a healthy server, got none in time")

    def stop(self, *, by: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Stop the server and return its exit code, output and errors."""
        assert self.process is not None
        self.process.send_signal(by)
        out, err = self.process.communicate(timeout=20)
        code = self.process.returncode
        self.process = None
        return code, out, err

    def get(self, path: str) -> Any:
        """GET as the operator, over loopback HTTP."""
        return self.ask("GET", path)[1]

    def post(self, path: str, body: Any) -> Any:
        """POST as the operator, over loopback HTTP; the answer must be a success."""
        status, answer = self.ask("POST", path, body)
        assert status < 300, answer
        return answer

    def ask(self, method: str, path: str, body: Any = None, *, token: str | None = None) -> tuple[int, Any]:
        """Ask over loopback HTTP, with the operator's token unless another is given."""
        shown = (self.home / "operator.token").read_text().strip() if token is None else token
        return ask(f"http://127.0.0.1:{self.pages_port}{path}", method=method, body=body, token=shown)

    def ask_securely(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Ask over HTTPS as a device: verified against the server's CA, without a token."""
        context = ssl.create_default_context(cafile=str(self.home / "ca" / "server-ca.pem"))
        return ask(f"https://localhost:{self.port}{path}", method=method, body=body, verify=context)

    def hold_ceremony(self) -> dict[str, str]:
        """Make offline keys beside the home folder, and found the repositories."""
        online = self.get("/v1/trust/online-keys")
        answer: dict[str, str] = self.post("/v1/trust/init", hold_ceremony(self.home.parent / "keys", online))
        return answer


def ask(url: str, *, method: str, body: Any = None, token: str = "", verify: Any = True) -> tuple[int, Any]:
    """Send a request with a JSON body; return the status and the JSON of the answer."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = httpx.request(method, url, json=body, headers=headers, timeout=20, verify=verify, trust_env=False)
    return answer.status_code, answer.json()


@pytest.fixture(scope="module")
def make_home(tmp_path_factory: pytest.TempPathFactory, pick: Callable[[], int]) -> Callable[..., Running]:
    """Return a function that makes a home folder by `skerry-server init`, in this process."""

    def make(*arguments: str) -> Running:
        made = Running(tmp_path_factory.mktemp("plane") / "home", pick(), pick(), pick())
        ports = ["--port", str(made.port), "--pages-port", str(made.pages_port), "--broker-port", str(made.broker_port)]
        assert main(["init", "--home", str(made.home), "--project", "watch", *ports, *arguments]) == 0
        return made

    return make


@pytest.fixture
def running(make_home: Callable[..., Running]) -> Iterator[Running]:
    """Run a control plane of the test's own, with an embedded broker."""
    yield from _run(make_home())


@pytest.fixture(scope="module")
def shared(make_home: Callable[..., Running]) -> Iterator[Running]:
    """Run a control plane that the module's tests share, after the ceremony."""
    for server in _run(make_home()):
        server.hold_ceremony()
        yield server


def _run(server: Running) -> Iterator[Running]:
    server.start()
    yield server
    if server.process is not None:
        server.stop()


@pytest.fixture(scope="module")
def pick() -> Callable[[], int]:
    """Return a function that picks a free port of 127.0.0.1."""

    def port() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return port
