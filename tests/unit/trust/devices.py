"""Devices without a network: a key, a signing request, and the proofs that the key signs."""

import base64
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy.orm import Session

from control_plane import enrolment, proofs
from control_plane.enrolment import Invitation
from control_plane.plane import Plane
from skerry.wire.enrolment import Enrolled, EnrolRequest, RenewRequest, TokenRequest
from skerry.wire.proof import RENEW, TOKEN, proof_text

PROFILE = "x86-64-gateway"


@dataclass
class Key:
    """A device's key, and what it asks for with it."""

    private: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def csr(self) -> str:
        """Return a signing request."""
        made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(self.private, hashes.SHA256())
        return made.public_bytes(serialization.Encoding.PEM).decode()

    def public_pem(self) -> str:
        """Return the public key."""
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return self.private.public_key().public_bytes(serialization.Encoding.PEM, form).decode()

    def private_pem(self) -> bytes:
        """Return the key as a device keeps it."""
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return self.private.private_bytes(*form)

    def sign(self, text: bytes) -> str:
        """Return a signature as the wire has it."""
        return base64.b64encode(self.private.sign(text, ec.ECDSA(hashes.SHA256()))).decode()

    def renewal(self, device: str, nonce: str, **changed: Any) -> RenewRequest:
        """Return a request to renew, signed for `device` and `nonce`."""
        csr = changed.pop("csr", None) or self.csr()
        text = proof_text(RENEW, device=device, nonce=nonce, csr=csr)
        return replace(RenewRequest(device=device, nonce=nonce, csr=csr, signature=self.sign(text)), **changed)

    def token_request(self, device: str, nonce: str) -> TokenRequest:
        """Return a request for a token."""
        text = proof_text(TOKEN, device=device, nonce=nonce)
        return TokenRequest(device=device, nonce=nonce, signature=self.sign(text))


def claim(plane: Plane, session: Session, key: Key, **grants: Any) -> Enrolled:
    """Invite a device and let it claim."""
    join, _ = enrolment.invite(plane, session, Invitation(profile=PROFILE, **grants))
    session.flush()
    return enrolment.claim(plane, session, EnrolRequest(token=join.token, csr=key.csr(), profile=PROFILE))


def renew(plane: Plane, session: Session, key: Key, device: str, **changed: Any) -> Enrolled:
    """Renew with a fresh nonce."""
    nonce = proofs.make_nonce(plane, device).nonce
    return proofs.renew(plane, session, key.renewal(device, nonce, **changed))
