"""The device's signature, made in a short-lived process: `cryptography` costs more memory than an agent may keep.

    python -m agent.identity.signature KEY < bytes        # the base64 of ECDSA (P-256, SHA-256, DER)

What is signed says what for, in its first line: whoever calls this adds it.
"""

import subprocess
import sys
from base64 import b64encode
from pathlib import Path

from skerry.errors import Broken

CHILD_TIMEOUT_S = 60.0
MAX_BYTES = 1 << 20


def sign(key: Path, data: bytes) -> str:
    """Return the base64 of the signature of `data` by the EC key in the file `key`; raises `Broken`."""
    # -P: the working folder is not searched for modules
    command = [sys.executable, "-P", "-m", "agent.identity.signature", str(key)]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=CHILD_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Broken(f"signature: expected one by {key}, got: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise Broken(f"signature: expected one by {key}, got: {lines[-1][:200] if lines else done.returncode}")
    return done.stdout.decode("ascii").strip()


def main() -> int:
    """Sign standard input; exit status 0 means that the signature was printed."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    data = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        return _refuse(f"expected at most {MAX_BYTES} bytes, got more")
    try:
        key = serialization.load_pem_private_key(Path(sys.argv[1]).read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        return _refuse(f"expected a private key in PEM, got: {type(error).__name__}")
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        return _refuse(f"expected an EC key, got {type(key).__name__}")
    sys.stdout.write(b64encode(key.sign(data, ec.ECDSA(hashes.SHA256()))).decode())
    return 0


def _refuse(reason: str) -> int:
    sys.stderr.write(f"{reason}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
