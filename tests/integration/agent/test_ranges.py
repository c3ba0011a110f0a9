"""Chunks over HTTPS: neighbours in one range, on one connection, and whatever the server does, only whole ones."""

import contextlib
import hashlib
import random
import re
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from agent.fetching.fetch import Falsified, Stalled, fetch_files
from agent.fetching.ranges import HttpsChunks
from agent.link.https import pinned
from skerry.delivery.chunks import Wanted
from skerry.delivery.sealed import make_key, open_chunk, seal_file
from skerry.errors import Rejected, Unavailable
from skerry.wire import topics
from skerry.wire.manifest import CHUNK_BYTES, describe_file
from tests.integration.agent.test_enrol import make_certificate

KEY = make_key()
DATA = random.Random(5).randbytes(9 * CHUNK_BYTES + 5)
ENTRY = describe_file("model.onnx", DATA)
CHUNKS = list(seal_file(KEY, DATA, sha256=ENTRY.sha256))
SEALED = b"".join(CHUNKS)
PUBLISHED = hashlib.sha256(SEALED).hexdigest()


class Store:
    """What the server has and did, and how it shall behave."""

    def __init__(self) -> None:
        self.files = {PUBLISHED: SEALED}
        self.ranges: list[tuple[int, int]] = []
        self.connections = 0
        self.tokens: set[str] = set()
        self.cut_after = 1 << 30
        self.status = 206
        self.drip = False
        self.shift = 0


@pytest.fixture
def store() -> Store:
    """The server's store."""
    return Store()


@pytest.fixture
def chunks(store: Store, tmp_path: Path) -> Iterator[HttpsChunks]:
    """The road to a server on loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            store.connections += 1

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 -- its name in the library
            """Say nothing."""

        def do_GET(self) -> None:
            store.tokens.add(self.headers["Authorization"])
            data = store.files.get(self.path.removeprefix("/v1/blob/"))
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
            assert asked
            first, last = int(asked[1]), int(asked[2])
            store.ranges.append((first, last))
            status = 404 if data is None else store.status
            body = b"none" if data is None else data[first : last + 1] if status == 206 else data
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if status == 206:
                self.send_header("Content-Range", f"bytes {first + store.shift}-{last}/{len(data or b'')}")
            self.end_headers()
            if store.drip:
                with contextlib.suppress(OSError):
                    for _ in range(200):
                        self.wfile.write(b"x")
                        time.sleep(0.02)
            with contextlib.suppress(OSError):
                self.wfile.write(body[: store.cut_after])
            self.close_connection = store.drip or len(body) > store.cut_after

    path, ca = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    url = f"https://127.0.0.1:{server.server_address[1]}"
    road = HttpsChunks(url, context=lambda: pinned(ca), token=lambda: "t0ken", window_most_s=1.0)
    yield road
    road.close()
    server.shutdown()
    server.server_close()
    thread.join(5)


def wanted(*numbers: int, published: str = PUBLISHED) -> list[Wanted]:
    """Return chunks of the test's file to ask for."""
    lengths = [len(chunk) - 28 for chunk in CHUNKS]
    return [Wanted(ENTRY.sha256, number, published, length=lengths[number]) for number in numbers]


class Opener:
    """Opens with the key."""

    def open(self, sealed: bytes, *, sha256: str, number: int) -> bytes | None:
        """Open a chunk."""
        try:
            return open_chunk(KEY, sealed, sha256=sha256, number=number)
        except Rejected:
            return None


class Broker:
    """A broker that holds some of the chunks, or cannot be reached."""

    def __init__(self, *held: int, closed: bool = False) -> None:
        self.held = {topics.blob(PUBLISHED, number): CHUNKS[number] for number in held}
        self.closed = closed
        self.asked = 0

    def fetch_retained(self, wanted: Sequence[str], *, timeout_s: float) -> dict[str, bytes]:
        """Return what is retained."""
        assert timeout_s > 0
        self.asked += 1
        if self.closed:
            raise Unavailable("no connection")
        return {topic: self.held[topic] for topic in wanted if topic in self.held}


def test_neighbours_come_in_one_range_and_all_on_one_connection(chunks: HttpsChunks, store: Store) -> None:
    asked = wanted(0, 1, 2, 5, 9)

    found = chunks.fetch(asked, timeout_s=5)

    assert [found[each] for each in asked] == [CHUNKS[number] for number in (0, 1, 2, 5, 9)]
    step = len(CHUNKS[0])
    assert store.ranges == [(0, 3 * step - 1), (5 * step, 6 * step - 1), (9 * step, len(SEALED) - 1)]
    assert (store.connections, store.tokens) == (1, {"Bearer t0ken"})


