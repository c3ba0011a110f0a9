"""The command line before and after the key ceremony, against a real server."""

import http.server
import threading
from pathlib import Path
from typing import Any

import pytest

from control_plane.cli.program import main
from skerry.client import Client
from skerry.errors import Unavailable

Output = pytest.CaptureFixture[str]


def test_health_says_what_comes_next_and_the_ceremony_is_held_once(
    running: Any, capsys: Output, tmp_path: Path
) -> None:
    home = ("--home", str(running.home))
    assert main((*home, "health")) == 0
    assert "not held yet; next: skerry keys init" in capsys.readouterr().out

    assert main((*home, "keys", "init", "--out", str(tmp_path / "keys"))) == 0
    assert main((*home, "health")) == 0
    assert "not held yet" not in capsys.readouterr().out

    # keys that would sign nothing are not made
    assert main((*home, "keys", "init", "--out", str(tmp_path / "more"))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "got one already" in line
    assert not (tmp_path / "more").exists()


def test_a_server_that_is_no_control_plane_is_named() -> None:
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        with Client(address, "t") as client, pytest.raises(Unavailable, match="not JSON"):
            client.health()
        server.shutdown()
