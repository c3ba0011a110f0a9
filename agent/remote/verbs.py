"""What an operator may ask of this device, done: its log, a self-test, a restart of the model, a window once more."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from agent.remote.inbox import Verb
from agent.remote.journal import Journal
from skerry.errors import Broken, Rejected, Unavailable
from skerry.wire.messages import Outbox
from skerry.wire.requests import (
    COLLECT_LOGS,
    DEFAULT_LINES,
    RESEND_WINDOW,
    RESTART_MODEL,
    SELF_TEST,
    pack_text,
)

SELF_TEST_S = 120.0
SPACE_S = 60.0
MAX_TABLE_BYTES = 32 * 1024
_POLL_S = 0.2


class Windows(Protocol):
    """Where closed windows wait to be acknowledged: the outbox."""

    def again(self, *, sequence: int | None, number: int | None, manifest: str) -> Outbox | None:
        """Return one window as a message of its own, or None when it is no longer there."""


def make_verbs(
    *,
    journal: Journal,
    state: Path,
    stopping: threading.Event,
    restart: Callable[[str], str],
    windows: Windows,
    publish: Callable[[Outbox], None],
) -> Mapping[str, Verb]:
    """Return the verbs by name; `restart` takes a component's name and says what runs afresh, or raises."""

    def collect_logs(args: Mapping[str, Any]) -> dict[str, Any]:
        return {**pack_text(journal.last(args.get("lines", DEFAULT_LINES))), "dropped": journal.dropped}

    def self_test(_args: Mapping[str, Any]) -> dict[str, Any]:
        return run_self_test(state, stopping=stopping)

    def restart_model(args: Mapping[str, Any]) -> dict[str, Any]:
        return {"runs": restart(args.get("component", ""))}

    def resend_window(args: Mapping[str, Any]) -> dict[str, Any]:
        sequence, number = args.get("sequence"), args.get("number")
        found = windows.again(sequence=sequence, number=number, manifest=args.get("manifest", ""))
        if found is None:
            which = f"sequence {sequence}" if sequence is not None else f"number {number}"
            raise Rejected(f"window of {which}: expected it in the outbox, got none: it was acknowledged or given up")
        try:
            publish(found)
        except Unavailable as error:
            raise Rejected(f"{error}; it is in the outbox, and sent with the rest of it") from error
        entry = found.entries[0]
        return {"epoch": found.epoch, "sequence": entry.sequence, "crc": entry.crc, "sent": True}

    return {
        COLLECT_LOGS: collect_logs,
        SELF_TEST: _spaced(SELF_TEST, self_test),
        RESTART_MODEL: _spaced(RESTART_MODEL, restart_model),
        RESEND_WINDOW: resend_window,
    }


def _spaced(name: str, verb: Verb, *, least_s: float = SPACE_S) -> Verb:
    """Requests are not signed: whoever owns the broker must not keep a device busy with anything but inference."""
    last: list[float] = []

    def do(args: Mapping[str, Any]) -> dict[str, Any]:
        now = time.monotonic()
        if last and now - last[0] < least_s:
            raise Rejected(f"{name}: expected {least_s:g} s between two, got {now - last[0]:.0f}; ask again later")
        last[:] = [now]
        return verb(args)

    return do


def run_self_test(state: Path, *, stopping: threading.Event, timeout_s: float = SELF_TEST_S) -> dict[str, Any]:
    """Run the checks in a process of their own, which the end of the agent ends; return their table.

    Raises:
        Broken: it did not end in time, or ended without a table.
    """
    # -P: the working folder is not searched for modules
    command = [sys.executable, "-P", "-m", "agent.remote.self_test", "--state", str(state)]
    try:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        raise Broken(f"self-test: expected to start, got: {error.strerror}") from error
    ended = threading.Event()
    watch = threading.Thread(target=_end_with, args=(child, stopping, ended, timeout_s), daemon=True)
    watch.start()
    assert child.stdout is not None  # noqa: S101 -- it was asked for
    with child:
        said = child.stdout.read(MAX_TABLE_BYTES + 1)
        # what does not read on would wait for us for ever
        child.stdout.close()
        status = child.wait()
    ended.set()
    try:
        table = json.loads(said) if len(said) <= MAX_TABLE_BYTES else None
    except ValueError:
        table = None
    if not isinstance(table, dict):
        raise Broken(f"self-test: expected a table of checks within {timeout_s:g} s, got exit status {status}")
    return table


def _end_with(
    child: "subprocess.Popen[bytes]", stopping: threading.Event, ended: threading.Event, left_s: float
) -> None:
    while left_s > 0 and not stopping.is_set():
        if ended.wait(_POLL_S):
            return
        left_s -= _POLL_S
    # the replay is a child of the child: both are in a session of their own
    try:
        os.killpg(child.pid, 9)
    except ProcessLookupError:
        return
