"""TLS of a device whose clock may lie, against real servers with certificates of odd validity.

A clock that is ahead sees certificates that have ended, one that is behind some that have not begun: so here the
certificates are odd and the clock is right.
"""

import contextlib
import http.client
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agent.link import Credentials, Link, parse_broker
from agent.tls import Expired, client_context
from tests.conftest import wait_for_port
from tests.integration.agent.shore import wait_for

DAY = timedelta(days=1)
NOW = datetime.now(UTC).replace(microsecond=0)
YEARS = 365 * DAY


@dataclass
class Authority:
    """A CA that certifies whatever it is asked to."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> str:
        """Its certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def certify(
        self,
        begins: datetime,
        ends: datetime,
        *,
        host: str = "127.0.0.1",
        purpose: x509.ObjectIdentifier = ExtendedKeyUsageOID.SERVER_AUTH,
    ) -> tuple[Path, Path]:
        """Return the files of a certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _begin("server", self.certificate.subject, key, begins, ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(host))]), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        files = self.folder / f"{certificate.serial_number:x}.pem", self.folder / f"{certificate.serial_number:x}.key"
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files


def make_authority(folder: Path) -> Authority:
    """Make a CA that is good for a century."""
    folder.mkdir(exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])
    certificate = (
        _begin("ca", name, key, NOW - 60 * YEARS, NOW + 40 * YEARS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(folder, key, certificate)


def _begin(
    name: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, begins: datetime, ends: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
    )


@contextlib.contextmanager
def serving(files: tuple[Path, Path]) -> Iterator[tuple[int, list[bytes]]]:
    """Serve TLS with a certificate; give the port and what was received, and answer as a web server would."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    received: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), plain, context.wrap_socket(plain, server_side=True) as secure:
                received.append(secure.recv(4096))
                secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1], received
        finally:
            listener.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """A CA of the test's own."""
    return make_authority(tmp_path / "ca")


VALIDITY = {
    # what a right clock sees as: (begins, ends, floor), and whether the device talks to it
    "good": (NOW - DAY, NOW + DAY, NOW - DAY, True),
    "not begun, for a clock in 1970 sees it so": (NOW + 9 * YEARS, NOW + 10 * YEARS, NOW - DAY, True),
    "ended, for a clock ten years ahead sees it so": (NOW - 11 * YEARS, NOW - 10 * YEARS, NOW - 10.5 * YEARS, True),
    "ended, and no floor yet": (NOW - 2 * YEARS, NOW - YEARS, datetime.fromtimestamp(0, UTC), True),
    "ended a second after the floor": (NOW - YEARS, NOW - DAY, NOW - DAY - timedelta(seconds=1), True),
    "ended at the floor": (NOW - YEARS, NOW - DAY, NOW - DAY, False),
    "ended before the floor": (NOW - YEARS, NOW - 2 * DAY, NOW - DAY, False),
    "ended before the floor, which is ahead of the clock": (NOW - YEARS, NOW + DAY, NOW + 2 * DAY, False),
}


@pytest.mark.parametrize("case", VALIDITY)
def test_validity_is_judged_by_the_floor_and_not_by_the_clock(authority: Authority, case: str) -> None:
    begins, ends, floor, talks = VALIDITY[case]
    with serving(authority.certify(begins, ends)) as (port, received):
        context = client_context(authority.pem, floor=floor.timestamp())

        assert _get(port, context) == (b"ok" if talks else b"")

    assert [each for each in received if each] == ([received[0]] if talks else []), "nothing is said to who is refused"


def _get(port: int, context: ssl.SSLContext) -> bytes:
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read()
    except Expired:
        return b""
    finally:
        connection.close()


def test_the_chain_the_name_and_the_purpose_are_verified_all_the_same(authority: Authority, tmp_path: Path) -> None:
    stranger = make_authority(tmp_path / "stranger")
    year = (NOW - DAY, NOW + YEARS)
    refused = {
        "another CA": stranger.certify(*year),
        "another host": authority.certify(*year, host="127.0.0.2"),
        "another purpose": authority.certify(*year, purpose=ExtendedKeyUsageOID.CLIENT_AUTH),
    }

    for case, files in refused.items():
        with serving(files) as (port, _), pytest.raises(ssl.SSLCertVerificationError) as refusal:
            _get(port, client_context(authority.pem))
        assert not isinstance(refusal.value, Expired), case


def test_no_protocol_before_tls_1_2(authority: Authority) -> None:
    assert client_context(authority.pem).minimum_version >= ssl.TLSVersion.TLSv1_2


def test_a_ca_that_is_none_is_refused() -> None:
    with pytest.raises(ssl.SSLError):
        client_context("garbage")


@pytest.mark.broker
@pytest.mark.parametrize("case", VALIDITY)
def test_the_link_to_the_broker_judges_likewise(
    authority: Authority, mosquitto: Any, tmp_path: Path, free_port: Callable[[], int], case: str
) -> None:
    begins, ends, floor, talks = VALIDITY[case]
    certificate, key = authority.certify(begins, ends)
    ours = authority.certify(NOW - DAY, NOW + DAY, purpose=ExtendedKeyUsageOID.CLIENT_AUTH)
    (tmp_path / "ca.pem").write_text(authority.pem)
    port, config = free_port(), tmp_path / "tls.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\ncafile {tmp_path}/ca.pem\ncertfile {certificate}\nkeyfile {key}\n"
        "require_certificate true\nallow_anonymous true\nuser root\n"
    )
    link = Link(
        parse_broker(f"mqtts://127.0.0.1:{port}"),
        who="watch.a",
        will=lambda: b"gone",
        credentials=Credentials(ca=tmp_path / "ca.pem", certificate=ours[0], key=ours[1]),
        floor=floor.timestamp,
    )
    with subprocess.Popen([mosquitto.program, "-c", str(config)], stderr=subprocess.DEVNULL) as process:
        try:
            wait_for_port(port)
            problem = link._connect_once()
            if talks:
                assert problem == ""
                wait_for(lambda: link.connected, why="a connection")
            else:
                assert problem.startswith("expected a certificate of its CA, got: a certificate that ended")
        finally:
            link._let_go()
            process.terminate()
