"""The road over HTTPS: chunks as ranges of their sealed file, neighbours in one request, on one connection kept open.

Nothing that comes is trusted, only bounded: in bytes by what was asked for, in time by a silence and by a window's end.
"""

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import urlsplit

from agent.link.https import Dialled
from agent.link.proxy import Proxy
from skerry.delivery.chunks import Wanted, spans
from skerry.errors import SkerryError, Unavailable

WINDOW_MOST_S = 180.0
_SMALL = 4096


class HttpsChunks:
    """Sealed files at `SERVER/v1/blob/SHA256`; `context` and `token` are asked for each connection and request.

    A server without the file answers nothing, as a broker does: the caller's stall counts that.
    """

    def __init__(
        self,
        server: str,
        *,
        context: Callable[[], ssl.SSLContext],
        token: Callable[[], str],
        window_most_s: float = WINDOW_MOST_S,
        proxy: Proxy | None = None,
    ) -> None:
        self._server = server
        self._context = context
        self._token = token
        self._window_most_s = window_most_s
        self._proxy = proxy
        self._connection: http.client.HTTPSConnection | None = None

    def close(self) -> None:
        """Let the connection go, until it is needed again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def fetch(self, wanted: Sequence[Wanted], *, timeout_s: float) -> dict[Wanted, bytes]:
        """Return the chunks of a window, as many as came whole; `timeout_s` is how long a silence may be.

        Raises:
            Unavailable: no connection, no token, or another answer than a range; and not one chunk came.
        """
        found: dict[Wanted, bytes] = {}
        # the timeout of a socket begins anew with every byte: a server that drips would hold us for ever
        watch = threading.Timer(self._window_most_s, self._cut)
        watch.daemon = True
        watch.start()
        try:
            for run in spans(wanted):
                # one by one: what came whole before the connection broke is kept
                found.update(self._range(run, timeout_s=timeout_s))
        except (SkerryError, OSError, http.client.HTTPException, UnicodeError, ValueError) as error:
            self.close()
            if not found:
                # a token that is refused, or cannot be had: this road is closed, and no artifact is bad
                shown = getattr(error, "verify_message", None) or getattr(error, "strerror", None) or str(error)
                got = " ".join(shown.split())[:200] or type(error).__name__
                raise Unavailable(f"{self._server}: expected a range of a file, got: {got}") from error
        finally:
            watch.cancel()
        return found

    def _range(self, run: Sequence[Wanted], *, timeout_s: float) -> Iterator[tuple[Wanted, bytes]]:
        first, end = run[0].first_byte, run[-1].first_byte + run[-1].sealed_length
        response = self._ask(run[0].published, first, end, timeout_s=timeout_s)
        if response.status in (404, 416):
            response.read(_SMALL)
            self._unless_at_its_end(response)
            return
        # a server that knows no ranges sends the file from its beginning
        if response.status != 206 and not (response.status == 200 and first == 0):
            raise Unavailable(f"expected status 206, got {response.status}")
        if response.status == 206 and not (response.getheader("Content-Range") or "").startswith(f"bytes {first}-"):
            raise Unavailable(f"expected the range from {first}, got another")
        for each in run:
            payload = response.read(each.sealed_length)
            if len(payload) < each.sealed_length:
                break
            yield each, payload
        self._unless_at_its_end(response)

    def _ask(self, published: str, first: int, end: int, *, timeout_s: float) -> http.client.HTTPResponse:
        headers = {"Authorization": f"Bearer {self._token()}", "Range": f"bytes={first}-{end - 1}"}
        kept = self._connection is not None
        try:
            return self._request(f"/v1/blob/{published}", headers, timeout_s=timeout_s)
        except (OSError, http.client.HTTPException):
            self.close()
            if not kept:
                raise
        # the server may have closed what was kept open
        return self._request(f"/v1/blob/{published}", headers, timeout_s=timeout_s)

    def _request(self, path: str, headers: dict[str, str], *, timeout_s: float) -> http.client.HTTPResponse:
        parts = urlsplit(self._server)
        if self._connection is None:
            self._connection = Dialled(
                parts.hostname or "", parts.port or 443, timeout_s=timeout_s, context=self._context(), proxy=self._proxy
            )
        self._connection.request("GET", f"{parts.path.rstrip('/')}{path}", headers=headers)
        return self._connection.getresponse()

    def _unless_at_its_end(self, response: http.client.HTTPResponse) -> None:
        """Let the connection go where more is on its way than was asked for."""
        if not response.isclosed():
            self.close()

    def _cut(self) -> None:
        sock = self._connection.sock if self._connection is not None else None
        if sock is not None:
            with contextlib.suppress(OSError):
                # not the TLS socket's own method, which would take the TLS object from under the reading thread
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
