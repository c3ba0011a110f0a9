"""Where the broker is, as a URL: `mqtt(s)://HOST[:PORT]`, or `ws(s)://HOST[:PORT][/PATH]` where only HTTPS gets out."""

import ipaddress
import re
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from skerry.errors import Rejected

PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
# what brokers listen at where nothing else is said
PATH = "/mqtt"
_LOOPBACK = bytes(15) + b"\x01"
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252}[A-Za-z0-9.])?")
# it is sent as it is in the head of an HTTP request
_PATH = re.compile(r"/[!-~]{0,500}")


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port, whether TLS is spoken there, and the path of a WebSocket (empty: none)."""

    host: str
    port: int
    tls: bool
    path: str = ""

    @property
    def authority(self) -> str:
        """`HOST:PORT`, an IPv6 literal in brackets."""
        return authority(self.host, self.port)

    def __str__(self) -> str:
        scheme = ("wss" if self.tls else "ws") if self.path else ("mqtts" if self.tls else "mqtt")
        return f"{scheme}://{self.authority}{self.path}"


def parse_broker(url: str) -> Address:
    """Parse the URL of a broker.

    Raises:
        Rejected: another form; or a broker without TLS, and so without identities, that is not on this machine.
    """
    expected = f"broker: expected mqtts://HOST:PORT or wss://HOST/PATH, or mqtt:// on this machine, got {url!r:.200}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Rejected(expected) from error
    host, scheme = parts.hostname or "", parts.scheme
    if scheme not in PORTS or not is_host(host) or port == 0 or "@" in parts.netloc or parts.query or parts.fragment:
        raise Rejected(expected)
    web = scheme.startswith("ws")
    path = (parts.path or PATH) if web else ""
    if not (_PATH.fullmatch(path) if web else parts.path in ("", "/")):
        raise Rejected(expected)
    tls = scheme in ("mqtts", "wss")
    if not tls and not is_here(host):
        raise Rejected(f"broker: expected {scheme}s:// for {host}, got {scheme}:// (no identity off this machine)")
    return Address(host=host, port=port or PORTS[scheme], tls=tls, path=path)


def is_host(text: str) -> bool:
    """Say whether it can be a host: a name, or a literal address without brackets."""
    return bool(_NAME.fullmatch(text)) or _is_literal(text)


def is_here(host: str) -> bool:
    """Say whether it is this machine, whatever a name server says."""
    return host == "localhost" or _is_loopback(socket.AF_INET, host) or _is_loopback(socket.AF_INET6, host)


def authority(host: str, port: int) -> str:
    """Return `HOST:PORT`, an IPv6 literal in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(family: socket.AddressFamily, host: str) -> bool:
    try:
        packed = socket.inet_pton(family, host)
    except (OSError, ValueError):
        return False
    return packed[0] == 127 if family == socket.AF_INET else packed == _LOOPBACK
