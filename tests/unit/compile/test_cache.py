"""A cache may forget, never lie: damaged entries are missing, the folder is bounded, keys name what they depend on."""

import os
from pathlib import Path

import pytest

from converters.cache import Cache, key_of, tool_versions, writer_version


def test_what_was_put_is_found_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    assert cache.get("abc") is None
    cache.put("abc", b"result")
    assert Cache(tmp_path / "cache").get("abc") == b"result"


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 500])
def test_a_damaged_entry_is_missing_and_is_gone(tmp_path: Path, damage: bytes) -> None:
    cache = Cache(tmp_path)
    cache.put("abc", b"result")
    (tmp_path / "abc").write_bytes(damage)
    assert cache.get("abc") is None
    assert not (tmp_path / "abc").exists()


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put("abc", b"result")
    whole = (tmp_path / "abc").read_bytes()
    for bit in range(0, len(whole) * 8, 7):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "abc").write_bytes(flipped)
        assert cache.get("abc") is None


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit_bytes=1000)
    for position, key in enumerate(("one", "two", "three")):
        cache.put(key, bytes(260))
        os.utime(tmp_path / key, (position, position))
    assert cache.get("one") is not None  # used now, so the oldest is two
    cache.put("four", bytes(260))
    assert [key for key in ("one", "two", "three", "four") if cache.get(key) is not None] == ["one", "three", "four"]


def test_what_is_larger_than_the_folder_may_be_is_not_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit_bytes=100)
    cache.put("small", b"1")
    cache.put("large", bytes(200))
    assert cache.get("large") is None
    assert cache.get("small") == b"1"


def test_a_folder_that_cannot_be_written_keeps_nothing_and_raises_nothing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    cache = Cache(file / "cache")
    cache.put("abc", b"result")
    assert cache.get("abc") is None
    assert cache.keys("") == ()


def test_keys_are_found_by_their_beginning(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for key in ("history-a-one", "history-a-two", "history-b-one", "abc"):
        cache.put(key, b"1")
    assert cache.keys("history-a-") == ("history-a-one", "history-a-two")


@pytest.mark.parametrize("key", ["", "../up", "a/b", ".hidden", "Upper", "a" * 200])
def test_a_key_that_is_no_plain_name_is_a_mistake(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="expected a key"):
        Cache(tmp_path).get(key)


def test_a_key_depends_on_every_part_and_not_on_their_order() -> None:
    parts = {"source": "a", "precision": "int8", "tools": {"onnx": "1"}}
    assert key_of(parts) == key_of(dict(reversed(parts.items())))
    others = [{**parts, "source": "b"}, {**parts, "precision": "int8-hybrid"}, {**parts, "tools": {"onnx": "2"}}]
    assert len({key_of(one) for one in (parts, *others)}) == 4


def test_the_tools_and_the_writers_have_versions() -> None:
    assert tool_versions()["numpy"] != "none"
    assert len(writer_version()) == 64
