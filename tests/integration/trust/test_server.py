"""The control plane's program: its home folder, its ports, its two listeners, its end."""

import json
import re
import signal
import socket
import stat
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from control_plane.__main__ import main

Output = pytest.CaptureFixture[str]


def refusal(capsys: Output, *arguments: str) -> tuple[int, str]:
    """Run skerry-server in this process to its refusal; return the exit code and the only line of standard error."""
    capsys.readouterr()
    code = main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("skerry-server: ")
    return code, line


def test_init_makes_a_home_folder_whose_secrets_are_the_users_alone(make_home: Callable[..., Any]) -> None:
    home = make_home().home

    secrets = [home / "operator.token", home / "settings.toml", *home.glob("keys/*.pem"), *home.glob("ca/*.key")]
    assert len(secrets) == 2 + 3 + 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    assert (home / "VERSION").read_text() == "1\n"


def test_init_of_a_home_folder_that_is_there_is_refused(make_home: Callable[..., Any], capsys: Output) -> None:
    home = make_home().home
    token = (home / "operator.token").read_text()

    code, line = refusal(capsys, "init", "--home", str(home), "--project", "watch")

    assert code == 2
    assert "expected no home folder yet" in line
    assert (home / "operator.token").read_text() == token


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--project", "My Watch"], "project"),
        (["--project", "watch", "--port", "70000"], "1 to 65535"),
        (["--project", "watch", "--broker", "http://x"], "mqtt://HOST:PORT"),
    ],
)
def test_init_refuses_what_cannot_work(capsys: Output, tmp_path: Any, arguments: list[str], said: str) -> None:
    code, line = refusal(capsys, "init", "--home", str(tmp_path / "home"), *arguments)

    assert code == 2
    assert said in line
    assert not (tmp_path / "home").exists()


def test_run_without_a_home_folder_says_how_to_make_one(capsys: Output, tmp_path: Any) -> None:
    code, line = refusal(capsys, "run", "--home", str(tmp_path / "none"))

    assert code == 4
    assert "skerry-server init" in line


def test_a_home_folder_of_a_newer_version_is_refused(make_home: Callable[..., Any], capsys: Output) -> None:
    home = make_home().home
    (home / "VERSION").write_text("2\n")

    code, line = refusal(capsys, "run", "--home", str(home))

    assert code == 4
    assert "expected a home folder of version 1 or older, got 2" in line


def test_a_database_of_a_newer_revision_is_refused(make_home: Callable[..., Any], capsys: Output) -> None:
    import sqlite3

    home = make_home().home
    connection = sqlite3.connect(home / "skerry.db")
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()

    code, line = refusal(capsys, "run", "--home", str(home))

    assert code == 4
    assert "upgrade skerry" in line


@pytest.mark.parametrize("setting", ["port", "pages_port", "broker_port"])
def test_a_port_that_is_taken_is_named_with_its_setting(
    make_home: Callable[..., Any], capsys: Output, setting: str
) -> None:
    made = make_home()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", getattr(made, setting)))
        taken.listen()

        code, line = refusal(capsys, "run", "--home", str(made.home))

    assert code == 4
    assert f"expected port {getattr(made, setting)} of 127.0.0.1 to be free" in line
    assert f"set {setting} in" in line


def test_an_external_broker_that_is_not_there_is_named_without_its_password(
    make_home: Callable[..., Any], capsys: Output, free_port: Callable[[], int]
) -> None:
    port = free_port()
    made = make_home("--broker", f"mqtt://user:secret@127.0.0.1:{port}")

    code, line = refusal(capsys, "run", "--home", str(made.home))

    assert code == 3
    assert f"expected one at mqtt://127.0.0.1:{port}, got" in line


def test_settings_that_mean_nothing_are_refused(make_home: Callable[..., Any], capsys: Output) -> None:
    home = make_home().home
    with (home / "settings.toml").open("a") as file:
        file.write("prot = 1\n")

    code, line = refusal(capsys, "run", "--home", str(home))

    assert code == 4
    assert "got 'prot'" in line


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_server_and_its_broker(make_home: Callable[..., Any], by: int) -> None:
    server = make_home()
    server.start()

    code, out, err = server.stop(by=by)

    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "stopped"
    for port in (server.port, server.pages_port, server.broker_port):
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", port), timeout=1)


def test_an_open_event_stream_does_not_hold_up_the_end(running: Any) -> None:
    token = (running.home / "operator.token").read_text().strip()
    stream = httpx.stream(
        "GET",
        f"http://127.0.0.1:{running.pages_port}/v1/events/stream",
        headers={"Authorization": f"Bearer {token}"},
        trust_env=False,
    )
    with stream as answer:
        assert answer.status_code == 200
        began = time.monotonic()
        code, _, err = running.stop()

    assert (code, err) == (0, "")
    assert time.monotonic() - began < 5


def test_both_listeners_serve_the_same_application(shared: Any) -> None:
    status, health = shared.ask_securely("GET", "/v1/health")

    assert status == 200
    assert health == shared.get("/v1/health")
    assert health["identity"] == "none"
    assert health["project"] == "watch"


