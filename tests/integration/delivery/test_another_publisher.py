"""Whoever else can write chunks: nothing of theirs is believed or written, and what is mended is fetched."""

from collections.abc import Callable

import pytest

from skerry.errors import Broken, Unavailable
from skerry.wire.codec import MAX_BYTES
from tests.conftest import Mosquitto
from tests.integration.delivery.fetcher import Artifact, Fetcher, Publisher

pytestmark = pytest.mark.broker
BAD = 5


def _flip(sealed: list[bytes]) -> bytes:
    chunk = sealed[BAD]
    return chunk[:100] + bytes([chunk[100] ^ 1]) + chunk[101:]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda _: b"", Unavailable),
        (_flip, Broken),
        (lambda sealed: sealed[BAD][:-1], Broken),
        (lambda sealed: sealed[BAD][:10], Broken),
        (lambda sealed: sealed[BAD] + b"\0", Broken),
        (lambda sealed: sealed[BAD] * 2, Broken),
        (lambda sealed: sealed[BAD] + bytes(MAX_BYTES), Unavailable),
        (lambda sealed: sealed[BAD + 1], Broken),
    ],
    ids=["deleted", "altered", "cut", "cut short", "longer", "twice", "oversized", "another's"],
)
def test_a_chunk_that_somebody_else_published_is_never_written(
    mosquitto: Mosquitto,
    publisher: Publisher,
    make_fetcher: Callable[..., Fetcher],
    change: Callable[[list[bytes]], bytes],
    error: type[Exception],
) -> None:
    artifact = Artifact(12)
    publisher.publish(artifact)
    with Publisher(mosquitto.port) as other:
        other.say(artifact.topic(BAD), change(artifact.sealed))
    fetcher = make_fetcher(mosquitto.port)
    fetcher.connect()

    with pytest.raises(error, match=artifact.entry.name):
        fetcher.fetch(artifact, timeout_s=0.3)
    # all but the bad one were taken, and nothing stands in its place
    assert fetcher.held(artifact) == 11

    publisher.say(artifact.topic(BAD), artifact.sealed[BAD])
    assert fetcher.fetch(artifact).complete
    assert fetcher.data(artifact) == artifact.data


def test_chunks_that_somebody_repeats_without_end_do_not_hold_a_fetch_up(
    mosquitto: Mosquitto, publisher: Publisher, make_fetcher: Callable[..., Fetcher]
) -> None:
    artifact = Artifact(20)
    publisher.publish(artifact)
    fetcher = make_fetcher(mosquitto.port)
    fetcher.connect()

    with Publisher(mosquitto.port) as other, other.repeating(artifact, number=0):
        assert fetcher.fetch(artifact).complete

    assert fetcher.data(artifact) == artifact.data