def test_what_came_whole_before_a_cut_is_kept(chunks: HttpsChunks, store: Store) -> None:
    store.cut_after = 2 * len(CHUNKS[0]) + 100

    found = chunks.fetch(wanted(0, 1, 2, 3), timeout_s=5)

    assert {each.number for each in found} == {0, 1}


def test_a_connection_that_the_server_has_closed_is_made_again(chunks: HttpsChunks, store: Store) -> None:
    chunks.fetch(wanted(0), timeout_s=5)
    kept = chunks._connection
    assert kept is not None
    assert kept.sock is not None
    kept.sock.shutdown(2)

    assert chunks.fetch(wanted(1), timeout_s=5)
    assert store.connections == 2


def test_a_file_that_the_server_has_not_answers_nothing(chunks: HttpsChunks) -> None:
    assert chunks.fetch(wanted(0, published="e" * 64), timeout_s=5) == {}


def test_a_server_without_ranges_serves_the_beginning_alone(chunks: HttpsChunks, store: Store) -> None:
    store.status = 200

    assert chunks.fetch(wanted(0, 1), timeout_s=5).keys() == set(wanted(0, 1))
    with pytest.raises(Unavailable, match="expected status 206, got 200"):
        chunks.fetch(wanted(3), timeout_s=5)


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_refusal_closes_the_road_and_says_no_token(chunks: HttpsChunks, store: Store, status: int) -> None:
    store.status = status

    with pytest.raises(Unavailable, match=f"got {status}") as refusal:
        chunks.fetch(wanted(0), timeout_s=5)
    assert "t0ken" not in str(refusal.value)


def test_another_range_than_asked_for_is_refused(chunks: HttpsChunks, store: Store) -> None:
    store.shift = 1

    with pytest.raises(Unavailable, match="expected the range from 0, got another"):
        chunks.fetch(wanted(0), timeout_s=5)


def test_a_server_that_drips_is_cut_off(chunks: HttpsChunks, store: Store) -> None:
    store.drip = True
    began = time.monotonic()

    with contextlib.suppress(Unavailable):
        assert chunks.fetch(wanted(0), timeout_s=5) == {}

    assert time.monotonic() - began < 3


def fetch(broker: Broker, folder: Path, chunks: HttpsChunks | None, *roads: str) -> bool:
    """Fetch the test's file by these roads."""
    return fetch_files(
        broker,
        folder,
        [ENTRY],
        sealed={"model.onnx": PUBLISHED},
        opener=Opener(),
        timeout_s=1.0,
        https=chunks,
        roads=roads,
    ).complete


def test_the_preferred_road_is_taken_and_the_other_left_alone(
    chunks: HttpsChunks, store: Store, tmp_path: Path
) -> None:
    broker = Broker(*range(10))

    assert fetch(broker, tmp_path / "a", chunks, "https", "mqtt")
    assert broker.asked == 0
    seen = len(store.ranges)
    assert fetch(broker, tmp_path / "b", chunks, "mqtt", "https")
    assert len(store.ranges) == seen


def test_where_the_broker_stalls_only_what_is_missing_comes_over_https(
    chunks: HttpsChunks, store: Store, tmp_path: Path
) -> None:
    assert fetch(Broker(*range(7)), tmp_path, chunks, "mqtt", "https")
    assert store.ranges == [(7 * len(CHUNKS[0]), len(SEALED) - 1)]


def test_without_a_connection_to_the_broker_https_is_the_road(chunks: HttpsChunks, tmp_path: Path) -> None:
    assert fetch(Broker(closed=True), tmp_path, chunks, "mqtt", "https")


def test_where_the_server_does_not_answer_the_broker_is_the_road(
    chunks: HttpsChunks, store: Store, tmp_path: Path
) -> None:
    store.status = 503

    assert fetch(Broker(*range(10)), tmp_path, chunks, "https", "mqtt")


def test_a_device_without_https_takes_the_broker(tmp_path: Path) -> None:
    assert fetch(Broker(*range(10)), tmp_path, None, "https")


def test_when_both_roads_end_the_one_is_told_that_says_most(chunks: HttpsChunks, store: Store, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no connection") as closed:
        fetch(Broker(closed=True), tmp_path, None, "mqtt")
    assert not isinstance(closed.value, Stalled)

    store.files.clear()
    with pytest.raises(Stalled) as stalled:
        fetch(Broker(closed=True), tmp_path, chunks, "https", "mqtt")
    assert stalled.value.published == PUBLISHED

    store.files[PUBLISHED] = bytes(len(SEALED))
    with pytest.raises(Falsified):
        fetch(Broker(), tmp_path, chunks, "https", "mqtt")
