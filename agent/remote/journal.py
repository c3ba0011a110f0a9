"""The last lines of the agent's own log, in memory and bounded, for an operator who asks for them.

What is secret never gets in: every line is cleaned before it is kept, by its form (credentials in addresses, tokens,
keys) and of the very secrets that this agent holds.
"""

import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterable

MAX_LINES = 2000
MAX_CHARS = 256 * 1024
MAX_LINE_BYTES = 500
_HIDDEN = "[hidden]"
_FORMS = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL), _HIDDEN),
    (re.compile(r"(?<=://)[^/\s@]+@"), f"{_HIDDEN}@"),
    # a join string: a claim token and the hash of the anchor
    (re.compile(r"#[^\s#:]+:[0-9a-f]{16,64}"), f"#{_HIDDEN}"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}"), rf"\1 {_HIDDEN}"),
    (re.compile(r"(?i)\b(pass(?:word|phrase)?|secret|token|api[_-]?key|ticket)(\s*[=:]\s*)\S+"), rf"\1\2{_HIDDEN}"),
)


class Journal(logging.Handler):
    """Keeps the newest lines; `secrets` are the texts that must never be among them."""

    def __init__(self, secrets: Callable[[], Iterable[str]] = tuple) -> None:
        super().__init__(logging.DEBUG)
        self._secrets = secrets
        self._lines: deque[str] = deque()
        self._size = 0
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line of the log."""
        try:
            line = self._clean(record.getMessage().replace("\n", " | "))
        except Exception:  # noqa: BLE001 -- whatever a line does, logging it must never stop what is logged
            self.handleError(record)
            return
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        whole = f"{at} {record.levelname.lower()} {line}".encode(errors="backslashreplace")
        kept = whole[:MAX_LINE_BYTES].decode(errors="ignore")
        self._lines.append(kept)
        self._size += len(kept)
        while len(self._lines) > MAX_LINES or self._size > MAX_CHARS:
            self._size -= len(self._lines.popleft())
            self.dropped += 1

    def last(self, lines: int) -> list[str]:
        """Return the last lines, oldest first."""
        self.acquire()
        try:
            return list(self._lines)[-lines:]
        finally:
            self.release()

    def _clean(self, line: str) -> str:
        for secret in self._secrets():
            if len(secret) >= 6:
                line = line.replace(secret, _HIDDEN)
        for form, instead in _FORMS:
            line = form.sub(instead, line)
        return line
