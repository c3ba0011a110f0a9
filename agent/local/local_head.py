"""The head of a request to the local face: its first line (RFC 9112, 3), and fields as the standard library reads them.

`http.server` reads both, and brings what writes pages and serves folders with it: three quarters of a megabyte.
"""

import http.client
import re
from dataclasses import dataclass
from email.message import Message

from agent.local.local_body import LINE_BYTES, Lines, Refusal

_SERVER = re.compile(r"^https?://[^/]*/?", re.IGNORECASE)
_VERSION = re.compile(r"HTTP/([0-9])\.[0-9]")


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """What a request begins with."""

    method: str
    path: str
    version: str
    fields: Message

    @property
    def is_last(self) -> bool:
        """Whether its client wants the connection to end with the answer."""
        wishes = {each.strip().lower() for each in (self.fields.get("connection") or "").split(",")}
        return "keep-alive" not in wishes if self.version == "HTTP/1.0" else "close" in wishes

    @property
    def asks_first(self) -> bool:
        """Whether its client waits for a word before it sends the body (RFC 9110, 10.1.1)."""
        return self.version == "HTTP/1.1" and (self.fields.get("expect") or "").lower() == "100-continue"


def read_head(line: bytes, lines: Lines) -> Head:
    """Read a head, whose first line is here.

    Raises:
        Refusal: it is too long, or written as we do not read it: what two readers may read in two ways is no head.
        ConnectionError: the client went away in the middle.
    """
    if len(line) > LINE_BYTES:
        raise Refusal(414, "expected a shorter request line")
    words = line.decode("latin-1").rstrip("\r\n").split(" ")
    version = _VERSION.fullmatch(words[-1])
    if len(words) != 3 or not all(words) or version is None:
        raise Refusal(400, f"expected METHOD PATH HTTP/1.1, got {line[:60]!r}")
    if int(version[1]) > 1:
        raise Refusal(505, f"expected HTTP/1.1, got {words[-1]}")
    try:
        fields = http.client.parse_headers(lines)  # type: ignore[call-overload]  # it reads lines alone
    except http.client.HTTPException as error:
        # a line that is too long, or too many of them
        raise Refusal(431, "expected fewer and shorter headers") from error
    # a client that takes us for a proxy names the server too (RFC 9112, 3.2.2)
    head = Head(words[0], _SERVER.sub("/", words[1], count=1), words[2], fields)
    if fields.defects or head.version not in ("HTTP/1.0", "HTTP/1.1"):
        raise Refusal(400, "expected HTTP/1.1 with headers of NAME: VALUE, got others")
    return head
