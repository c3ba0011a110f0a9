"""What the client and the command line refuse before anything is sent."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from control_plane.cli.session import read_bytes, say, table
from skerry.client import Client
from skerry.errors import Broken, Rejected, Unavailable


@pytest.mark.parametrize(
    ("url", "token", "ca", "words"),
    [
        ("http://[bad", "t", None, "expected an address"),
        ("http://a:b", "t", None, "expected an address"),
        ("http://127.0.0.1:9", "t\u00f6ken", None, "and a token"),
        ("https://127.0.0.1:9", "t", "/nowhere/ca.pem", "/nowhere/ca.pem"),
        ("https://127.0.0.1:9", "t", __file__, "expected a file of CA certificates"),
    ],
)
def test_an_address_a_token_or_a_ca_that_cannot_be_used_is_refused(
    url: str, token: str, ca: str | None, words: str
) -> None:
    with pytest.raises(Rejected, match=words) as refusal:
        Client(url, token, ca=ca)
    assert "t\u00f6ken" not in str(refusal.value)


@pytest.mark.parametrize("value", [date(2024, 1, 1), float("nan"), "\udcff"])
def test_a_recipe_that_json_cannot_hold_is_refused(value: Any) -> None:
    with Client("http://127.0.0.1:9", "t") as client, pytest.raises(Rejected, match="what JSON can hold"):
        client.train("watch", dataset="d", recipe={"seed": value})


def test_a_name_that_is_no_text_names_nothing() -> None:
    with Client("http://127.0.0.1:9", "t") as client, pytest.raises(Unavailable, match="expected a control plane"):
        client.device("\udcff")


def test_the_token_of_a_local_server_is_not_shown_to_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://192.0.2.1:1")
    with Client("http://127.0.0.1:9", "t", timeout_s=5) as client, pytest.raises(Unavailable, match="refused"):
        client.health()


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    with pytest.raises(Rejected, match="expected at most 4 bytes"):
        read_bytes(file, limit=4)
    with pytest.raises(Broken, match="Not a directory"):
        read_bytes(file / "part.npz")
    with pytest.raises(Broken, match="File name too long"):
        read_bytes(tmp_path / ("a" * 300))
    with pytest.raises(Rejected, match="expected at most 4 bytes"):
        read_bytes(Path("/dev/zero"), limit=4)


def test_what_a_device_says_does_not_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say(table([{"name": "gull", "error": "\x1b[2J\nforged  line"}], ("name", "error"), empty=""))
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["NAME  ERROR", "gull  \\x1b[2J forged  line"]
