"""The local face against bytes of any kind: each connection ends, no answer is a defect, and all memory is given back.

A fixed number of rounds; `SKERRY_FUZZ_ROUNDS` asks for more.
"""

import gzip
import json
import os
import re
import socket
import threading

import numpy as np

from agent.local.local_body import Bounds, Room
from agent.local.local_http import Connection
from agent.local.serving import Face
from tests.integration.serving.fake import FakeModels

SEED = 12
ROUNDS = int(os.environ.get("SKERRY_FUZZ_ROUNDS", "600"))
TREE = json.dumps(
    {
        "inputs": [
            {"name": "window", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}},
            {"name": "age", "shape": [1], "datatype": "INT64", "data": [3]},
        ]
    }
).encode()
BODY = TREE + bytes(12)
POST = b"POST /v2/models/watch/infer HTTP/1.1\r\nHost: localhost\r\nInference-Header-Content-Length: %d\r\n" % len(TREE)
REQUESTS = (
    POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY,
    POST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    POST + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(gzip.compress(BODY)) + gzip.compress(BODY),
    b"GET /v2/models/watch HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b'POST /skerry/v1/observations HTTP/1.1\r\nContent-Length: 92\r\n\r\n{"manifest": "%064d", "width": 5}\n' % 1,
)
INTERESTING = (b"\r\n", b"\n", b"\0", b":", b"-1", b"99999999999", b"chunked", b"Content-Length: 3\r\n", b" ", b"\xff")


def damaged(random: np.random.Generator) -> bytes:
    """Return some requests in a row, with a few edits."""
    data = b"".join(REQUESTS[int(each)] for each in random.integers(len(REQUESTS), size=int(random.integers(1, 4))))
    for _ in range(int(random.integers(4))):
        at, length = int(random.integers(len(data))), int(random.integers(1, 20))
        match int(random.integers(4)):
            case 0:
                data = data[:at] + random.bytes(length) + data[at + length :]
            case 1:
                data = data[:at] + data[at + length :]
            case 2:
                data = data[:at] + INTERESTING[int(random.integers(len(INTERESTING)))] + data[at:]
            case _:
                data = data[: at + 1]
    return data


def test_whatever_a_client_sends_is_answered_or_ended() -> None:
    random = np.random.default_rng(SEED)
    room = Room(1 << 20)
    face = Face(FakeModels())
    statuses: dict[int, int] = {}
    for number in range(ROUNDS):
        data = damaged(random)
        client, served = socket.socketpair()
        with client:
            client.settimeout(10)
            connection = Connection(
                served, answer=face.answer, bounds=Bounds(body_bytes=1 << 16), room=room, is_private=bool(number % 2)
            )
            thread = threading.Thread(target=connection.handle)
            thread.start()
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            heard = b"".join(iter(lambda: client.recv(1 << 16), b""))  # noqa: B023 -- used up in this round
            thread.join(10)
        assert not thread.is_alive(), data
        for status in re.findall(rb"HTTP/1.1 (\d+) ", heard):
            statuses[int(status)] = statuses.get(int(status), 0) + 1
    face.stop()
    assert 500 not in statuses, statuses
    assert {200, 400} <= statuses.keys()
    room.take(1 << 20)
