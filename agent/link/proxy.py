"""The proxy of a network that lets nobody out: `http://[USER:PASSWORD@]HOST:PORT` (CONNECT) or `socks5://...`.

SOCKS is PySocks's (`pip install skerry[proxy]`). CONNECT is ours: where the head of the answer comes in two packets,
PySocks leaves the second to whoever reads next, and it cannot name an IPv6 literal. What a proxy sees is TLS that it
cannot open.
"""

import base64
import importlib.util
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import unquote, urlsplit

from agent.link.address import authority, is_host
from skerry.errors import Rejected, Unavailable

HTTP, SOCKS5 = "http", "socks5"
MAX_HEAD_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where a proxy is and who we are to it; shown without the password."""

    kind: str
    host: str
    port: int
    user: str = ""
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"{self.kind}://{authority(self.host, self.port)}"


class Connect(Protocol):
    """Makes a plain connection; `agent.link.dial` does."""

    def __call__(self, host: str, port: int, *, timeout_s: float, given_up: Callable[[], bool]) -> socket.socket:
        """Return a connected socket."""


def parse_proxy(text: str) -> Proxy | None:
    """Parse the setting `proxy`; empty is none.

    Raises:
        Rejected: another form, or what it takes is not installed; the text is not shown, for a password may be in it.
    """
    if not text:
        return None
    expected = "proxy: expected http://[USER:PASSWORD@]HOST:PORT or socks5://[USER:PASSWORD@]HOST:PORT, got"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise Rejected(f"{expected} another form") from None  # its text may quote what was given
    if parts.scheme not in (HTTP, SOCKS5):
        raise Rejected(f"{expected} another form")
    host = parts.hostname or ""
    if not is_host(host) or not port or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise Rejected(f"{expected} {parts.scheme}:// with something else")
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    # 255 by RFC 1929, of which PySocks can say 127
    if parts.scheme == SOCKS5 and max(len(user.encode()), len(password.encode())) > 127:
        raise Rejected("proxy: expected a user and a password of at most 127 bytes each, got more")
    if parts.scheme == SOCKS5 and importlib.util.find_spec("socks") is None:
        raise Rejected("proxy: expected PySocks for socks5://, got none; run: pip install 'skerry[proxy]'")
    return Proxy(kind=parts.scheme, host=host, port=port, user=user, password=password)


def pass_through(
    proxy: Proxy, host: str, port: int, *, timeout_s: float, connect: Connect, given_up: Callable[[], bool]
) -> socket.socket:
    """Return a socket on which `host` answers, by way of the proxy, which resolves the name.

    Raises:
        Unavailable: the proxy does not answer, or refuses.
    """
    deadline = time.monotonic() + timeout_s
    try:
        if proxy.kind == SOCKS5:
            return _socks(proxy, host, port, timeout_s=timeout_s)
        sock = connect(proxy.host, proxy.port, timeout_s=timeout_s, given_up=given_up)
        try:
            _ask_for_tunnel(sock, proxy, host, port, deadline=deadline)
            sock.settimeout(timeout_s)
        except BaseException:  # whatever it was, also an interrupt: a socket that nobody holds must not stay open
            sock.close()
            raise
    except OSError as error:
        shown = error.strerror or str(error) or type(error).__name__
        raise Unavailable(f"proxy {proxy}: expected it to answer, got: {shown}; check that it runs") from error
    return sock


def _ask_for_tunnel(sock: socket.socket, proxy: Proxy, host: str, port: int, *, deadline: float) -> None:
    """Ask for a tunnel (RFC 9110, section 9.3.6); the head of the answer is read, and not a byte more."""
    lines = [f"CONNECT {authority(host, port)} HTTP/1.1", f"Host: {authority(host, port)}"]
    if proxy.user or proxy.password:
        said = base64.b64encode(f"{proxy.user}:{proxy.password}".encode()).decode()
        lines.append(f"Proxy-Authorization: Basic {said}")
    sock.sendall("\r\n".join([*lines, "", ""]).encode())

    head = b""
    while not head.endswith(b"\r\n\r\n") and len(head) < MAX_HEAD_BYTES:
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        byte = sock.recv(1)
        if not byte:
            break
        head += byte
    line = head.split(b"\r\n", 1)[0].decode("ascii", "replace")
    words = line.split(None, 2)
    status = words[1] if len(words) > 1 and words[0].startswith("HTTP/") else ""
    if not head.endswith(b"\r\n\r\n") or not status.isdecimal():
        raise Unavailable(f"proxy {proxy}: expected an answer to CONNECT, got none that is HTTP; check the address")
    if not status.startswith("2"):
        hint = "the user and password of the setting proxy" if status == "407" else "what it lets through"
        raise Unavailable(
            f"proxy {proxy}: expected a way to {authority(host, port)}, got status {status}; check {hint}"
        )


def _socks(proxy: Proxy, host: str, port: int, *, timeout_s: float) -> socket.socket:
    import socks  # type: ignore[import-untyped]

    try:
        made = socks.create_connection(
            (host, port),
            timeout=timeout_s,
            proxy_type=socks.SOCKS5,
            proxy_addr=proxy.host,
            proxy_port=proxy.port,
            proxy_rdns=True,
            proxy_username=proxy.user or None,
            proxy_password=proxy.password or None,
        )
    except socks.ProxyError as error:
        inner = error.socket_err
        shown = getattr(inner, "strerror", None) or error.msg
        raise Unavailable(
            f"proxy {proxy}: expected a way to {authority(host, port)}, got: {shown}; check it and the setting proxy"
        ) from error
    # its own class of sockets has more to it than is needed from here on
    sock = socket.socket(fileno=made.detach())
    sock.settimeout(timeout_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock
