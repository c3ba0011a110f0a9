"""The frames between the daemon and a worker, over a socket pair: what both ends know of each other.

    request   verb, lengths of head and body, a row to sample       head (JSON), body
    answer    status, lengths of head, of the rows and of the body,
              width of a row                                        head (JSON), rows, body

Rows are what is to be counted, packed as `agent.local.serving_port.Rows` says. Where the request names a row to sample
and there is one, the head says `sample`: the row, and the lengths of its inputs by name, with which the body ends. A
head that says nothing is empty, so that the way of a row from a recording has no JSON at all. One request is under way
at a time. Every length has a cap.
"""

import json
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from typing import Any, NamedTuple

from agent.local.serving_port import MAX_ROWS_BYTES, Rows
from skerry.errors import Broken

MAX_HEAD_BYTES = 1 << 20
MAX_BODY_BYTES = 64 << 20
ROW_NUMBER = struct.Struct(">Q")
NO_SAMPLE = 0xFFFFFFFF
"""Stands for no row: nobody wants inputs back."""
_REQUEST = struct.Struct(">BIII")
_ANSWER = struct.Struct(">BIIII")
_PIECE = 64 * 1024
# `json.dumps` with separators makes an encoder for each call
_ENCODER = json.JSONEncoder(separators=(",", ":"))
_KEPT_BYTES = 1024
_NOTHING = Rows()


class Verb(IntEnum):
    """What a worker is asked."""

    LOAD = 0  # the head says which files; the body is the manifest
    REPLAY = 1  # the golden vectors, kept where the head says anything; afterwards the session is a fresh one
    NEXT = 2  # the row of the recording with the number in the body
    ROW = 3  # the row in the body, a line of JSON
    INFER = 4  # a request of the Open Inference Protocol; the head has the headers that it needs


class Status(IntEnum):
    """What became of it."""

    DONE = 0
    REFUSED = 1  # what was sent is wrong: the artifact (LOAD, REPLAY) or the request
    NO_INPUT = 2  # there was nothing to infer on, so nothing was learnt about the model
    AT_FAULT = 3  # the model could not judge an input that was good
    BROKEN = 4  # this machine cannot


class Request(NamedTuple):
    """One request as it is sent; `sample` is which of its rows is to come back with its inputs."""

    verb: int
    head: bytes = b""
    body: bytes | memoryview = b""
    sample: int = NO_SAMPLE


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """The inputs of one of an answer's rows: tensors by name, as little-endian bytes of the manifest's types."""

    row: int
    inputs: Mapping[str, bytes]


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """One answer; `said` is its head."""

    status: int = Status.DONE
    said: Mapping[str, Any] = field(default_factory=dict)
    rows: Rows = _NOTHING
    body: bytes | memoryview = b""
    sample: Sampled | None = None

    @property
    def reason(self) -> str:
        """Why it is not what was asked for."""
        return str(self.said.get("reason", "no reason"))


def write_head(tree: Mapping[str, Any]) -> bytes:
    """Return a head."""
    return _ENCODER.encode(tree).encode()


def send_request(wire: socket.socket, request: Request) -> None:
    """Send a request; raises `OSError`, a `TimeoutError` among them."""
    verb, head, body, sample = request
    _send(wire, _REQUEST.pack(verb, len(head), len(body), sample) + head, body)


def receive_request(wire: socket.socket) -> Request | None:
    """Wait for a request; None when the other end has closed."""
    first = wire.recv(_PIECE)
    if not first:
        return None
    data = _complete(wire, first, _REQUEST.size, deadline=None)
    verb, head, body, sample = _REQUEST.unpack_from(data)
    end = _REQUEST.size + head
    whole = _complete(wire, data, _checked(end, head=head, body=body, rows=0), deadline=None)
    return Request(verb, bytes(whole[_REQUEST.size : end]), whole[end : end + body], sample)


def send_answer(wire: socket.socket, answer: Answer) -> None:
    """Send an answer."""
    said, rows, body = answer.said, answer.rows, answer.body
    if answer.sample is not None:
        inputs = answer.sample.inputs
        said = {**said, "sample": [answer.sample.row, {name: len(values) for name, values in inputs.items()}]}
        body = b"".join((body, *inputs.values()))
    head = write_head(said) if said else b""
    fixed = _ANSWER.pack(answer.status, len(head), len(rows.data), len(body), rows.width)
    _send(wire, fixed + head + rows.data, body)


