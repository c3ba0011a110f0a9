"""SHA-256 for a worker: Python's own, without OpenSSL, which takes half a megabyte and has nothing else to do there."""

import sys

# what `hashlib` finds so in a Python that was built without OpenSSL; where that is loaded already, it may stay
sys.modules.setdefault("_hashlib", None)  # type: ignore[arg-type] # None stands for what cannot be imported

from hashlib import sha256  # noqa: E402

__all__ = ["sha256"]
