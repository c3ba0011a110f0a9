"""Sealing: what a broker, a cache or a stick carries of an artifact is ciphertext, and the key to it is per device.

    a chunk        AES-256-GCM under the artifact's content key; a random 96-bit nonce stands in front
    a sealed file  its sealed chunks, one after the other; whoever carries it knows it by the SHA-256 of these bytes
    a content key  HPKE (RFC 9180, base mode, P-256, HKDF-SHA256, AES-256-GCM) to the public key of one device

Each chunk is bound to the file and the place that it belongs to (its associated data), each content key to one device
of one project (HPKE's info), so nothing that is swapped, moved or cut opens. TUF signs the plaintext: sealing keeps
secrets and proves nothing about who sealed, so what was opened is still checked against the signed digests.

Every primitive is `cryptography`'s. That costs megabytes, so the resident agent never imports this module: it asks
`agent.fetching.unseal_child`. No IO here.
"""

import base64
import binascii
import os
from collections.abc import Iterator

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from skerry.errors import Rejected
from skerry.wire.manifest import CHUNK_BYTES, SEALING_BYTES

KEY_BYTES = 32
_NONCE_BYTES = 12
_SUITE = Suite(KEM.P256, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def make_key() -> bytes:
    """Return a new content key."""
    return os.urandom(KEY_BYTES)


def seal_chunk(key: bytes, data: bytes, *, sha256: str, number: int) -> bytes:
    """Seal chunk `number` of the file whose plaintext has this SHA-256; the result is `SEALING_BYTES` longer."""
    # random and not counted: two sealings never share a counter, and a key seals far fewer than 2^32 chunks
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, data, _place(sha256, number))


def open_chunk(key: bytes, sealed: bytes, *, sha256: str, number: int) -> bytes:
    """Return what was sealed as chunk `number` of that file; raises `Rejected` for anything else."""
    if len(sealed) < SEALING_BYTES:
        raise Rejected(f"chunk {number}: expected at least {SEALING_BYTES} sealed bytes, got {len(sealed)}")
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _place(sha256, number))
    except InvalidTag as error:
        raise Rejected(f"chunk {number}: expected the one sealed for {sha256[:16]}, got other bytes") from error


def seal_file(key: bytes, data: bytes, *, sha256: str) -> Iterator[bytes]:
    """Yield the sealed chunks of a file, in order."""
    for number, start in enumerate(range(0, len(data), CHUNK_BYTES)):
        yield seal_chunk(key, data[start : start + CHUNK_BYTES], sha256=sha256, number=number)


def seal_key(key: bytes, public_pem: str, *, who: str) -> str:
    """Seal a content key to the device `who` (PROJECT.DEVICE), as base64.

    Raises:
        Rejected: the device's public key is not EC P-256 in PEM.
    """
    try:
        public = serialization.load_pem_public_key(public_pem.encode())
        # TypeError: a key of another kind or curve
        return base64.b64encode(_SUITE.encrypt(key, public, info=_info(who))).decode()  # type: ignore[arg-type]
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Rejected(f"{who}: expected an EC P-256 public key in PEM, got {public_pem[:30]!r}") from error


def open_key(sealed: str, private_pem: bytes, *, who: str) -> bytes:
    """Return the content key that was sealed to the device `who`.

    Raises:
        Rejected: it was sealed to another device or key, or is garbled.
    """
    expected = f"content key: expected one sealed to the key of {who}, got one that it does not open"
    try:
        private = serialization.load_pem_private_key(private_pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Rejected(f"device key: expected an EC P-256 key in PEM, got {len(private_pem)} other bytes") from error
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise Rejected(f"device key: expected an EC P-256 key, got {type(private).__name__}")
    try:
        key = _SUITE.decrypt(base64.b64decode(sealed, validate=True), private, info=_info(who))
    except (InvalidTag, ValueError, TypeError, binascii.Error) as error:
        raise Rejected(f"{expected}; renew its certificate, then assign again") from error
    if len(key) != KEY_BYTES:
        raise Rejected(f"content key: expected {KEY_BYTES} bytes, got {len(key)}; assign again")
    return key


def _place(sha256: str, number: int) -> bytes:
    return f"skerry-chunk-1 {sha256} {number}".encode()


def _info(who: str) -> bytes:
    return f"skerry-content-1 {who}".encode()