def test_only_health_anchor_and_enrolment_are_open(shared: Any) -> None:
    answers = {path: shared.ask("GET", path, token="")[0] for path in ("/v1/health", "/v1/anchor", "/v1/trust")}

    assert answers == {"/v1/health": 200, "/v1/anchor": 200, "/v1/trust": 401}
    assert shared.ask("GET", "/v1/trust", token="wrong")[0] == 401
    assert shared.ask("POST", "/v1/enrol", {}, token="")[0] == 422


def test_every_route_but_the_open_ones_asks_for_the_operator(shared: Any) -> None:
    described = shared.get("/openapi.json")
    open_routes = {"/v1/health", "/v1/anchor", "/v1/enrol"}
    # the ticket and the proof in the body are the authentication
    open_routes |= {"/v1/enrol/ticket", "/v1/proof/nonce", "/v1/renew", "/v1/token"}
    # signed, and public: what a release is, and which certificates are good no more
    open_routes |= {"/v1/tuf/image/{name}", "/v1/crl"}

    for path, methods in described["paths"].items():
        if path in open_routes or not path.startswith("/v1/"):
            continue
        for method in methods:
            shown = re.sub(r"{[^}]*}", "1", path)
            assert shared.ask(method.upper(), shown, {}, token="")[0] == 401, (method, path)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", f"/v1/jobs/{1 << 63}", None),
        ("GET", f"/v1/rollouts/{10**30}", None),
        ("POST", f"/v1/rollouts/{1 << 63}/cancel", None),
        ("GET", f"/v1/models/m/versions/{1 << 63}", None),
        ("POST", f"/v1/models/m/versions/{1 << 63}/compile", {"profiles": ["arm64-board"]}),
        ("POST", "/v1/releases", {"model": "m", "version": 1 << 63}),
        ("GET", f"/v1/windows?after={1 << 63}", None),
        ("GET", f"/v1/events?after={1 << 63}", None),
        ("POST", "/v1/enrol", {"token": "\ud800", "csr": "c", "profile": "p"}),
        ("POST", "/v1/models/m/train", {"dataset": "d", "recipe": {"\ud800": 1}}),
    ],
)
def test_what_no_column_and_no_text_can_hold_is_the_senders_mistake(
    shared: Any, method: str, path: str, body: Any
) -> None:
    content = None if body is None else json.dumps(body)
    token = (shared.home / "operator.token").read_text().strip()
    answer = httpx.request(
        method,
        f"http://127.0.0.1:{shared.pages_port}{path}",
        content=content,
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        trust_env=False,
    )

    assert answer.status_code == 422
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_an_event_id_of_another_server_is_left_alone(shared: Any) -> None:
    token = (shared.home / "operator.token").read_text().strip()
    for last in ("²", "9" * 20):
        headers = {b"Authorization": f"Bearer {token}".encode(), b"Last-Event-ID": last.encode("latin-1")}
        address = f"http://127.0.0.1:{shared.pages_port}/v1/events/stream"
        with httpx.stream("GET", address, headers=headers, trust_env=False) as answer:
            assert answer.status_code == 200


def test_a_path_that_is_none_is_named(shared: Any) -> None:
    status, answer = shared.ask("GET", "/v1/device")

    assert status == 404
    assert "GET /v1/device" in answer["detail"]


def test_a_second_server_on_the_same_home_folder_is_refused_whatever_its_ports(
    running: Any, capsys: Output, pick: Callable[[], int]
) -> None:
    settings = running.home / "settings.toml"
    text = settings.read_text()
    for port in (running.port, running.pages_port, running.broker_port):
        text = text.replace(str(port), str(pick()))
    settings.write_text(text)

    code, line = refusal(capsys, "run", "--home", str(running.home))

    assert code == 2
    assert "expected no server on this home folder" in line


def test_the_certificates_of_an_external_broker_must_be_there(make_home: Callable[..., Any], capsys: Output) -> None:
    made = make_home("--broker", "mqtts://127.0.0.1:9", "--broker-ca", "/nowhere/ca.pem")

    code, line = refusal(capsys, "run", "--home", str(made.home))

    assert code == 4
    assert "/nowhere/ca.pem" in line


def test_logging_in_gives_a_browser_a_cookie_for_reading_that_is_not_the_token(shared: Any) -> None:
    token = (shared.home / "operator.token").read_text().strip()

    with httpx.Client(base_url=f"http://127.0.0.1:{shared.pages_port}", trust_env=False) as browser:
        answer = browser.get("/login", params={"token": token})
        assert answer.status_code == 303
        assert "HttpOnly" in answer.headers["Set-Cookie"]
        assert "SameSite=lax" in answer.headers["Set-Cookie"]
        assert token not in answer.headers["Set-Cookie"]
        assert browser.get("/v1/trust").status_code == 200
        # a page of another port of this host could make a browser send this
        assert browser.post("/v1/rollouts/1/cancel").status_code == 401
        assert browser.get("/login", params={"token": "wrong"}).status_code == 401


def test_a_body_that_is_too_long_is_refused_before_it_is_read(shared: Any) -> None:
    with socket.create_connection(("127.0.0.1", shared.pages_port), timeout=10) as connection:
        connection.sendall(b"POST /v1/enrol HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
        answer = connection.recv(4096)

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"application/problem+json" in answer
