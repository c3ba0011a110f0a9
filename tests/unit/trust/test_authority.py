"""The certificate authorities: what they sign, and what they refuse."""

import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from control_plane.authority import (
    DEVICE_LIFE,
    RENEW_BEFORE,
    ensure_server_certificate,
    issue,
    load_authority,
    make_authorities,
    read_csr,
)
from control_plane.keys import TARGETS_LIFE
from skerry.errors import Broken, Rejected

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with both authorities."""
    make_authorities(tmp_path, "watch")
    return tmp_path


def request_by(key: Any, *, name: str = "", algorithm: Any = None) -> str:
    """Return a signing request in PEM."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, algorithm)
    return csr.public_bytes(serialization.Encoding.PEM).decode()


def p256() -> str:
    """Return a good request."""
    return request_by(ec.generate_private_key(ec.SECP256R1()), algorithm=hashes.SHA256())


def test_the_authority_picks_the_name(folder: Path) -> None:
    pem = request_by(ec.generate_private_key(ec.SECP256R1()), name="watch.admin", algorithm=hashes.SHA256())

    issued = issue(load_authority(folder, "device"), read_csr(pem), name="watch.wearer-8", now=NOW)

    certificate = x509.load_pem_x509_certificate(issued.pem.encode())
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert [name.value for name in names] == ["watch.wearer-8"]
    assert issued.expires == NOW + DEVICE_LIFE
    assert issued.serial == f"{certificate.serial_number:x}"


def test_a_device_certificate_is_for_clients_and_signs_nothing(folder: Path) -> None:
    issued = issue(load_authority(folder, "device"), read_csr(p256()), name="watch.wearer-8", now=NOW)

    extensions = x509.load_pem_x509_certificate(issued.pem.encode()).extensions
    uses = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(uses) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign is False


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (ec.generate_private_key(ec.SECP384R1()), hashes.SHA256()),
        (rsa.generate_private_key(65537, 2048), hashes.SHA256()),
        (ed25519.Ed25519PrivateKey.generate(), None),
    ],
    ids=["P-384", "RSA", "Ed25519"],
)
def test_other_kinds_of_keys_are_refused(key: Any, algorithm: Any) -> None:
    with pytest.raises(Rejected, match="expected an EC P-256 key"):
        read_csr(request_by(key, algorithm=algorithm))


@pytest.mark.parametrize("pem", ["", "no request", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n", "x" * 20_000])
def test_what_is_no_request_is_refused(pem: str) -> None:
    with pytest.raises(Rejected, match="csr: expected"):
        read_csr(pem)


def test_a_request_that_its_own_key_did_not_sign_is_refused() -> None:
    der = bytearray(x509.load_pem_x509_csr(p256().encode()).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    pem = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM).decode()

    with pytest.raises(Rejected, match="signed by its own key"):
        read_csr(pem)


def test_a_name_that_certificates_cannot_hold_is_refused(folder: Path) -> None:
    with pytest.raises(Rejected, match="at most 64 characters"):
        issue(load_authority(folder, "device"), read_csr(p256()), name="p" * 40 + "." + "d" * 24, now=NOW)


def test_the_two_authorities_do_not_vouch_for_each_other(folder: Path) -> None:
    issued = issue(load_authority(folder, "device"), read_csr(p256()), name="watch.wearer-8", now=NOW)

    with pytest.raises(ValueError, match=r"[Ii]ssuer"):
        x509.load_pem_x509_certificate(issued.pem.encode()).verify_directly_issued_by(
            load_authority(folder, "server").certificate
        )


def test_the_servers_certificate_holds_its_host_and_loopback(folder: Path) -> None:
    file, key = ensure_server_certificate(folder, host="gate.example", now=NOW)

    certificate = x509.load_pem_x509_certificate(file.read_bytes())
    held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(held.get_values_for_type(x509.DNSName)) == {"localhost", "gate.example"}
    loopback = {ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")}
    assert set(held.get_values_for_type(x509.IPAddress)) == loopback
    assert key.stat().st_mode & 0o077 == 0


def test_the_servers_certificate_is_kept_until_it_is_due(folder: Path) -> None:
    def serial(*, host: str, now: datetime) -> int:
        file, _ = ensure_server_certificate(folder, host=host, now=now)
        return x509.load_pem_x509_certificate(file.read_bytes()).serial_number

    first = serial(host="127.0.0.1", now=NOW)
    assert serial(host="127.0.0.1", now=NOW + timedelta(days=200)) == first
    other_host = serial(host="10.0.0.1", now=NOW)
    assert other_host != first
    assert serial(host="10.0.0.1", now=NOW + timedelta(days=370)) != other_host


def test_the_servers_certificate_outlives_any_floor_that_stolen_online_keys_can_claim() -> None:
    # a floor ends where the offline targets do; whoever runs a server for half a year without a restart is still in
    assert TARGETS_LIFE + timedelta(days=180) < RENEW_BEFORE


def test_the_strictest_verifier_accepts_the_servers_chain(folder: Path) -> None:
    certificate, key = ensure_server_certificate(folder, host="127.0.0.1", now=NOW)
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(certificate, key)
    theirs = ssl.create_default_context(cafile=str(folder / "server-ca.pem"))
    theirs.verify_flags |= ssl.VERIFY_X509_STRICT

    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = theirs.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    server = ours.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue

    assert client.getpeercert()


def test_a_lost_authority_is_this_machines_trouble(folder: Path) -> None:
    (folder / "device-ca.key").unlink()

    with pytest.raises(Broken, match="backup"):
        load_authority(folder, "device")


def test_a_key_that_does_not_fit_is_found(folder: Path) -> None:
    (folder / "server-ca.key").replace(folder / "device-ca.key")

    with pytest.raises(Broken, match="fit its certificate"):
        load_authority(folder, "device")
