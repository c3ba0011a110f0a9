"""The HTTP of the local face over real sockets: what is understood, and what is refused and how."""

import gzip
import http.client
import json
import socket
import zlib
from collections.abc import Callable

import pytest

from agent.local.local_body import Bounds
from tests.integration.serving.clients import UnixConnection
from tests.integration.serving.served import BODY, INFER, POST, Served, held


def test_one_connection_carries_many_requests(serve: Callable[..., Served]) -> None:
    served = serve()
    for connection in (UnixConnection(served.path), http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)):
        connection.request("POST", INFER, body=BODY)
        connection.getresponse().read()
        socket_then = connection.sock
        for status, body in ((200, BODY), (400, b"{}"), (200, BODY)):
            connection.request("POST", INFER, body=body)
            answer = connection.getresponse()
            assert (answer.status, bool(answer.read())) == (status, True)
        assert connection.sock is socket_then
        connection.close()


def test_requests_may_be_sent_ahead(serve: Callable[..., Served]) -> None:
    one = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (INFER.encode(), len(BODY))
    heard = serve().say(3 * (one + BODY))
    assert heard.count(b"HTTP/1.1 200 OK") == 3


def test_who_asks_for_the_head_alone_gets_that_and_the_next_answer_is_its_own(serve: Callable[..., Served]) -> None:
    served = serve()
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    for method, path, status in (
        ("HEAD", "/v2/health/ready", 200),
        ("HEAD", "/v2/models/watch", 200),
        ("HEAD", "/v2/nowhere", 404),
        ("HEAD", INFER, 405),
        ("GET", "/v2/health/live", 200),
    ):
        connection.request(method, path)
        answer = connection.getresponse()
        assert (answer.status, int(answer.headers["content-length"]) > 0) == (status, True)
        assert bool(answer.read()) == (method == "GET")
    connection.close()
    # the standard library would not notice a body that belongs to nobody
    heard = served.say(b"HEAD /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2)
    assert heard.count(b"HTTP/1.1 200 OK") == 2
    assert b"{" not in heard


@pytest.mark.parametrize("target", [b"http://localhost/v2/health/live", b"HTTP://127.0.0.1:80/v2/health/live"])
def test_a_client_may_name_the_server_in_its_first_line(serve: Callable[..., Served], target: bytes) -> None:
    heard = serve().say(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % target)
    assert heard.startswith(b"HTTP/1.1 200 OK")


def test_an_empty_line_before_a_request_is_nothing(serve: Callable[..., Served]) -> None:
    one = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (INFER.encode(), len(BODY))
    assert serve().say(2 * (one + BODY + b"\r\n")).count(b"HTTP/1.1 200 OK") == 2


def test_a_client_may_say_among_other_things_that_it_ends(serve: Callable[..., Served]) -> None:
    heard = serve().say(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nConnection: TE, close\r\nTE: trailers\r\n\r\n" * 2)
    assert heard.count(b"HTTP/1.1 200 OK") == 1
    assert b"connection: close" in heard


def test_old_clients_are_answered(serve: Callable[..., Served]) -> None:
    served = serve()
    heard = served.say(b"GET /v2 HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /v2 HTTP/1.0\r\n\r\n")
    assert heard.count(b"HTTP/1.1 200 OK") == 2
    assert heard.count(b"connection: keep-alive") == 1
    assert heard.count(b"connection: close") == 1


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_compressed_body_is_inflated(serve: Callable[..., Served], coding: str) -> None:
    served = serve()
    packed = gzip.compress(BODY) if coding == "gzip" else zlib.compress(BODY)
    assert served.ask("POST", INFER, packed, Content_Encoding=coding).status == 200
    for wrong in (b"", BODY, packed[:-1], packed + b"x", packed + packed):
        heard = served.ask("POST", INFER, wrong, Content_Encoding=coding)
        assert heard.status == 400
        assert "content-encoding" in heard.tree["error"]


def test_what_inflates_without_end_is_stopped(serve: Callable[..., Served]) -> None:
    served = serve(bounds=Bounds(body_bytes=1 << 20))
    assert served.ask("POST", INFER, gzip.compress(b"\0" * (8 << 20)), Content_Encoding="gzip").status == 413


def test_a_chunked_body_is_joined(serve: Callable[..., Served]) -> None:
    served = serve()
    pieces = iter([BODY[:5], BODY[5:6], BODY[6:]])
    assert served.ask("POST", INFER, pieces).status == 200
    head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" % INFER.encode()
    chunk = b"%x;name=value\r\n%s\r\n0\r\nTrailer: one\r\n\r\n" % (len(BODY), BODY)
    assert served.say(2 * (head + chunk)).count(b"HTTP/1.1 200 OK") == 2


CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
UNREADABLE = [
    ("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400),
    ("HTTP/0.9", b"GET /v2\r\n\r\n", 400),
    ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ("no version", b"GET /v2 HTTP/x\r\n\r\n", 400),
    ("long line", b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
    ("many headers", POST + b"A: b\r\n" * 200 + b"\r\n", 431),
    ("long head", POST + b"A: %s\r\n" % (b"b" * 1000) * 60 + b"\r\n", 431),
    ("no colon", POST + b"what is this\r\n\r\n", 400),
    ("folded first", b"GET /v2 HTTP/1.1\r\n folded: yes\r\n\r\n", 400),
    ("two lengths", POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}}", 400),
    ("signed length", POST + b"Content-Length: +2\r\n\r\n{}", 400),
    ("negative length", POST + b"Content-Length: -2\r\n\r\n{}", 400),
    ("length of words", POST + b"Content-Length: two\r\n\r\n{}", 400),
    ("huge length", POST + b"Content-Length: 99999999999\r\n\r\n{}", 413),
    ("endless length", POST + b"Content-Length: " + b"9" * 400 + b"\r\n\r\n{}", 400),
    ("length and chunks", POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("other transfer", POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    ("chunk of no size", CHUNKED + b"zz\r\n", 400),
    ("chunk of a sign", CHUNKED + b"-1\r\n", 400),
    ("chunk too large", CHUNKED + b"ffffffffff\r\n", 413),
    ("chunk too long", CHUNKED + b"1\r\nab\r\n", 400),
    ("chunk's endless size", CHUNKED + b"0" * 1000 + b"\r\n", 400),
    ("endless trailers", CHUNKED + b"0\r\n" + b"A: b\r\n" * 20_000, 431),
    ("other coding", POST + b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\n{}", 415),
]


@pytest.mark.parametrize(("data", "status"), [each[1:] for each in UNREADABLE], ids=[each[0] for each in UNREADABLE])
def test_what_cannot_be_read_is_refused_and_the_connection_closed(
    serve: Callable[..., Served], data: bytes, status: int
) -> None:
    served = serve()
    head, _, body = served.say(data + b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), head
    assert b"connection: close" in head
    # one answer: nothing after what could not be read was taken for a request
    assert list(json.loads(body)) == ["error"]
    assert served.ask("GET", "/v2").status == 200


def test_a_client_that_leaves_in_the_middle_disturbs_nobody(serve: Callable[..., Served]) -> None:
    served = serve()
    for data in (b"", b"GET", POST, POST + b"Content-Length: 90\r\n\r\n{", CHUNKED + b"5\r\nab"):
        assert served.say(data) == b""
    assert served.ask("GET", "/v2").status == 200


def test_a_client_may_ask_before_it_sends(serve: Callable[..., Served]) -> None:
    served = serve()
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as client:
        client.sendall(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(BODY)
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")


def test_a_body_that_is_too_large_is_refused_while_the_client_still_sends(serve: Callable[..., Served]) -> None:
    served = serve(bounds=Bounds(body_bytes=1000))
    heard = served.ask("POST", INFER, b" " * 500_000)
    assert (heard.status, "at most 1000 bytes" in heard.tree["error"]) == (413, True)


def test_all_bodies_together_are_bounded(serve: Callable[..., Served]) -> None:
    served = serve(bounds=Bounds(bodies_bytes=1000))
    with held(served) as others:
        others.begin(1)
        heard = served.ask("POST", INFER, BODY + b" " * (900 - len(BODY)))
        assert (heard.status, heard.headers["retry-after"]) == (503, "1")
    assert served.ask("POST", INFER, BODY + b" " * (900 - len(BODY))).status == 200
