"""How far one gets on the way to the broker and to the server: name, port, TLS, and what answers.

    resolve -> connect -> shake hands -> ask

Each step that fails says what it found and what that is a sign of; a captive portal answers HTTP where none belongs.
The broker is asked to let us in only while no agent runs: it would end that one's connection. The session there is
taken up and left as it is: nothing is acknowledged, and there is no will.
"""

import base64
import contextlib
import email.utils
import http.client
import os
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from agent.identity.folder import StateFolder
from agent.link.address import Address, parse_broker
from agent.link.connection import SESSION_EXPIRY_S
from agent.link.dial import dial
from agent.link.https import pinned
from agent.link.proxy import Proxy, parse_proxy
from agent.trust.floor import read_floor
from agent.upkeep.checks import CLOCK_SLACK_S, Doubt, config_of
from agent.upkeep.holding import runs
from skerry.errors import Rejected, SkerryError, Unavailable

STEP_S = 3.0
_PORTAL = "a captive portal or another web server is in between: sign in there, or ask who runs the network"
_HTTP = b"HTTP/"
_CONNACK = 0x20
_HEAD_BYTES = 8192
# a refusal of our certificate comes after the handshake (TLS 1.3)
_ALERT_S = 0.3


def broker(folder: StateFolder) -> str:
    """Does the broker answer, is it ours, and does it let us in?"""
    identity, config = folder.identity(), config_of(folder)
    address, proxy = parse_broker(config.broker or identity.broker), parse_proxy(config.proxy)
    shown = str(address)
    context = _identity_context(folder) if address.tls else None
    running = runs(folder)
    with _connected(address, proxy) as plain, _shaken(plain, address, proxy, context) as sock:
        if running:
            _hear_refusal(sock, shown)
            return f"{shown} answers; it was not asked to let us in, as the running agent would lose its connection"
        if address.path:
            _upgrade(sock, address)
        answer = _knock(sock, identity.who, address)
    if answer.startswith(_HTTP):
        raise Unavailable(f"expected an MQTT broker at {shown}, got a web server; {_PORTAL}")
    if len(answer) < 4 or answer[0] != _CONNACK:
        raise Unavailable(f"expected an MQTT 5 broker at {shown}, got {answer[:20]!r}; check the address")
    if answer[3]:
        said = ReasonCode(PacketTypes.CONNACK, identifier=answer[3]).getName()
        raise Rejected(f"expected {shown} to let us in, got: {said}; was this device revoked? see skerry device list")
    return f"{shown} lets us in"


def server(folder: StateFolder) -> str:
    """Does the server answer, and what time is it there?"""
    url = folder.identity().server
    if not url:
        return "none: this device installs from bundles"
    parts = urlsplit(url)
    address = Address(host=parts.hostname or "", port=parts.port or 443, tls=True)
    context = pinned(folder.anchor().server_ca, floor=read_floor(folder.trust))
    proxy = parse_proxy(config_of(folder).proxy)
    with _connected(address, proxy) as plain, _shaken(plain, address, proxy, context) as sock:
        answer = http.client.HTTPResponse(_asked(sock, parts.path, address))
        try:
            answer.begin()
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"expected {url} to answer, got: {_said(error)}; see the server's log") from error
    if answer.status != http.HTTPStatus.OK:
        raise Unavailable(f"expected the server at {url}, got status {answer.status}; see the server's log")
    with contextlib.suppress(TypeError, ValueError):
        ahead = time.time() - email.utils.parsedate_to_datetime(answer.headers["date"]).timestamp()
        if abs(ahead) > CLOCK_SLACK_S:
            way = "ahead of" if ahead > 0 else "behind"
            return Doubt(f"{url} answers; our clock is {abs(ahead):.0f} s {way} its: set the one that is wrong")
    return f"{url} answers"


@contextlib.contextmanager
def _connected(address: Address, proxy: Proxy | None) -> Iterator[socket.socket]:
    """Connect as the agent does; what a proxy refuses is `Unavailable` as well."""
    try:
        sock = dial(address.host, address.port, timeout_s=STEP_S, proxy=proxy)
    except (socket.gaierror, UnicodeError) as error:
        reason = f"expected {address.host} to have an address, got: {_said(error)}"
        raise Unavailable(f"{reason}; check the network, its name server and the name") from error
    except OSError as error:
        reason = f"expected {address.authority} to listen, got: {_said(error)}"
        raise Unavailable(f"{reason}; check that it runs, the port, and firewalls") from error
    with sock:
        yield sock


@contextlib.contextmanager
def _shaken(
    plain: socket.socket, address: Address, proxy: Proxy | None, context: ssl.SSLContext | None
) -> Iterator[socket.socket]:
    """Shake hands, where there is TLS; raises what a failure is a sign of."""
    shown = address.authority
    if context is None:
        yield plain
        return
    try:
        sock = context.wrap_socket(plain, server_hostname=address.host)
    except ssl.SSLCertVerificationError as error:
        reason = f"expected a certificate of the pinned CA at {shown}, got: {error.verify_message}"
        raise Rejected(f"{reason}; is it our server, and nothing in between? if its CA changed, enrol again") from error
    except (OSError, ValueError) as error:
        if _speaks_http(address, proxy):
            raise Unavailable(f"expected TLS at {shown}, got a web server without it; {_PORTAL}") from error
        reason = f"expected TLS at {shown}, got: {_said(error)}"
        raise Unavailable(f"{reason}; check the port, our certificate and the log there") from error
    with sock:
        sock.settimeout(STEP_S)
        yield sock


