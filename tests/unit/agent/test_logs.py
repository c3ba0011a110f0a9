"""Log lines: for people, for programs, for the journal; and each is bounded."""

import io
import json
import logging
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from agent.__main__ import main
from agent.upkeep.logs import FORMATS, JSON, MAX_CHARS, TEXT, is_journal, make_formatter


def record(message: str, *args: object, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("skerry.agent.link", level, "file.py", 1, message, args, None)


def failed() -> logging.LogRecord:
    try:
        raise ValueError("no\nsuch thing")
    except ValueError:
        return logging.LogRecord("skerry.agent", logging.ERROR, "file.py", 1, "it failed", (), sys.exc_info())


def test_a_line_for_people_has_the_time_and_the_message() -> None:
    line = make_formatter(TEXT, is_journal=False).format(record("connected to %s", "plant"))
    time, _, message = line.partition(" ")
    assert (len(time), message) == (8, "connected to plant")


def test_a_line_for_programs_is_one_object() -> None:
    line = make_formatter(JSON, is_journal=False, device="plant.press-4").format(record("two\nlines: ä"))
    tree = json.loads(line)
    assert "\n" not in line
    assert datetime.fromisoformat(tree.pop("time")).tzinfo is not None
    assert tree == {
        "level": "warning",
        "logger": "skerry.agent.link",
        "message": "two\nlines: ä",
        "device": "plant.press-4",
    }


def test_a_trace_stays_in_its_object() -> None:
    line = make_formatter(JSON, is_journal=False).format(failed())
    assert "ValueError" in json.loads(line)["trace"]
    assert "\n" not in line


def test_each_line_for_the_journal_has_its_priority_and_no_time() -> None:
    formatter = make_formatter(TEXT, is_journal=True)
    levels = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}
    for level, priority in levels.items():
        assert formatter.format(record("said", level=level)) == f"<{priority}>said"
    assert all(line.startswith("<3>") for line in formatter.format(failed()).splitlines())


def test_the_last_line_is_one_of_the_form_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logging_before = logging.getLogger().handlers[:], logging.getLogger().level
    try:
        for form in FORMATS:
            assert main(["status", "--state", str(tmp_path / "none"), "--log-format", form]) == 2
    finally:
        logging.getLogger().handlers[:], level = logging_before
        logging.getLogger().setLevel(level)
    plain, structured = capsys.readouterr().err.splitlines()
    assert plain.startswith("skerry-agent: ")
    assert (json.loads(structured)["level"], plain.endswith(json.loads(structured)["message"])) == ("error", True)


def test_a_path_that_the_locale_cannot_write_is_no_trouble(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agent", "doctor", "--state", str(tmp_path / "é")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    assert r"\xe9, got none" in done.stdout


def test_a_line_is_bounded() -> None:
    for form in (TEXT, JSON):
        line = make_formatter(form, is_journal=False).format(record("x" * 1_000_000))
        assert len(line) < MAX_CHARS + 300


def test_the_journal_is_known_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with path.open("w") as stream, (tmp_path / "other").open("w") as other:
        there = os.fstat(stream.fileno())
        environment = {"JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino}"}
        assert is_journal(stream, environment)
        assert not is_journal(other, environment)
        assert not is_journal(stream, {})
    assert not is_journal(io.StringIO(), environment)
