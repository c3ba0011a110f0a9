"""Owns two certificate authorities: one signs device certificates and nothing else, one the server's own certificate.

Their keys are files of the home folder (mode 0600). The server's certificate is made anew at a start that finds it
within the last year of its life, or without one of the addresses it must hold.
"""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from control_plane.home import write_secret
from skerry.delivery.durable import write_durably
from skerry.errors import Broken, Rejected

DEVICE_LIFE = timedelta(days=30)
SERVER_LIFE = timedelta(days=730)
# a device's floor can be pushed as far ahead as the offline targets live (`keys.TARGETS_LIFE`), and TLS is judged by
# the floor: a certificate that always ends later than that locks no device out
RENEW_BEFORE = timedelta(days=365)
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
    """A device certificate and its public key (PEM), its serial number in hex, and when it expires."""

    pem: str
    public_key: str
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


def ensure_server_certificate(folder: Path, *, host: str, now: datetime, out: Path | None = None) -> tuple[Path, Path]:
    """Return the files of the server's certificate and key, made anew where due; they hold `host` and loopback.

    They are beside the CA, or in `out`: a broker has its own.
    """
    certificate_file, key_file = (out or folder) / "server.pem", (out or folder) / "server.key"
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
        Rejected: it is no request, is not signed by its own key, or the key is not EC P-256.
    """
    if len(pem) > MAX_CSR_BYTES:
        raise Rejected(f"csr: expected at most {MAX_CSR_BYTES} bytes, got {len(pem)}")
    try:
        csr = x509.load_pem_x509_csr(pem.encode())
        key = csr.public_key()
        valid = csr.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise Rejected(f"csr: expected a certificate signing request in PEM, got {pem[:30]!r}") from error
    # no other kind: content keys are sealed to this one too, for which HPKE knows P-256
    if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)):
        raise Rejected(f"csr: expected an EC P-256 key, got {type(key).__name__}")
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


def issue(
    authority: Authority,
    csr: x509.CertificateSigningRequest,
    *,
    name: str,
    now: datetime,
    life: timedelta = DEVICE_LIFE,
    crl_url: str = "",
) -> Issued:
    """Issue a device certificate whose common name is `name`, PROJECT.DEVICE; raises `Rejected`.

    `crl_url` is where brokers that look there find the revocation list; the others have it as a file.
    """
    check_common_name(name)
    key = csr.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Rejected(f"csr: expected an EC P-256 key, got {type(key).__name__}")
    builder = (
        _builder(subject=_name(name), issuer=authority.certificate.subject, public_key=key, life=life, now=now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(_authority_identifier(authority), critical=False)
    )
    if crl_url:
        point = x509.DistributionPoint([x509.UniformResourceIdentifier(crl_url)], None, None, None)
        builder = builder.add_extension(x509.CRLDistributionPoints([point]), critical=False)
    certificate = builder.sign(authority.key, hashes.SHA256())
    return Issued(
        pem=certificate.public_bytes(serialization.Encoding.PEM).decode(),
        public_key=_public_pem(key),
        serial=f"{certificate.serial_number:x}",
        expires=certificate.not_valid_after_utc,
    )


def public_key(csr: x509.CertificateSigningRequest) -> str:
    """Return the key of a signing request that `read_csr` took, as PEM: equal texts are equal keys."""
    key = csr.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Rejected(f"csr: expected an EC P-256 key, got {type(key).__name__}")
    return _public_pem(key)


def key_of_certificate(authority: Authority, pem: str, *, name: str, serial: str) -> str:
    """Return the key (PEM) of the device certificate `serial` that this authority issued to `name`, ended or not.

    Raises:
        Rejected: it is another one, or none.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem[:MAX_CSR_BYTES].encode())
        certificate.verify_directly_issued_by(authority.certificate)
        key = certificate.public_key()
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise Rejected("certificate: expected the present one, in PEM, got another text") from error
    fits = [each.value for each in names] == [name] and f"{certificate.serial_number:x}" == serial
    if not fits or not isinstance(key, ec.EllipticCurvePublicKey):
        raise Rejected(f"certificate: expected the present one of {name}, got another")
    return _public_pem(key)


def signed_by(public_key: str, signature: bytes, text: bytes) -> bool:
    """Say whether the EC P-256 key `public_key` (PEM) signed `text` with ECDSA and SHA-256."""
    key = serialization.load_pem_public_key(public_key.encode())
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    try:
        key.verify(signature, text, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _still_good(file: Path, hosts: tuple[str, ...], *, now: datetime) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
        held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return False
    left = certificate.not_valid_after_utc - now
    return left > RENEW_BEFORE and all(_general_name(host) in held for host in hosts)


def _builder(
    *,
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
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
        # clocks of devices differ by a little from the server's; for a short life less, or it would be due at once
        .not_valid_before(now - min(CLOCK_SLACK, life / 12))
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


def _public_pem(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
