"""Topics, identities, join strings and the manifest's file entries."""

import pytest

from skerry.errors import Rejected
from skerry.wire import topics
from skerry.wire.join import parse_join
from skerry.wire.manifest import CHUNK_BYTES, FileEntry, describe_file

DIGEST = "0" * 64


def test_an_up_topic_tells_who_said_what() -> None:
    assert topics.split_up(topics.up("watch.a-1", "outbox")) == ("watch.a-1", "outbox")


@pytest.mark.parametrize(
    "topic",
    ["skerry/1/d/watch.a/down/ack", "skerry/1/d/watch/up/outbox", "skerry/1/d/watch.a/up/x", "skerry/1/d/../up/outbox"],
)
def test_any_other_topic_is_refused(topic: str) -> None:
    with pytest.raises(Rejected):
        topics.split_up(topic)


@pytest.mark.parametrize("name", ["", "-a", "A", "a/b", "a.b", "a+", "#", "a" * 64])
def test_a_name_that_could_leave_its_topic_level_is_refused(name: str) -> None:
    with pytest.raises(Rejected, match="device: expected"):
        topics.identity("watch", name)


def test_a_join_string_is_taken_apart() -> None:
    join = parse_join(f"https://127.0.0.1:8443/#abc:{DIGEST}\n")
    assert (join.url, join.token, join.anchor_sha256) == ("https://127.0.0.1:8443", "abc", DIGEST)


@pytest.mark.parametrize(
    "text", ["", "https://h", f"http://h#t:{DIGEST}", "https://h#t:12", f"https://h#:{DIGEST}", f"https:///#t:{DIGEST}"]
)
def test_a_join_string_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(Rejected, match="join string: expected"):
        parse_join(text)


def test_a_refused_join_string_does_not_repeat_its_token() -> None:
    with pytest.raises(Rejected) as refusal:
        parse_join("https://h#secret-token:beef")
    assert "secret-token" not in str(refusal.value)


def test_a_file_is_described_by_its_chunks() -> None:
    entry = describe_file("model.onnx", b"x" * (CHUNK_BYTES + 1))
    assert (entry.length, len(entry.chunks)) == (CHUNK_BYTES + 1, 2)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "A"])
def test_a_file_name_that_could_leave_its_folder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="plain lower-case file name"):
        FileEntry(name=name, length=0, sha256=DIGEST, chunks=())
