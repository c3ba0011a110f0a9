"""The join string `URL#TOKEN:SHA256`: where the server is, a claim token, and the hash of the anchor.

A server whose anchor does not hash to `SHA256` is refused before the token is sent.
"""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from skerry.errors import Rejected

_FORM = "https://HOST:PORT#TOKEN:SHA256"


@dataclass(frozen=True, slots=True)
class Join:
    """A parsed join string; `anchor_sha256` is 64 lower-case hex digits."""

    url: str
    token: str
    anchor_sha256: str

    def __str__(self) -> str:
        return f"{self.url}#{self.token}:{self.anchor_sha256}"


def parse_join(text: str) -> Join:
    """Parse a join string; raises `Rejected` (without repeating the token) when it has another form."""
    url, hash_sign, rest = text.strip().partition("#")
    token, colon, digest = rest.rpartition(":")
    if not (hash_sign and colon and token):
        raise Rejected(f"join string: expected {_FORM}, got {url!r} without a token and a hash; copy it whole")
    if not _is_address(url):
        raise Rejected(f"join string: expected {_FORM}, got the address {url!r}")
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise Rejected(f"join string: expected 64 hex digits after the token, got {len(digest)} characters")
    return Join(url=url.rstrip("/"), token=token, anchor_sha256=digest)


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
