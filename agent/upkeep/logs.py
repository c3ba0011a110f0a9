"""How log lines look, on standard error: for people, for programs (`json`), and for the journal of systemd.

    12:00:07 connected to mqtts://plant.example:8883 as plant.press-4
    {"time": "2026-01-31T12:00:07.004Z", "level": "info", "logger": "skerry.agent.link", "message": ..., "device": ...}
    <6>connected to mqtts://plant.example:8883 as plant.press-4

The journal has the time itself, and takes the priority from a prefix (sd-daemon(3)). A line is bounded, and no file is
written: who keeps the lines bounds them. Standard library alone, for the launcher uses it too.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import IO

TEXT, JSON = "text", "json"
FORMATS = (TEXT, JSON)
MAX_CHARS = 4000
# sd-daemon(3): syslog's priorities
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG = 7


def log_to_stderr(*, verbose: bool, form: str, environment: Mapping[str, str], device: str = "") -> None:
    """Send every line of this process to standard error; what was set up before is replaced."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(make_formatter(form, is_journal=is_journal(sys.stderr, environment), device=device))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler], force=True)


def make_formatter(form: str, *, is_journal: bool, device: str = "") -> logging.Formatter:
    """Return the formatter for a form of `FORMATS`."""
    inner: logging.Formatter = Json(device) if form == JSON else Text(timed=not is_journal)
    return Prioritised(inner) if is_journal else inner


def is_journal(stream: IO[str], environment: Mapping[str, str]) -> bool:
    """Say whether what is written to `stream` goes to the journal: by the file that systemd names (systemd.exec(5))."""
    try:
        there = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    # inherited by children whose standard error is another file, so its being there says nothing
    return environment.get("JOURNAL_STREAM", "") == f"{there.st_dev}:{there.st_ino}"


class Text(logging.Formatter):
    """Lines for people."""

    def __init__(self, *, timed: bool) -> None:
        super().__init__("%(asctime)s %(message)s" if timed else "%(message)s", datefmt="%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; a trace has several."""
        return _bounded(super().format(record))


class Json(logging.Formatter):
    """One object a line."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        whole, fraction = divmod(record.created, 1)
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
        tree = {
            "time": f"{moment}.{int(fraction * 1000):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _bounded(record.getMessage()),
            "device": self._device,
        }
        if record.exc_info:
            tree["trace"] = _bounded(self.formatException(record.exc_info))
        return json.dumps(tree, ensure_ascii=False)


class Prioritised(logging.Formatter):
    """Lines for the journal: each has its priority in front, those of a trace too."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), _DEBUG)
        return "\n".join(f"<{priority}>{line}" for line in self._inner.format(record).splitlines())


def _bounded(text: str) -> str:
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]} ... {len(text) - MAX_CHARS} characters more"
