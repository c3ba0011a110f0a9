"""A device that is well, with a certificate of its own CA, and servers that are what it expects, or not."""

import datetime
import http.server
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.identity.folder import Identity, StateFolder
from agent.upkeep.doctor import CHECKS, Finding, diagnose
from skerry.wire import codec
from skerry.wire.enrolment import Anchor

WHO = "plant.press-4"
DAY = datetime.timedelta(days=1)


class Authority:
    """A CA in memory."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "the CA of a test")])
        now = datetime.datetime.now(datetime.UTC)
        builder = _builder(self.name, self.key, now - 30 * DAY, now + 30 * DAY).issuer_name(self.name)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        builder = builder.add_extension(usage, critical=True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
        self.certificate = builder.add_extension(identifier, critical=False).sign(self.key, hashes.SHA256())

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def issue(self, name: str, *, begins_days: float = -1, ends_days: float = 10) -> tuple[bytes, str]:
        """Return a key and a certificate for it, both PEM; as a server's it is good for 127.0.0.1."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, key, now + begins_days * DAY, now + ends_days * DAY).issuer_name(self.name)
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        by = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = builder.add_extension(names, critical=False).add_extension(by, critical=False)
        signed = builder.sign(self.key, hashes.SHA256())
        return pem_of(key), signed.public_bytes(serialization.Encoding.PEM).decode()


def _builder(
    subject: x509.Name, key: ec.EllipticCurvePrivateKey, begins: datetime.datetime, ends: datetime.datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).public_key(key.public_key())
    return builder.serial_number(x509.random_serial_number()).not_valid_before(begins).not_valid_after(ends)


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a key as the device keeps it."""
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption())


@dataclass
class Patient:
    """A device's state folder, and the CA that vouches for everything around it."""

    folder: StateFolder
    authority: Authority
    broker_port: int
    server_port: int

    def set_certificate(self, name: str = WHO, *, begins_days: float = -1, ends_days: float = 10) -> None:
        """Give it another certificate, with the key that fits."""
        key, certificate = self.authority.issue(name, begins_days=begins_days, ends_days=ends_days)
        self.folder.credentials.key.write_bytes(key)
        self.folder.credentials.certificate.write_text(certificate)

    def configure(self, text: str) -> None:
        """Write its config.toml."""
        (self.folder.path / "config.toml").write_text(text)


def make_patient(path: Path, authority: Authority, *, broker_port: int, server_port: int) -> Patient:
    """Enrol a device by hand."""
    identity = Identity(
        project="plant",
        device="press-4",
        profile="x86-64-gateway",
        runtime="onnxruntime",
        architecture="x86_64",
        broker=f"mqtts://127.0.0.1:{broker_port}",
        server=f"https://127.0.0.1:{server_port}",
    )
    anchor = Anchor(project="plant", image_root="{}", director_root="{}", server_ca=authority.pem)
    key, certificate = authority.issue(WHO)
    folder = StateFolder(path)
    folder.keep(identity, anchor=codec.encode(anchor), key=key, certificate=certificate, broker_ca=authority.pem)
    return Patient(folder, authority, broker_port, server_port)


@contextmanager
def serving(
    answer: Callable[[socket.socket], None], *, context: ssl.SSLContext | None = None, port: int = 0
) -> Iterator[int]:
    """Serve connections of a port of 127.0.0.1, one after the other, each by `answer`; yields the port."""
    with socket.create_server(("127.0.0.1", port)) as listener:

        def serve() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                try:
                    sock.settimeout(10)
                    with context.wrap_socket(sock, server_side=True) if context else sock as joined:
                        answer(joined)
                except OSError:
                    pass  # a client that goes away is what half of these tests are about
                finally:
                    sock.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
    thread.join(15)


def server_context(authority: Authority, folder: Path, *, asks: bool = False, ends_days: float = 10) -> ssl.SSLContext:
    """Return TLS for a server on 127.0.0.1; `asks` for a client's certificate of the same CA."""
    key, certificate = authority.issue("a server", begins_days=-20, ends_days=ends_days)
    file = folder / "server.pem"
    file.write_bytes(key + certificate.encode())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    if asks:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=authority.pem)
    return context


def broker_says(code: int) -> Callable[[socket.socket], None]:
    """Return a broker that answers every CONNECT with one reason code (MQTT 5, 3.2.2.2)."""

    def answer(sock: socket.socket) -> None:
        if sock.recv(1024):
            sock.sendall(bytes([0x20, 3, 0, code, 0]))
            sock.recv(16)

    return answer


def web_says(status: int = 200, *, date: str = "") -> Callable[[socket.socket], None]:
    """Return a web server that answers everything with one status."""

    def answer(sock: socket.socket) -> None:
        if sock.recv(4096):
            dated = f"Date: {date}\r\n" if date else ""
            phrase = http.server.BaseHTTPRequestHandler.responses[http.HTTPStatus(status)][0]
            sock.sendall(f"HTTP/1.1 {status} {phrase}\r\n{dated}Content-Length: 2\r\n\r\n{{}}".encode())

    return answer


def found(patient: Patient, *names: str) -> dict[str, Finding]:
    """Return the findings of some checks by name, or of all."""
    table = {name: check for name, check in CHECKS.items() if not names or name in names}
    return {each.check: each for each in diagnose(patient.folder.path, table=table)}


def one(patient: Patient, name: str) -> tuple[str, int, str]:
    """Return what one check found."""
    finding = found(patient, name)[name]
    return finding.level, finding.exit_status, finding.said
