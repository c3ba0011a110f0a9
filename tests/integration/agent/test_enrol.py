"""Enrolment against a TLS server of the test's own: what is sent, in which order, and what is kept."""

import hashlib
import ipaddress
import json
import platform
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.__main__ import main
from agent.identity.folder import StateFolder
from skerry.wire import codec
from skerry.wire.enrolment import Anchor, Enrolled, EnrolRequest

TOKEN = "a-claim-token"


def make_certificate(folder: Path) -> tuple[Path, str]:
    """Return a file with a key and a self-signed certificate for 127.0.0.1, and the certificate as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "shore")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "server.pem"
    path.write_bytes(private + pem)
    return path, pem.decode()


class Server:
    """Serves an anchor and an enrolment; remembers what it was sent."""

    def __init__(self, folder: Path) -> None:
        path, self.ca = make_certificate(folder)
        self.anchor = codec.encode(Anchor(project="watch", image_root="{}", director_root="{}", server_ca=self.ca))
        self.answer = Enrolled(
            project="watch",
            device="watch-1",
            certificate="CERTIFICATE",
            broker="mqtt://127.0.0.1:1883",
            architecture=platform.machine(),
            runtime="onnxruntime",
        )
        self.refusal = ""
        self.requests: list[EnrolRequest] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                self._say(200, server.anchor)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.requests.append(codec.decode(EnrolRequest, body))
                if server.refusal:
                    self._say(403, json.dumps({"title": "Forbidden", "detail": server.refusal}).encode())
                else:
                    self._say(200, codec.encode(server.answer))

            def _say(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def join(self) -> str:
        return f"https://127.0.0.1:{self._http.server_address[1]}#{TOKEN}:{hashlib.sha256(self.anchor).hexdigest()}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that enrols whoever asks."""
    server = Server(tmp_path)
    yield server
    server.close()


@pytest.fixture
def init(tmp_path: Path, server: Server) -> Callable[..., int]:
    """Return a function that runs `skerry-agent init` into `tmp_path/state`."""
    return lambda join=None, *options: main(
        ["init", join or server.join, "--profile", "gateway", "--state", str(tmp_path / "state"), *options]
    )


def test_a_device_makes_its_key_and_keeps_what_it_was_told(
    server: Server, init: Callable[..., int], tmp_path: Path
) -> None:
    assert init() == 0

    state = StateFolder(tmp_path / "state")
    assert state.identity().who == "watch.watch-1"
    assert state.anchor_file.read_bytes() == server.anchor
    (request,) = server.requests
    assert (request.token, request.profile, request.architecture) == (TOKEN, "gateway", platform.machine())
    csr = x509.load_pem_x509_csr(request.csr.encode())
    assert csr.is_signature_valid
    assert b"PRIVATE KEY" in state.credentials.key.read_bytes()
    assert state.credentials.key.stat().st_mode & 0o777 == 0o600


def test_a_server_with_another_anchor_never_sees_the_token(
    server: Server, init: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    join = server.join
    server.anchor = server.anchor.replace(b"watch", b"wotch")

    assert init(join) == 2

    assert server.requests == []
    assert "the token was not sent" in capsys.readouterr().err
    assert not (tmp_path / "state").exists()


def test_a_server_whose_certificate_is_not_of_the_pinned_ca_never_sees_the_token(
    server: Server, init: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    _, ca = make_certificate(other)
    server.anchor = codec.encode(Anchor(project="watch", image_root="{}", director_root="{}", server_ca=ca))

    assert init() == 2

    assert server.requests == []
    assert "certificate of the pinned CA" in capsys.readouterr().err


REFUSALS = {
    "a token that is not known": ({"refusal": "token: expected one that is known"}, "expected one that is known"),
    "another architecture": ({"architecture": "armv5"}, "expected a machine of architecture armv5"),
    "a runtime that is missing": ({"runtime": "abacus"}, "nothing was kept"),
    "a broker off this machine without TLS": ({"broker": "mqtt://10.1.2.3:1883"}, "expected mqtts://"),
    "another project": ({"project": "clock"}, "expected project watch"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_does_not_fit_is_refused_and_nothing_is_kept(
    server: Server, init: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    changes, line = REFUSALS[case]
    server.refusal = changes.get("refusal", "")
    server.answer = codec.from_tree(Enrolled, {**json.loads(codec.encode(server.answer)), **changes})

    assert init() == 2

    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert line in said[0]
    assert TOKEN not in said[0]
    assert not (tmp_path / "state").exists()


def test_another_architecture_may_be_simulated(server: Server, init: Callable[..., int], tmp_path: Path) -> None:
    server.answer = codec.from_tree(Enrolled, {**json.loads(codec.encode(server.answer)), "architecture": "armv5"})

    assert init(None, "--simulate") == 0

    assert StateFolder(tmp_path / "state").identity().simulated
    assert server.requests[0].simulated


def test_an_enrolled_device_is_not_enrolled_over(
    server: Server, init: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert init() == 0
    assert init() == 2

    assert "use another --state" in capsys.readouterr().err
    assert len(server.requests) == 1
