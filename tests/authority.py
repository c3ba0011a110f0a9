"""A certificate authority for tests, which certifies whatever it is asked to; and a server with such a certificate."""

import contextlib
import getpass
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agent.link.tls import Credentials

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

    @property
    def ca_file(self) -> Path:
        """Where its certificate is kept for others."""
        return self.folder / "ca.pem"

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


def listener_lines(authority: Authority, port: int, *, web: bool = False) -> tuple[str, ...]:
    """Return the lines of Mosquitto's listener that takes certificates of this authority alone, maybe over WebSockets.

    Mosquitto 2.0.11 needs one without WebSockets beside it, or it says that it has none and ends.
    """
    certificate, key = authority.certify(NOW - DAY, NOW + DAY)
    authority.ca_file.write_text(authority.pem)
    return (
        f"listener {port} 127.0.0.1",
        *(("protocol websockets",) if web else ()),
        f"cafile {authority.ca_file}",
        f"certfile {certificate}",
        f"keyfile {key}",
        "require_certificate true",
        f"user {getpass.getuser()}",  # as root it would become somebody who may not read these files
    )


def identity(authority: Authority) -> Credentials:
    """Return what a device of this authority has."""
    certificate, key = authority.certify(NOW - DAY, NOW + DAY, purpose=ExtendedKeyUsageOID.CLIENT_AUTH)
    authority.ca_file.write_text(authority.pem)
    return Credentials(ca=authority.ca_file, certificate=certificate, key=key)
