"""The agent's log as a server may ask for it: without secrets, bounded, compressed where that helps."""

import logging
from typing import Any

import pytest

from agent.remote.journal import MAX_LINE_BYTES, MAX_LINES, Journal
from skerry.errors import Rejected
from skerry.wire.requests import (
    COLLECT_LOGS,
    MAX_TEXT_BYTES,
    RESEND_WINDOW,
    check_request,
    pack_text,
    unpack_text,
)


def journal_of(*lines: str, secrets: tuple[str, ...] = ()) -> list[str]:
    journal = Journal(secrets=lambda: secrets)
    log = logging.getLogger("skerry.agent.test")
    log.addHandler(journal)
    for line in lines:
        log.warning("%s", line)
    log.removeHandler(journal)
    return journal.last(MAX_LINES)


@pytest.mark.parametrize(
    "secret",
    [
        "proxy http://gull:hunter2secret@proxy:3128 refused",
        "join https://skerry:8443#hunter2secret:" + "ab" * 32,
        "sent Authorization: Bearer hunter2secret",
        "password=hunter2secret and so on",
        "token: hunter2secret",
        "-----BEGIN EC PRIVATE KEY-----\nhunter2secret\n-----END EC PRIVATE KEY-----",
        "held hunter2secret somewhere",
    ],
)
def test_no_secret_gets_into_the_log(secret: str) -> None:
    (line,) = journal_of(secret, secrets=("", "hunter2secret") if "held" in secret else ())

    assert "hunter2secret" not in line
    assert "[hidden]" in line


def test_what_is_no_secret_stays_as_it_is() -> None:
    (line,) = journal_of("broker mqtts://broker:8883: the connection was lost; trying again, inference goes on")

    assert line.endswith("broker mqtts://broker:8883: the connection was lost; trying again, inference goes on")


def test_the_log_is_bounded() -> None:
    kept = journal_of(*("x" * 1000 for _ in range(MAX_LINES + 500)))

    assert len(kept) <= MAX_LINES
    assert max(map(len, kept)) <= MAX_LINE_BYTES


def test_short_text_travels_plain_and_long_text_compressed() -> None:
    short, long = ["one", "two"], [f"{number} {'line' * 5}" for number in range(MAX_LINES)]

    assert pack_text(short) == {"lines": 2, "left_out": 0, "text": "one\ntwo"}
    packed = pack_text(long)
    assert len(packed["zlib"]) <= MAX_TEXT_BYTES
    assert unpack_text(packed) == "\n".join(long)
    assert pack_text([]) == {"lines": 0, "left_out": 0, "text": ""}


def test_what_does_not_compress_loses_its_oldest_lines() -> None:
    import random

    dice = random.Random(1)
    lines = [f"{dice.getrandbits(1600):0400x}" for _ in range(500)]

    packed = pack_text(lines)

    assert len(packed["zlib"]) <= MAX_TEXT_BYTES
    assert 0 < packed["lines"] < 500
    assert packed["lines"] + packed["left_out"] == 500
    assert unpack_text(packed).splitlines()[-1] == lines[-1]


@pytest.mark.parametrize("result", [{}, {"zlib": "????"}, {"zlib": "AAAA"}, {"zlib": 7}])
def test_a_text_that_is_none_is_refused(result: dict[str, Any]) -> None:
    with pytest.raises(Rejected, match="answer: expected a text"):
        unpack_text(result)


def test_a_bomb_is_refused() -> None:
    import base64
    import zlib

    with pytest.raises(Rejected, match="at most"):
        unpack_text({"zlib": base64.b64encode(zlib.compress(bytes(5 << 20))).decode()})


def test_numbers_are_read_from_text_too() -> None:
    assert check_request(COLLECT_LOGS, {"lines": "20"}) == {"lines": 20}
    assert check_request(RESEND_WINDOW, {"number": "0", "manifest": "abcd"}) == {"number": 0, "manifest": "abcd"}
