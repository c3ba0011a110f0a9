"""Key pairs of devices, for tests that seal something to one."""

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

_PEM = serialization.Encoding.PEM


def pems(private: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> tuple[bytes, str]:
    """Return a private key and its public half as PEM."""
    secret = private.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = private.public_key().public_bytes(_PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return secret, public.decode()


def make_pair() -> tuple[bytes, str]:
    """Return a new EC P-256 key pair, such as a device makes when it enrols, as PEM."""
    return pems(ec.generate_private_key(ec.SECP256R1()))


PRIVATE, PUBLIC = make_pair()