def receive_answer(wire: socket.socket, *, deadline: float) -> Answer:
    """Return the answer to what was asked.

    Raises:
        TimeoutError: it was not there at the deadline (of the monotonic clock).
        OSError: the other end is gone.
        Broken: it is none.
    """
    data = _complete(wire, b"", _ANSWER.size, deadline=deadline)
    status, head, rows, body, width = _ANSWER.unpack_from(data)
    begin, middle = _ANSWER.size + head, _ANSWER.size + head + rows
    whole = _complete(wire, data, _checked(middle, head=head, body=body, rows=rows), deadline=deadline)
    if len(whole) > middle + body:
        raise Broken(f"worker: expected an answer of {middle + body} bytes, got more")
    try:
        said = _read_head(bytes(whole[_ANSWER.size : begin])) if head else {}
        counted = Rows(width, bytes(whole[begin:middle])) if rows else _NOTHING
    except (ValueError, RecursionError) as error:
        raise Broken(f"worker: expected an answer, got: {error}") from error
    if not isinstance(said, dict):
        raise Broken(f"worker: expected an object at the head of an answer, got {type(said).__name__}")
    if "sample" not in said:
        return Answer(status, said, counted, whole[middle:])
    sample, kept = _sampled(said["sample"], whole[middle:])
    return Answer(status, said, counted, kept, sample)


def _sampled(said: Any, body: bytes | memoryview) -> tuple[Sampled, bytes | memoryview]:
    """Return what was sampled, and the body without it."""
    try:
        row, lengths = int(said[0]), said[1]
        end = start = len(body) - sum(lengths.values())
        inputs = {}
        for name, length in lengths.items():
            inputs[name] = bytes(body[end : end + length])
            end += length
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise Broken(f"worker: expected a row and the lengths of its inputs, got: {error}") from error
    if start < 0 or [len(each) for each in inputs.values()] != list(lengths.values()):
        raise Broken(f"worker: expected inputs of {lengths} bytes, got a body of {len(body)}")
    return Sampled(row, inputs), body[:start]


def _read_head(head: bytes) -> Any:
    return _read_again(head) if len(head) <= _KEPT_BYTES else json.loads(head)


@lru_cache(64)
def _read_again(head: bytes) -> Any:
    # a model's answers have few heads
    return json.loads(head)


def _checked(start: int, *, head: int, body: int, rows: int) -> int:
    """Return where a frame ends; raises `Broken` when it claims to be longer than one may be."""
    for what, got, most in (
        ("head", head, MAX_HEAD_BYTES),
        ("rows", rows, MAX_ROWS_BYTES),
        ("body", body, MAX_BODY_BYTES),
    ):
        if got > most:
            raise Broken(f"worker: expected a {what} of at most {most} bytes, got {got}")
    return start + body


def _send(wire: socket.socket, first: bytes, body: bytes | memoryview) -> None:
    if len(body) <= _PIECE:
        # one system call and one wake-up of the other end
        wire.sendall(first + body if body else first)
        return
    wire.sendall(first)
    wire.sendall(body)


def _complete(
    wire: socket.socket, data: bytes | memoryview, length: int, *, deadline: float | None
) -> memoryview | bytes:
    """Return at least `length` bytes of a frame of which some are here, and nothing beyond the frame is ever sent."""
    if len(data) >= length:
        return data
    if not data and deadline is not None:
        data = _receive(wire, _PIECE, deadline)
        if len(data) >= length:
            return data
    whole = bytearray(max(length, len(data)))
    view = memoryview(whole)
    have = len(data)
    view[:have] = data
    while have < length:
        piece = _receive(wire, min(length - have, 1 << 20), deadline)
        view[have : have + len(piece)] = piece
        have += len(piece)
    return view


def _receive(wire: socket.socket, most: int, deadline: float | None) -> bytes:
    if deadline is not None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        wire.settimeout(left)
    piece = wire.recv(most)
    if not piece:
        raise ConnectionResetError("its end")
    return piece
