"""A bundle's form: what it holds it gives back as a broker would, and anything else is refused before it is used."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skerry.delivery.bundle import ASSIGN, HEADER, Bundle, Header, open_bundle, write_bundle
from skerry.errors import Rejected
from skerry.wire import codec, topics
from skerry.wire.manifest import SEALED_CHUNK_BYTES

BLOB = bytes(range(256)) * 600
NAME = hashlib.sha256(BLOB).hexdigest()
NOTE = Header(project="watch", device="gull-1", release="strokes-1", created="", expires="", server="https://shore")
MEMBERS = {
    HEADER: codec.encode(NOTE),
    ASSIGN: b"{}",
    "tuf/index": b"index",
    "tuf/3.automatic-watch": b"delegated",
    f"blob/{NAME}": BLOB,
}
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


def stick(folder: Path, members: dict[str, bytes]) -> Path:
    """Write a bundle."""
    path = folder / "stick.zip"
    with path.open("wb") as file:
        write_bundle(file, members)
    return path


@pytest.fixture
def held(tmp_path: Path) -> Bundle:
    """An open bundle."""
    return open_bundle(stick(tmp_path, MEMBERS))


def test_a_bundle_answers_like_a_broker(held: Bundle) -> None:
    wanted = [
        *(topics.blob(NAME, number) for number in range(4)),
        topics.blob("0" * 64, 0),
        topics.tuf("watch", "index"),
        topics.tuf("watch", "3.automatic-watch"),
        topics.tuf("watch", "timestamp"),
        topics.tuf("other", "index"),
        topics.down("watch.gull-1", "assign"),
    ]

    found = held.fetch_retained(wanted, timeout_s=1.0)

    assert found == {
        topics.blob(NAME, 0): BLOB[:SEALED_CHUNK_BYTES],
        topics.blob(NAME, 1): BLOB[SEALED_CHUNK_BYTES : 2 * SEALED_CHUNK_BYTES],
        topics.blob(NAME, 2): BLOB[2 * SEALED_CHUNK_BYTES :],
        topics.tuf("watch", "index"): b"index",
        topics.tuf("watch", "3.automatic-watch"): b"delegated",
    }
    held.close()


def test_the_same_members_give_the_same_bundle(tmp_path: Path) -> None:
    first = stick(tmp_path, MEMBERS).read_bytes()

    assert stick(tmp_path, dict(reversed(MEMBERS.items()))).read_bytes() == first


@SHARED
@given(st.integers(0, 1 << 30), st.integers(1, 255))
def test_a_bundle_in_which_any_byte_was_changed_is_the_same_one_or_refused(
    tmp_path: Path, place: int, change: int
) -> None:
    data = bytearray(stick(tmp_path, MEMBERS).read_bytes())
    data[place % len(data)] ^= change
    path = tmp_path / "changed.zip"
    path.write_bytes(data)

    try:
        held = open_bundle(path)
    except Rejected:
        return
    # a date or an attribute that nobody reads
    assert {name: held.read(name) for name in MEMBERS} == MEMBERS
    held.close()


@SHARED
@given(st.binary(max_size=400), st.booleans())
def test_what_is_no_bundle_is_refused(tmp_path: Path, data: bytes, ends: bool) -> None:
    path = tmp_path / "found.zip"
    path.write_bytes(data + (b"PK\5\6" + bytes(18) if ends else b""))

    with pytest.raises(Rejected):
        open_bundle(path)


@pytest.mark.parametrize(
    "name", ["x", "tuf/../x", "tuf/a/b", "tuf/.hidden", "blob/short", "blob/" + "G" * 64, "BUNDLE.JSON", "tuf/", "a\\b"]
)
def test_any_other_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Rejected, match="expected names of a bundle"):
        open_bundle(stick(tmp_path, MEMBERS | {name: b""}))


@pytest.mark.parametrize("note", [b"", b"{}", b"[]", b"\xff", codec.encode(NOTE).replace(b"skerry-bundle", b"another")])
def test_a_bundle_that_does_not_say_what_it_is_is_refused(tmp_path: Path, note: bytes) -> None:
    with pytest.raises(Rejected):
        open_bundle(stick(tmp_path, MEMBERS | {HEADER: note}))


def test_a_folder_or_nothing_is_no_bundle(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(Rejected):
            open_bundle(path)
