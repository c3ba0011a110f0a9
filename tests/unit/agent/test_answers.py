"""Results kept for equal inputs: what is equal, and how much is kept."""

import subprocess
import sys

from agent.local.answers import Answers, key_of
from agent.local.serving_port import Reply, Rows


def reply(size: int) -> Reply:
    return Reply(200, {}, b"x" * size, "m")


def test_a_key_is_of_a_manifest_a_body_and_where_its_json_ends() -> None:
    keys = {
        key_of(manifest, head=head, body=body)
        for manifest in ("a" * 64, "b" * 64)
        for head in ({}, {"inference-header-content-length": "2"})
        for body in (b"", b"{}1", b"{}2")
    }
    assert len(keys) == 12
    assert key_of("a" * 64, head={}, body=b"{}") == key_of("a" * 64, head={}, body=b"{}")


def test_what_was_given_last_stays() -> None:
    answers = Answers(8192)
    for name in (b"1", b"2", b"3", b"4"):
        answers.put(name, reply(1000))
    assert answers.get(b"1") == reply(1000)
    answers.put(b"5", reply(1000))
    assert answers.get(b"2") is None
    assert answers.get(b"1") is not None
    assert (answers.hits, answers.misses) == (2, 1)
    assert answers.size_bytes <= 8192


def test_size_is_that_of_what_is_kept() -> None:
    answers = Answers(1 << 16)
    for size in (10, 5000, 20):
        answers.put(b"same", reply(size))
    assert answers.size_bytes == 1024 + 20
    for number in range(10_000):
        answers.put(str(number).encode(), reply(number % 3000))
    assert 0 < answers.size_bytes <= 1 << 16


def test_a_large_result_does_not_push_out_all_others() -> None:
    answers = Answers(8192)
    answers.put(b"small", reply(10))
    answers.put(b"large", reply(3000))
    answers.put(b"rows", Reply(200, {}, b"", "m", Rows(width=4, data=bytes(32 * 100))))
    assert answers.get(b"large") is None
    assert answers.get(b"rows") is None
    assert answers.get(b"small") is not None


def test_the_face_needs_no_numpy() -> None:
    program = "import sys, agent.local.serving, skerry.inference.oip; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
