"""Sealed chunks and content keys: what was sealed opens in its place and for its device, and nothing else does."""

import base64
import hashlib
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from skerry.delivery.sealed import make_key, open_chunk, open_key, seal_chunk, seal_file, seal_key
from skerry.errors import Rejected
from skerry.wire.manifest import CHUNK_BYTES, SEALED_CHUNK_BYTES, SEALING_BYTES
from tests.device_keys import PRIVATE, PUBLIC, make_pair, pems

KEY = bytes(range(32))
SHA = hashlib.sha256(b"model").hexdigest()
OTHER = hashlib.sha256(b"another model").hexdigest()


@given(st.binary(max_size=300), st.integers(0, 2**32 - 1))
def test_a_chunk_opens_to_what_was_sealed(data: bytes, number: int) -> None:
    sealed = seal_chunk(KEY, data, sha256=SHA, number=number)

    assert len(sealed) == len(data) + SEALING_BYTES
    assert open_chunk(KEY, sealed, sha256=SHA, number=number) == data


@given(st.integers(0, 1 << 30), st.integers(1, 255))
def test_a_chunk_in_which_any_byte_was_changed_does_not_open(place: int, change: int) -> None:
    sealed = bytearray(seal_chunk(KEY, b"weights" * 9, sha256=SHA, number=3))
    sealed[place % len(sealed)] ^= change

    with pytest.raises(Rejected, match="expected the one sealed for"):
        open_chunk(KEY, bytes(sealed), sha256=SHA, number=3)


@given(st.integers(0, 63 + SEALING_BYTES - 1))
def test_a_chunk_that_was_cut_does_not_open(length: int) -> None:
    sealed = seal_chunk(KEY, b"weights" * 9, sha256=SHA, number=3)

    with pytest.raises(Rejected):
        open_chunk(KEY, sealed[:length], sha256=SHA, number=3)


@pytest.mark.parametrize(
    ("key", "sha256", "number"), [(bytes(32), SHA, 3), (KEY, OTHER, 3), (KEY, SHA, 4)], ids=["key", "file", "place"]
)
def test_a_chunk_of_another_key_file_or_place_does_not_open(key: bytes, sha256: str, number: int) -> None:
    sealed = seal_chunk(KEY, b"weights", sha256=SHA, number=3)

    with pytest.raises(Rejected):
        open_chunk(key, sealed, sha256=sha256, number=number)


def test_the_same_chunk_is_never_sealed_the_same_way_twice() -> None:
    assert len({seal_chunk(KEY, b"weights", sha256=SHA, number=0) for _ in range(100)}) == 100


@pytest.mark.parametrize("length", [0, 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 5])
def test_a_sealed_file_is_its_sealed_chunks_at_even_places(length: int) -> None:
    data = bytes(number % 251 for number in range(length))
    sealed = b"".join(seal_file(KEY, data, sha256=SHA))

    opened = [
        open_chunk(KEY, sealed[start : start + SEALED_CHUNK_BYTES], sha256=SHA, number=number)
        for number, start in enumerate(range(0, len(sealed), SEALED_CHUNK_BYTES))
    ]
    assert b"".join(opened) == data


def test_a_content_key_opens_for_its_device_alone() -> None:
    sealed = seal_key(KEY, PUBLIC, who="watch.gull-1")
    another, _ = make_pair()

    assert open_key(sealed, PRIVATE, who="watch.gull-1") == KEY
    for private, who in ((another, "watch.gull-1"), (PRIVATE, "watch.gull-2"), (PRIVATE, "other.gull-1")):
        with pytest.raises(Rejected, match=f"expected one sealed to the key of {who}"):
            open_key(sealed, private, who=who)


def garble(sealed: str, place: int) -> str:
    """Return a sealed key with one byte changed."""
    raw = bytearray(base64.b64decode(sealed))
    raw[place % len(raw)] ^= 1
    return base64.b64encode(raw).decode()


@given(st.integers(0, 112))
def test_a_content_key_in_which_any_byte_was_changed_does_not_open(place: int) -> None:
    with pytest.raises(Rejected, match="got one that it does not open"):
        open_key(garble(seal_key(KEY, PUBLIC, who="watch.a"), place), PRIVATE, who="watch.a")


@pytest.mark.parametrize("sealed", ["", "AA==", "not base64!", "é", "A" * 151])
def test_what_is_no_sealed_key_is_refused(sealed: str) -> None:
    with pytest.raises(Rejected, match="got one that it does not open"):
        open_key(sealed, PRIVATE, who="watch.a")


def test_a_content_key_of_another_length_is_refused() -> None:
    with pytest.raises(Rejected, match="expected 32 bytes, got 16"):
        open_key(seal_key(bytes(16), PUBLIC, who="watch.a"), PRIVATE, who="watch.a")


@pytest.mark.parametrize(
    "make", [ed25519.Ed25519PrivateKey.generate, lambda: ec.generate_private_key(ec.SECP384R1())], ids=["ed", "p384"]
)
def test_a_device_key_of_another_kind_is_refused(make: Callable[[], ec.EllipticCurvePrivateKey]) -> None:
    private, public = pems(make())

    with pytest.raises(Rejected, match="expected an EC P-256 public key"):
        seal_key(KEY, public, who="watch.a")
    with pytest.raises(Rejected):
        open_key(seal_key(KEY, PUBLIC, who="watch.a"), private, who="watch.a")


@pytest.mark.parametrize("pem", ["", "garbage", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_what_is_no_key_is_refused(pem: str) -> None:
    with pytest.raises(Rejected, match="expected an EC P-256 public key"):
        seal_key(make_key(), pem, who="watch.a")
    with pytest.raises(Rejected, match="device key: expected an EC P-256 key"):
        open_key(seal_key(KEY, PUBLIC, who="watch.a"), pem.encode(), who="watch.a")
