"""Proof of the device's key to the server: for its next certificate, or for a short token for HTTPS.

    nonce  <-  POST /v1/proof/nonce
    POST /v1/renew or /v1/token, with the nonce and what the key has signed (`skerry.wire.proof`)

All over TLS that the pinned CA vouches for, judged at the floor, so that a device whose clock lies can still be helped.
Imports cryptography, so the resident agent never imports it: it runs `agent.identity.proof_child`.
"""

import base64
import ssl
from dataclasses import dataclass
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.config import read_config
from agent.identity.folder import Identity, StateFolder
from agent.identity.life import Life
from agent.link.https import call, pinned, problem
from agent.link.proxy import Proxy, parse_proxy
from agent.trust.floor import read_floor
from skerry.errors import Broken, Rejected, Unavailable
from skerry.wire import codec
from skerry.wire.enrolment import Enrolled, Nonce, NonceRequest, RenewRequest, Token, TokenRequest
from skerry.wire.proof import RENEW, TOKEN, proof_text

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prover:
    """A device that can sign, and the server that it signs for."""

    identity: Identity
    certificate: str
    key: ec.EllipticCurvePrivateKey
    context: ssl.SSLContext
    proxy: Proxy | None = None


def open_prover(folder: StateFolder) -> Prover:
    """Open the identity of an enrolled device; raises `Broken` when its key or certificate cannot be read."""
    key_file, certificate_file = folder.credentials.key, folder.credentials.certificate
    try:
        key = serialization.load_pem_private_key(key_file.read_bytes(), None)
        certificate = certificate_file.read_text(encoding="ascii")
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Broken(f"{folder.path}: expected the device's key and certificate, got: {error}; enrol again") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Broken(f"{key_file}: expected an EC P-256 key, got {type(key).__name__}; enrol again")
    context = pinned(folder.anchor().server_ca, floor=read_floor(folder.trust))
    proxy = parse_proxy(read_config(folder.path, {}).proxy)
    return Prover(identity=folder.identity(), certificate=certificate, key=key, context=context, proxy=proxy)


def renew(prover: Prover) -> Enrolled:
    """Get the next certificate for the same key.

    Raises:
        Rejected: the server refuses, or its answer is for another device.
        Unavailable: it does not answer, or asks to wait.
    """
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(prover.key, hashes.SHA256())
    csr = request.public_bytes(serialization.Encoding.PEM).decode()
    nonce = _nonce(prover)
    renewal = RenewRequest(
        device=prover.identity.device,
        nonce=nonce,
        csr=csr,
        signature=_sign(prover, RENEW, nonce, csr=csr),
        certificate=prover.certificate,
    )
    enrolled = _ask(prover, "/v1/renew", renewal, Enrolled)
    who = (enrolled.project, enrolled.device)
    if who != (prover.identity.project, prover.identity.device):
        raise Rejected(f"server: expected a certificate for {prover.identity.who}, got one for {'.'.join(who)}")
    life_of(enrolled.certificate)
    return enrolled


def buy_token(prover: Prover) -> Token:
    """Get a token for HTTPS; raises as `renew` does."""
    nonce = _nonce(prover)
    signature = _sign(prover, TOKEN, nonce)
    return _ask(
        prover, "/v1/token", TokenRequest(device=prover.identity.device, nonce=nonce, signature=signature), Token
    )


def life_of(certificate: str) -> Life:
    """Return when a certificate (PEM) begins and ends; raises `Rejected` when it is none."""
    try:
        parsed = x509.load_pem_x509_certificate(certificate.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Rejected(f"certificate: expected one in PEM, got {certificate[:30]!r}") from error
    return Life(begins=parsed.not_valid_before_utc.timestamp(), ends=parsed.not_valid_after_utc.timestamp())


def check_pair(folder: StateFolder) -> None:
    """Raise `Broken` when the key does not fit the certificate, or `Rejected` when that is another device's."""
    prover = open_prover(folder)
    certificate = x509.load_pem_x509_certificate(prover.certificate.encode())
    if certificate.public_key() != prover.key.public_key():
        raise Broken(f"expected {folder.credentials.key} to be the certificate's key, got another; enrol again")
    names = [str(each.value) for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [prover.identity.who]:
        raise Rejected(
            f"expected a certificate of {prover.identity.who}, got one of {', '.join(names)[:80] or 'nobody'}"
        )


def _nonce(prover: Prover) -> str:
    return _ask(prover, "/v1/proof/nonce", NonceRequest(device=prover.identity.device), Nonce).nonce


def _sign(prover: Prover, verb: bytes, nonce: str, *, csr: str = "") -> str:
    text = proof_text(verb, device=prover.identity.device, nonce=nonce, csr=csr)
    return base64.b64encode(prover.key.sign(text, ec.ECDSA(hashes.SHA256()))).decode()


def _ask(prover: Prover, path: str, request: object, kind: type[T]) -> T:
    url = prover.identity.server
    answer = call(url, "POST", path, context=prover.context, body=codec.encode(request), proxy=prover.proxy)
    if answer.ok:
        return codec.decode(kind, answer.body)
    reason = f"{url}: expected {path} to be granted, got status {answer.status}: {problem(answer)}"
    # 429 asks to wait, which is what is done about a network too
    if answer.status >= 500 or answer.status == 429:
        raise Unavailable(reason)
    raise Rejected(reason)