def _speaks_http(address: Address, proxy: Proxy | None) -> bool:
    try:
        with dial(address.host, address.port, timeout_s=STEP_S, proxy=proxy) as sock:
            sock.sendall(f"GET / HTTP/1.0\r\nHost: {address.authority}\r\n\r\n".encode())
            return sock.recv(16).startswith(_HTTP)
    except (OSError, SkerryError):
        return False


def _upgrade(sock: socket.socket, address: Address) -> None:
    """Open the WebSocket (RFC 6455, section 4.1); what does not is something else that listens on 443."""
    key = base64.b64encode(os.urandom(16)).decode()
    lines = (
        *(f"GET {address.path} HTTP/1.1", f"Host: {address.authority}", "Upgrade: websocket", "Connection: Upgrade"),
        *(f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Protocol: mqtt"),
    )
    head = b""
    try:
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        while not head.endswith(b"\r\n\r\n") and len(head) < _HEAD_BYTES and (byte := sock.recv(1)):
            head += byte
    except OSError as error:
        raise Unavailable(f"expected {address} to open a WebSocket, got: {_said(error)}; check the address") from error
    line = head.split(b"\r\n", 1)[0].decode("ascii", "replace")
    if line.split(None, 2)[1:2] != ["101"]:
        raise Unavailable(f"expected {address} to open a WebSocket, got {line[:60]!r}; check the path, or {_PORTAL}")


def _hear_refusal(sock: socket.socket, shown: str) -> None:
    """Raise `Rejected` when TLS ends right after its handshake; silence is what a broker owes us here."""
    sock.settimeout(_ALERT_S)
    try:
        ended = not sock.recv(1)
    except TimeoutError:
        return
    except OSError as error:
        raise Rejected(f"expected {shown} to take our certificate, got: {_said(error)}; see certificate") from error
    if ended:
        raise Rejected(f"expected {shown} to take our certificate, got a closed connection; see certificate")


def _knock(sock: socket.socket, who: str, address: Address) -> bytes:
    """Say CONNECT as the agent does, and return the beginning of the answer (MQTT 5, sections 3.1 and 3.2)."""
    name = struct.pack(">H", len(who.encode())) + who.encode()
    expiry = b"\x11" + struct.pack(">I", SESSION_EXPIRY_S)
    # no clean start, and a user name: another session would make the broker forget what it keeps for the agent
    head = b"\x00\x04MQTT\x05\x80" + struct.pack(">H", 30) + bytes([len(expiry)]) + expiry
    body = head + name + name
    framed = _masked if address.path else bytes
    try:
        sock.sendall(framed(b"\x10" + _varint(len(body)) + body))
        answer = sock.recv(64)
        if address.path:
            # the head of a short frame, which a server sends unmasked
            answer = answer[2:] or sock.recv(64)
        if not answer:
            raise Rejected(f"expected {address} to let us in, got a closed connection; was this device revoked?")
        if answer[0] == _CONNACK:
            # left in order: DISCONNECT, normal
            sock.sendall(framed(b"\xe0\x00"))
    except TimeoutError as error:
        reason = f"expected {address} to answer within {STEP_S:g} s, got nothing"
        raise Unavailable(f"{reason}; is it an MQTT broker?") from error
    except OSError as error:
        raise Rejected(f"expected {address} to let us in, got: {_said(error)}; was this device revoked?") from error
    return answer


def _masked(packet: bytes) -> bytes:
    """Return a packet of less than 64 KiB as a binary frame of a client (RFC 6455, section 5.2)."""
    mask = os.urandom(4)
    length = bytes([0x80 | len(packet)]) if len(packet) < 126 else b"\xfe" + struct.pack(">H", len(packet))
    return b"\x82" + length + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(packet))


def _asked(sock: socket.socket, path: str, address: Address) -> socket.socket:
    ask = (
        f"GET {path.rstrip('/')}/v1/anchor HTTP/1.1\r\nHost: {address.host}:{address.port}\r\nConnection: close\r\n\r\n"
    )
    with contextlib.suppress(OSError):  # what is wrong shows when the answer is read
        sock.sendall(ask.encode())
    return sock


def _identity_context(folder: StateFolder) -> ssl.SSLContext:
    try:
        return folder.credentials.context(floor=read_floor(folder.trust))
    except (SkerryError, OSError) as error:
        raise Rejected(f"expected our certificate and its key, got: {_said(error)}; see certificate") from error


def _varint(number: int) -> bytes:
    out = bytearray()
    while True:
        number, digit = number >> 7, number & 0x7F
        out.append(digit | (0x80 if number else 0))
        if not number:
            return bytes(out)


def _said(error: Exception) -> str:
    if isinstance(error, SkerryError):
        return str(error)
    if isinstance(error, TimeoutError):
        return f"no answer within {STEP_S:g} s"
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error) or type(error).__name__
