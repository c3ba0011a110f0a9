"""What a worker writes on standard error is in the agent's log, and no flood of it."""

import io
import logging
import time

import pytest

from agent.inference.workers import LAST_LINES, MOST_LINES, _pass_on


class Stream(io.BytesIO):
    """Lines that come a while after one another."""

    def __init__(self, lines: int, *, each_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(b"".join(b"line %d\n" % number for number in range(lines)))
        self._now, self._each_s = 0.0, each_s
        monkeypatch.setattr(time, "monotonic", lambda: self._now)

    def readline(self, size: int | None = -1, /) -> bytes:
        self._now += self._each_s
        return super().readline(size)


def said(caplog: pytest.LogCaptureFixture, stream: Stream) -> list[str]:
    with caplog.at_level(logging.INFO):
        _pass_on(stream)
    return caplog.messages


def lines(first: int, last: int) -> list[str]:
    return [f"worker: line {number}" for number in range(first, last)]


def test_a_few_lines_are_all_in_the_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(caplog, Stream(MOST_LINES, each_s=0.001, monkeypatch=monkeypatch)) == lines(0, MOST_LINES)


def test_a_flood_is_counted_and_its_end_is_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said(caplog, Stream(10_000, each_s=0.001, monkeypatch=monkeypatch)) == [
        *lines(0, MOST_LINES),
        f"worker: more than {MOST_LINES} lines in 60 s; what follows is left out",
        f"worker: {10_000 - MOST_LINES - LAST_LINES} lines were left out",
        *lines(10_000 - LAST_LINES, 10_000),
    ]


def test_a_worker_that_never_stops_has_its_say_each_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # ten minutes of ten lines a second
    found = said(caplog, Stream(6000, each_s=0.1, monkeypatch=monkeypatch))

    assert len(found) < 11 * (MOST_LINES + 2) + LAST_LINES
    assert len([line for line in found if line.endswith("lines were left out")]) in (10, 11)
    assert found[-1] == "worker: line 5999"
