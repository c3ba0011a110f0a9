"""A TCP connection to a host, by whichever of its addresses answers first, or through a proxy.

A name with a dead IPv6 address and a good IPv4 one is common where a router announces what its provider does not carry.
`socket.create_connection` grants each address the whole time-out, one after the other; here the next is tried as well
after a quarter of a second (RFC 8305, sections 4 and 5).
"""

import errno
import os
import selectors
import socket
import time
from collections.abc import Callable, Iterable
from itertools import chain, zip_longest
from typing import Any

from agent.link.proxy import Proxy, pass_through
from skerry.errors import Unavailable

STAGGER_S = 0.25
# a name server may list what it likes
MAX_ADDRESSES = 8
_Found = tuple[int, int, int, str, Any]


def dial(
    host: str,
    port: int,
    *,
    timeout_s: float,
    proxy: Proxy | None = None,
    given_up: Callable[[], bool] = lambda: False,
) -> socket.socket:
    """Return a connected socket, blocking with a time-out of `timeout_s`; through the proxy where one is given.

    Raises:
        OSError: no address answered within `timeout_s`, or there is none.
        Unavailable: the proxy did not answer or refused; or `given_up` became true.
    """
    if proxy is not None:
        return pass_through(proxy, host, port, timeout_s=timeout_s, connect=_connect, given_up=given_up)
    return _connect(host, port, timeout_s=timeout_s, given_up=given_up)


def _connect(host: str, port: int, *, timeout_s: float, given_up: Callable[[], bool]) -> socket.socket:
    deadline = time.monotonic() + timeout_s
    waiting = _interleaved(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))[:MAX_ADDRESSES]
    problem = OSError("no address")
    next_at = 0.0
    with selectors.DefaultSelector() as under_way:
        try:
            while waiting or under_way.get_map():
                now = time.monotonic()
                if given_up():
                    raise Unavailable(f"expected to connect to {host}, got told to stop")
                if now >= deadline:
                    raise TimeoutError(f"no answer within {timeout_s:g} s")
                if waiting and (now >= next_at or not under_way.get_map()):
                    next_at = now + STAGGER_S
                    try:
                        under_way.register(_begin(waiting.pop(0)), selectors.EVENT_WRITE)
                    except OSError as error:
                        problem = error
                        next_at = now
                        continue
                for key, _ in under_way.select(min(STAGGER_S, deadline - now)):
                    sock: socket.socket = key.fileobj  # type: ignore[assignment] # what was registered
                    under_way.unregister(sock)
                    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if not code:
                        return _ready(sock, timeout_s)
                    sock.close()
                    problem, next_at = OSError(code, os.strerror(code)), 0.0
        finally:
            for key in under_way.get_map().values():
                key.fileobj.close()  # type: ignore[union-attr] # sockets, all of them
    try:
        raise problem
    finally:
        # the error knows this frame, and the frame the error: without this, both and all that called us would stay
        del problem


def _begin(found: _Found) -> socket.socket:
    family, kind, protocol, _, address = found
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        code = sock.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
    except OSError:
        sock.close()
        raise
    return sock


def _ready(sock: socket.socket, timeout_s: float) -> socket.socket:
    sock.settimeout(timeout_s)
    # stop-and-wait over Nagle costs a factor of twenty
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _interleaved(found: Iterable[_Found]) -> list[_Found]:
    """Order addresses as RFC 8305, section 4, does: the families in turn, beginning with the preferred one."""
    families: dict[int, list[_Found]] = {}
    for each in found:
        families.setdefault(each[0], []).append(each)
    return [each for each in chain.from_iterable(zip_longest(*families.values())) if each is not None]
