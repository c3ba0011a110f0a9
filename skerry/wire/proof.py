"""What a device signs to prove that it holds its key: for a new certificate, or for a short token.

The text names what it is for, who asks and the server's nonce, so that one proof serves one purpose, once. The HTTPS
messages around it are in `skerry.wire.messages`.
"""

import hashlib

RENEW = b"renew"
TOKEN = b"token"


def proof_text(verb: bytes, *, device: str, nonce: str, csr: str = "") -> bytes:
    """Return the bytes to be signed with ECDSA (P-256, SHA-256) by the device's current key; `csr` is PEM."""
    digest = hashlib.sha256(csr.encode()).hexdigest().encode()
    return b"\n".join((b"skerry-proof-1", verb, device.encode(), nonce.encode(), digest))
