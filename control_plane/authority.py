"""Owns two certificate authorities: one signs device certificates and nothing else, one the server's own certificate.

Their keys are files of the home folder (mode 0600). The server's certificate is made anew at a start that finds it
within the last third of its life, or without one of the addresses it must hold.
"""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from control_plane.home import write_secret
from skerry.delivery.durable import write_durably
from skerry.errors import Broken, Rejected

DEVICE_LIFE = timedelta(days=30)
SERVER_LIFE = timedelta(days=365)
AUTHORITY_LIFE = timedelta(days=3650)
CLOCK_SLACK = timedelta(minutes=5)
# RFC 5280, appendix A.1: ub-common-name
MAX_NAME = 64
MAX_CSR_BYTES = 16 * 1024
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority: its certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> str:
        """The certificate, as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()


@dataclass(frozen=True, slots=True)
class Issued:
    """A device certificate (PEM), its serial number in hex, and when it expires."""

    pem: str
    serial: str
    expires: datetime


def make_authorities(folder: Path, project: str) -> None:
    """Make the device CA and the server CA in `folder`."""
    for name in ("device", "server"):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(f"Skerry {name} CA", project)
        certificate = (
            _builder(subject=subject, issuer=subject, public_key=key.public_key(), life=AUTHORITY_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        write_secret(folder / f"{name}-ca.key", _private_pem(key))
        write_durably(folder / f"{name}-ca.pem", certificate.public_bytes(serialization.Encoding.PEM))


def load_authority(folder: Path, name: str) -> Authority:
    """Load the CA `name` (device or server); raises `Broken`."""
    try:
        certificate = x509.load_pem_x509_certificate((folder / f"{name}-ca.pem").read_bytes())
        key = serialization.load_pem_private_key((folder / f"{name}-ca.key").read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Broken(f"{folder}: expected the {name} CA, got: {error}; restore the folder from its backup") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise Broken(f"{folder}: expected the {name} CA's key to fit its certificate, got another; restore the backup")
    return Authority(certificate, key)


def ensure_server_certificate(folder: Path, *, host: str, now: datetime) -> tuple[Path, Path]:
    """Return the files of the server's certificate and key, made anew where due; they hold `host` and loopback."""
    certificate_file, key_file = folder / "server.pem", folder / "server.key"
    hosts = tuple(dict.fromkeys((*LOOPBACK, host)))
    if certificate_file.exists() and key_file.exists() and _still_good(certificate_file, hosts, now=now):
        return certificate_file, key_file
    authority = load_authority(folder, "server")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(
            subject=_name("Skerry server"),
            issuer=authority.certificate.subject,
            public_key=key.public_key(),
            life=SERVER_LIFE,
            now=now,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(each) for each in hosts]), critical=False)
        .add_extension(_authority_identifier(authority), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    write_secret(key_file, _private_pem(key))
    write_durably(certificate_file, certificate.public_bytes(serialization.Encoding.PEM))
    return certificate_file, key_file


def read_csr(pem: str) -> x509.CertificateSigningRequest:
    """Parse a device's signing request and check its proof of possession.

    Its subject and extensions are ignored: the CA picks the name.

    Raises:
        Rejected: it is no request, is not signed by its own key, or the key is neither EC P-256 nor Ed25519.
    """
    if len(pem) > MAX_CSR_BYTES:
        raise Rejected(f"csr: expected at most {MAX_CSR_BYTES} bytes, got {len(pem)}")
    try:
        csr = x509.load_pem_x509_csr(pem.encode())
        key = csr.public_key()
        valid = csr.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise Rejected(f"csr: expected a certificate signing request in PEM, got {pem[:30]!r}") from error
    p256 = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
    if not p256 and not isinstance(key, ed25519.Ed25519PublicKey):
        raise Rejected(f"csr: expected an EC P-256 or Ed25519 key, got {type(key).__name__}")
    if not valid:
        raise Rejected("csr: expected it signed by its own key, got another signature")
    return csr


def public_pem(csr: x509.CertificateSigningRequest) -> str:
    """Return the public key of a signing request as PEM."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return csr.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


def check_common_name(name: str) -> None:
    """Refuse a PROJECT.DEVICE that no certificate can hold; raises `Rejected`."""
    if len(name) > MAX_NAME:
        raise Rejected(f"device: expected PROJECT.DEVICE of at most {MAX_NAME} characters, got {len(name)}")


def issue(authority: Authority, csr: x509.CertificateSigningRequest, *, name: str, now: datetime) -> Issued:
    """Issue a device certificate whose common name is `name`, PROJECT.DEVICE; raises `Rejected`."""
    check_common_name(name)
    key = csr.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        raise Rejected(f"csr: expected an EC P-256 or Ed25519 key, got {type(key).__name__}")
    certificate = (
        _builder(subject=_name(name), issuer=authority.certificate.subject, public_key=key, life=DEVICE_LIFE, now=now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(_authority_identifier(authority), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
    return Issued(pem=pem, serial=f"{certificate.serial_number:x}", expires=certificate.not_valid_after_utc)


def _still_good(file: Path, hosts: tuple[str, ...], *, now: datetime) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
        held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return False
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return certificate.not_valid_after_utc - now > life / 3 and all(_general_name(host) in held for host in hosts)


def _builder(
    *,
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey,
    life: timedelta,
    now: datetime | None = None,
) -> x509.CertificateBuilder:
    now = now or datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        # clocks of devices differ by a little from the server's
        .not_valid_before(now - CLOCK_SLACK)
        .not_valid_after(now + life)
    )


def _name(common_name: str, project: str = "") -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if project:
        parts.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, project))
    return x509.Name(parts)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _authority_identifier(authority: Authority) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
