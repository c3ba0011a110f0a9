"""The agent's one HTTPS call: bounded in bytes and in time, over TLS that a given CA vouches for.

What comes back is bytes and a status; what they mean is the caller's. Nothing that was sent is ever put into an error,
so neither claim tokens nor bearer tokens reach a log.
"""

import contextlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from agent.link.dial import dial
from agent.link.proxy import Proxy
from agent.link.tls import client_context
from skerry.errors import Rejected, Unavailable

TIMEOUT_S = 20.0
MAX_ANSWER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said."""

    status: int
    body: bytes

    @property
    def ok(self) -> bool:
        """Whether it is a success."""
        return 200 <= self.status < 300


class Dialled(http.client.HTTPSConnection):
    """A connection by whichever address answers first, or through the proxy (`agent.link.dial`)."""

    def __init__(
        self, host: str, port: int, *, timeout_s: float, context: ssl.SSLContext, proxy: Proxy | None = None
    ) -> None:
        super().__init__(host, port, timeout=timeout_s, context=context)
        self._dialled: Callable[[], socket.socket] = lambda: dial(host, port, timeout_s=timeout_s, proxy=proxy)
        self._secure = context

    def connect(self) -> None:
        """Dial, and shake hands."""
        self.sock = self._secure.wrap_socket(self._dialled(), server_hostname=self.host)


def pinned(ca: str, *, floor: float = 0.0) -> ssl.SSLContext:
    """Return TLS for which only the CA certificates in `ca` (PEM) vouch, judged at `floor` (`agent.link.tls`).

    Raises:
        Rejected: they are none.
    """
    try:
        if not ca:
            raise ValueError("nothing")  # which would mean the system's
        return client_context(ca, floor=floor)
    except (ssl.SSLError, ValueError) as error:
        raise Rejected(f"anchor: expected the server's CA as PEM, got: {error}") from error


def call(
    url: str,
    method: str,
    path: str,
    *,
    context: ssl.SSLContext,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    limit: int = MAX_ANSWER_BYTES,
    timeout_s: float = TIMEOUT_S,
    proxy: Proxy | None = None,
) -> Answer:
    """Send one request (a body is JSON) and return the whole answer, read within `timeout_s` seconds altogether.

    Raises:
        Rejected: the certificate is not of the pinned CA, or the answer is longer than `limit` bytes.
        Unavailable: no answer, a broken one, or one that came too slowly; or a proxy that lets nobody through.
    """
    parts = urlsplit(url)
    connection = Dialled(parts.hostname or "", parts.port or 443, timeout_s=timeout_s, context=context, proxy=proxy)
    late = threading.Event()
    try:
        connection.connect()
        # the timeout of a socket begins anew with every byte: a server that drips would hold us for ever
        watch = threading.Timer(timeout_s, _cut, (connection.sock, late))
        watch.daemon = True
        watch.start()
        try:
            sent = {**({"Content-Type": "application/json"} if body is not None else {}), **(headers or {})}
            connection.request(method, f"{parts.path.rstrip('/')}{path}", body=body, headers=sent)
            response = connection.getresponse()
            data = response.read(limit + 1)
        finally:
            watch.cancel()
    except ssl.SSLCertVerificationError as error:
        raise Rejected(f"{url}: expected a certificate of the pinned CA, got: {error.verify_message}") from error
    except (OSError, http.client.HTTPException, UnicodeError) as error:  # the last: a name that no host can have
        shown = _shown(error) if not late.is_set() else f"none within {timeout_s:g} s"
        raise Unavailable(
            f"{url}: expected an answer, got: {shown}; check the address and that the server runs"
        ) from error
    finally:
        connection.close()
    if len(data) > limit:
        raise Rejected(f"{url}: expected at most {limit} bytes, got more")
    if late.is_set() or response.length:
        raise Unavailable(f"{url}: expected the whole answer within {timeout_s:g} s, got {len(data)} bytes; try again")
    return Answer(status=response.status, body=data)


def problem(answer: Answer) -> str:
    """Return the one line of a problem+json answer (RFC 9457)."""
    try:
        tree = json.loads(answer.body)
        text = str(tree.get("detail") or tree.get("title") or "")
    except (ValueError, AttributeError):
        text = ""
    return " ".join(text.split())[:200] or "no reason given"


def _cut(sock: socket.socket, late: threading.Event) -> None:
    late.set()
    with contextlib.suppress(OSError):
        # not the TLS socket's own method, which would take the TLS object from under the reading thread
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _shown(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
