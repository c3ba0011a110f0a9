"""The body of a request to the local face: of a length or chunked, as it is or compressed, and bounded either way.

Memory is claimed before it is taken, from one `Room` that all requests share. The length that a head claims is held
against the bounds first, and inflating goes step by step.
"""

import http.client
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from typing import BinaryIO

from skerry.errors import Rejected

LINE_BYTES = 1 << 16
_STEP_BYTES = 1 << 20
# what inflates a body, by the name of its coding; `deflate` is zlib's form (RFC 9110, 8.4.1.2)
_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
Claim = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much all clients together, and each request, may take of the daemon."""

    connections: int = 64
    head_bytes: int = 32 << 10
    body_bytes: int = 64 << 20
    bodies_bytes: int = 128 << 20
    waiting_s: float = 75.0
    transfer_s: float = 30.0


class Refusal(Rejected):
    """A request that is refused by a status of its own; `allow` is the method that its path takes."""

    def __init__(self, status: int, problem: str, *, allow: str = "") -> None:
        super().__init__(problem)
        self.status = status
        self.allow = allow


class Room:
    """How many bytes the bodies of all requests may take together."""

    def __init__(self, size_bytes: int) -> None:
        self._left = size_bytes
        self._lock = threading.Lock()

    def take(self, size_bytes: int) -> None:
        """Claim memory; raises `Refusal` when there is none left."""
        with self._lock:
            if size_bytes > self._left:
                raise Refusal(503, "expected room for the request's body, got none: try again later")
            self._left -= size_bytes

    def give(self, size_bytes: int) -> None:
        """Give back what was claimed."""
        with self._lock:
            self._left += size_bytes

    @contextmanager
    def claims(self, limit: int) -> Iterator[Claim]:
        """Yield what takes memory for one request, at most `limit` bytes, and give it all back after it."""
        claimed = 0

        def claim(size_bytes: int) -> None:
            nonlocal claimed
            if claimed + size_bytes > limit:
                raise Refusal(413, f"expected a request of at most {limit} bytes, got more")
            self.take(size_bytes)
            claimed += size_bytes

        try:
            yield claim
        finally:
            self.give(claimed)


class Lines:
    """What a head or trailers are read from: lines, until they are too many bytes."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self._file = file
        self._left = size_bytes

    def readline(self, limit: int) -> bytes:
        """Read a line; raises `http.client.LineTooLong`, which the standard library's parser knows.

        That parser would take the end of the connection for the end of the head, so it is a `ConnectionError` here.
        """
        line = self._file.readline(min(limit, self._left + 1))
        if not line:
            raise ConnectionError("the client ended in the middle of a head")
        self._left -= len(line)
        if self._left < 0:
            raise http.client.LineTooLong("head")
        return line


def read_body(file: BinaryIO, headers: Message, *, version: str, bounds: Bounds, claim: Claim) -> bytes:
    """Read a request's body and undo its coding.

    Raises:
        Refusal: it is too large, or written as we do not read it; where it ends is then unknown.
        ConnectionError: the client went away in the middle.
    """
    body = _as_sent(file, headers, version=version, bounds=bounds, claim=claim)
    coding = (headers.get("content-encoding") or "identity").strip().lower()
    if coding == "identity":
        return body
    if coding not in _WINDOWS:
        raise Refusal(415, f"content-encoding: expected gzip, deflate or none, got {coding[:40]!r}")
    return _inflate(body, window=_WINDOWS[coding], limit=bounds.body_bytes, claim=claim)


def _as_sent(file: BinaryIO, headers: Message, *, version: str, bounds: Bounds, claim: Claim) -> bytes:
    lengths = headers.get_all("content-length") or []
    codings = headers.get_all("transfer-encoding") or []
    if codings:
        if lengths or version == "HTTP/1.0":
            raise Refusal(400, "expected a content-length or, in HTTP/1.1, a transfer-encoding, got both")
        if [each.strip().lower() for each in codings] != ["chunked"]:
            raise Refusal(501, f"transfer-encoding: expected chunked, got {', '.join(codings)[:60]!r}")
        return b"".join(_chunks(file, bounds=bounds, claim=claim))
    if not lengths:
        return b""
    length = _number(lengths[0], base=10)
    if length is None or len(set(lengths)) > 1:
        raise Refusal(400, f"content-length: expected one number, got {', '.join(lengths)[:60]!r}")
    return _read(file, length, limit=bounds.body_bytes, claim=claim)


def _chunks(file: BinaryIO, *, bounds: Bounds, claim: Claim) -> Iterator[bytes]:
    """Yield the chunks of a body (RFC 9112, 7.1); extensions and trailers are read and ignored."""
    left = bounds.body_bytes
    while True:
        line = file.readline(256)
        size = _number(line.partition(b";")[0].decode("latin-1").rstrip("\r\n"), base=16)
        if size is None or not line.endswith(b"\n"):
            raise Refusal(400, f"chunk: expected its size in hexadecimal, got {line[:20]!r}")
        if size == 0:
            break
        # a small chunk is also a Python object
        claim(64)
        yield _read(file, size, limit=left, claim=claim)
        left -= size
        if file.readline(3) not in (b"\r\n", b"\n"):
            raise Refusal(400, "chunk: expected a line's end after it, got more bytes")
    trailers = Lines(file, bounds.head_bytes)
    try:
        while trailers.readline(LINE_BYTES) not in (b"\r\n", b"\n"):
            pass
    except http.client.LineTooLong as error:
        raise Refusal(431, "expected shorter trailers") from error


def _read(file: BinaryIO, length: int, *, limit: int, claim: Claim) -> bytes:
    if length > limit:
        raise Refusal(413, f"expected a body of at most {limit} bytes, got {length} more")
    claim(length)
    data = file.read(length)
    if len(data) < length:
        raise ConnectionError("the client ended in the middle of a request")
    return data


def _inflate(body: bytes, *, window: int, limit: int, claim: Claim) -> bytes:
    """Inflate a body step by step, so that a bomb is noticed while it is small."""
    inflater = zlib.decompressobj(wbits=window)
    pieces, total, rest = [], 0, body
    try:
        while not inflater.eof:
            piece = inflater.decompress(rest, _STEP_BYTES)
            rest = inflater.unconsumed_tail
            if not piece and not rest:
                break
            total += len(piece)
            if total > limit:
                raise Refusal(413, f"expected a body that inflates to at most {limit} bytes, got more")
            claim(len(piece))
            pieces.append(piece)
    except zlib.error as error:
        raise Refusal(400, f"content-encoding: expected a body of this coding, got: {error}") from error
    if not inflater.eof or inflater.unused_data:
        raise Refusal(400, "content-encoding: expected one whole stream of this coding, got another length")
    return b"".join(pieces)


def _number(text: str, *, base: int) -> int | None:
    """Return a number of digits alone; `int` would also take signs, spaces and underscores."""
    text = text.strip(" \t")
    if not 0 < len(text) <= 16 or not set(text.lower()) <= set("0123456789abcdef"[:base]):
        return None
    return int(text, base)
