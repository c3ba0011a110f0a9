"""One connection of the local face: HTTP/1.1 requests in, one after the other, replies out.

Heads (`agent.local.local_head`), bodies (`agent.local.local_body`) and refusals are ours, and it knows no path.
Between two requests a connection waits, and the listener may close it (`agent.local.listener`).
"""

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import BinaryIO

from agent.local.local_body import LINE_BYTES, Bounds, Lines, Refusal, Room, read_body
from agent.local.local_head import Head, read_head
from agent.local.serving_port import Reply
from skerry.errors import Rejected, SkerryError, Unavailable

_log = logging.getLogger("skerry.agent.serving")
_DRAINED_BYTES = 1 << 20
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class Doing(Enum):
    """What a connection is about, which says how long it may take."""

    WAITING = "waiting for a request"
    RECEIVING = "receiving one"
    ANSWERING = "waiting for the model"
    SENDING = "sending the answer"
    LEAVING = "being closed"


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A request whose body has arrived; `is_private` when it came over the unix socket."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    is_private: bool


class Connection:
    """One client's connection, served in the thread that makes it; `handle` returns when it ends."""

    def __init__(
        self, client: socket.socket, *, answer: Callable[[Request], Reply], bounds: Bounds, room: Room, is_private: bool
    ) -> None:
        self.connection = client
        self.doing, self.since = Doing.WAITING, time.monotonic()
        self.is_last = threading.Event()
        self._ends = False
        self._answer = answer
        self._bounds = bounds
        self._room = room
        self._is_private = is_private
        self._file: BinaryIO = client.makefile("rb")

    def handle(self) -> None:
        """Answer request after request."""
        try:
            while not self._ends:
                self._exchange()
        except OSError:
            pass  # the client is gone, or the listener has closed the connection
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the socket, which the file that reads from it holds too."""
        self._file.close()
        self.connection.close()

    def close_idle(self) -> bool:
        """Close a connection that waits for a request; False when it is busy, or one is just arriving."""
        if self.doing is not Doing.WAITING or self._has_arrived():
            return False
        self.close_now()
        return True

    def close_now(self) -> None:
        """End the connection, whatever it is doing."""
        self._now(Doing.LEAVING)
        with contextlib.suppress(OSError):  # it may have ended by itself
            self.connection.shutdown(socket.SHUT_RDWR)

    @property
    def is_overdue(self) -> bool:
        """Whether its client has been silent, or slow, for too long."""
        limits = {Doing.WAITING: self._bounds.waiting_s, Doing.ANSWERING: float("inf")}
        return time.monotonic() - self.since > limits.get(self.doing, self._bounds.transfer_s)

    def _has_arrived(self) -> bool:
        try:
            return bool(self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except OSError:
            return False

    def _now(self, doing: Doing) -> None:
        self.doing, self.since = doing, time.monotonic()

    def _exchange(self) -> None:
        self._now(Doing.WAITING)
        line = self._file.readline(LINE_BYTES + 1)
        if line in (b"\r\n", b"\n"):
            # what some clients send after a body (RFC 9112, 2.2)
            line = self._file.readline(LINE_BYTES + 1)
        self._now(Doing.RECEIVING)
        if len(line) <= LINE_BYTES and (not line.endswith(b"\n") or not line.strip()):
            # the client has ended, as a rule between two requests
            self._ends = True
            return
        head: Head | None = None
        try:
            head = read_head(line, Lines(self._file, self._bounds.head_bytes))
            self._check_origin(head)
        except Refusal as refusal:
            self._refuse(refusal, head)
            return
        self._answer_request(head)

    def _answer_request(self, head: Head) -> None:
        with self._room.claims(2 * self._bounds.body_bytes) as claim:
            try:
                if head.asks_first:
                    # too large a body is refused when its length is looked at
                    self.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = read_body(self._file, head.fields, version=head.version, bounds=self._bounds, claim=claim)
            except Refusal as refusal:
                self._refuse(refusal, head)
                return
            self._now(Doing.ANSWERING)
            request = Request(
                method=head.method,
                path=head.path,
                headers=head.fields,  # type: ignore[arg-type]  # a mapping without regard to case
                body=body,
                is_private=self._is_private,
            )
            reply = answer_safely(self._answer, request)
        self._ends = head.is_last or self.is_last.is_set()
        self._send(reply, head)

    def _check_origin(self, head: Head) -> None:
        """Refuse, on a port, what no client of ours sends: pages in browsers, and who came by another name."""
        if self._is_private:
            return
        # a page from anywhere can make a browser on this device send requests to loopback, under any name (rebinding)
        host = (head.fields.get("host") or "localhost").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if "origin" in head.fields:
            raise Refusal(403, f"expected a program on this device, got a page of {head.fields['origin'][:60]!r}")
        if name not in _LOOPBACK:
            raise Refusal(403, f"expected a program on this device asking for localhost, got one for {host[:60]!r}")

    def _refuse(self, refusal: Refusal, head: Head | None) -> None:
        """Refuse a request, and end the connection: what is left of it would be read as the next one."""
        self._ends = True
        self._send(refused(refusal.status, str(refusal)), head)
        # closed with bytes unread, the client's kernel may throw the answer away (RFC 9112, 9.6)
        self.connection.shutdown(socket.SHUT_WR)
        left = _DRAINED_BYTES
        while left > 0 and (data := self.connection.recv(LINE_BYTES)):
            left -= len(data)

    def _send(self, reply: Reply, to: Head | None) -> None:
        self._now(Doing.SENDING)
        # no Date: RFC 9110, 6.6.1, wants none of an origin whose clock is not to be relied on, and a device's is not
        lines = [f"HTTP/1.1 {reply.status} {_phrase(reply.status)}"]
        lines += [f"{name}: {value}" for name, value in reply.headers.items()]
        if reply.status != HTTPStatus.NO_CONTENT:
            lines.append(f"content-length: {len(reply.body)}")
        if self._ends:
            lines.append("connection: close")
        elif to is not None and to.version == "HTTP/1.0":
            lines.append("connection: keep-alive")
        head = "\r\n".join((*lines, "", "")).encode("latin-1", "replace")
        # who asked for the head alone would read a body as the next answer (RFC 9110, 9.3.2)
        body = b"" if to is not None and to.method == "HEAD" else reply.body
        if len(body) < LINE_BYTES:
            self.connection.sendall(head + body)
        else:
            self.connection.sendall(head)
            self.connection.sendall(body)


def answer_safely(answer: Callable[[Request], Reply], request: Request) -> Reply:
    """Return a reply whatever happens: each error's leaf says who should act, and so which status it is."""
    try:
        return answer(request)
    except Refusal as refusal:
        return refused(refusal.status, str(refusal), allow=refusal.allow)
    except Rejected as error:
        return refused(400, str(error))
    except Unavailable as error:
        return refused(503, str(error))
    except SkerryError as error:
        return refused(500, str(error))
    except Exception:  # noqa: BLE001 -- a mistake of ours, met by one request, must not end the others' connections
        _log.exception("%s %s", request.method, request.path[:100])
        return refused(500, "expected an answer, got a defect of the agent: its log has the trace")


def refused(status: int, problem: str, *, allow: str = "") -> Reply:
    """Return a refusal as the Open Inference Protocol writes it."""
    headers = {"content-type": "application/json"}
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["retry-after"] = "1"
    if allow:
        headers["allow"] = allow
    return Reply(status, headers, json.dumps({"error": problem}).encode())


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
