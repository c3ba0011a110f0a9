"""Looks at what a running agent holds, from outside and without disturbing it: its lock, its outbox, its socket."""

import contextlib
import datetime
import sqlite3
from contextlib import closing
from pathlib import Path

from agent.identity.folder import StateFolder
from agent.telling.outbox_file import DAMAGED, is_damage, open_to_read
from agent.upkeep.checks import Doubt, config_of
from skerry.errors import Broken, SkerryError
from skerry.inference.local_socket import SOCKET, connect, socket_places

ASKED_S = 3.0
NEARLY_FULL = 0.9
_LOCKS = Path("/proc/locks")
_LIVE = b"GET /v2/health/live HTTP/1.0\r\nHost: localhost\r\n\r\n"


def is_running(folder: StateFolder) -> bool:
    """Say whether an agent lives in the folder; the lock is not tried, for one that starts would find it taken."""
    try:
        inode = (folder.path / "lock").stat().st_ino
        locks = _LOCKS.read_text(encoding="ascii").splitlines()
    except OSError:
        return False
    # 1: FLOCK  ADVISORY  WRITE 4711 fe:00:131 0 EOF; some file systems show another device than stat does
    fields = [line.split() for line in locks]
    return any(each[1] == "FLOCK" and each[5].rpartition(":")[2] == str(inode) for each in fields if len(each) > 5)


def outbox(folder: StateFolder) -> str:
    """Is it sound, and how much waits in it?"""
    path, config = folder.outbox_file, config_of(folder)
    if not path.exists():
        return "none yet"
    try:
        with closing(open_to_read(path)) as db:
            (verdict,) = db.execute("pragma quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            rows = dict(db.execute("select kind, count(*) from outbox group by kind"))
    except sqlite3.Error as error:
        if not is_damage(error):
            raise Broken(f"expected to read {path}, got: {error}; check its permissions and the disk") from error
        todo = "start the agent again: it begins another and counts what is lost"
        raise Broken(f"expected a sound outbox in {path}, got: {error}; {todo}") from error
    waiting = ", ".join(f"{count} {kind}" for kind, count in sorted(rows.items())) or "nothing"
    size = path.stat().st_size
    if size >= NEARLY_FULL * config.quota_bytes:
        return Doubt(f"{waiting} to be heard, in {size} of {config.quota_bytes} bytes; the oldest give way: see broker")
    aside = path.with_name(path.name + DAMAGED)
    if aside.exists():
        day = datetime.datetime.fromtimestamp(aside.stat().st_mtime, datetime.UTC).date()
        return Doubt(f"{waiting} to be heard; a damaged one was moved aside on {day}: check the disk")
    return f"{waiting} to be heard, in {size} of {config.quota_bytes} bytes"


def local_socket(folder: StateFolder) -> str:
    """Does the local face answer?"""
    if config_of(folder).serve == "off":
        return "off, by config.toml"
    running, path = is_running(folder), _where(folder)
    if path is None:
        path = folder.path / SOCKET
        if running:
            raise Broken(f"expected {path} of the running agent, got none; see its log")
        return Doubt("the agent does not run; skerry-agent run, or systemctl start skerry-agent")
    try:
        answer = _ask(path)
    except ConnectionRefusedError as error:
        if running:
            raise Broken(f"expected the running agent to listen on {path}, got nobody; see its log") from error
        return Doubt("the agent does not run; skerry-agent run, or systemctl start skerry-agent")
    except TimeoutError as error:
        raise Broken(
            f"expected an answer on {path} within {ASKED_S:g} s, got none: the agent hangs; restart it"
        ) from error
    if b" 200 " not in answer[:16]:
        raise Broken(f"expected the agent on {path}, got {answer[:40]!r}; see its log")
    return f"the agent runs and answers on {path}"


def runs(folder: StateFolder) -> bool:
    """Say whether an agent lives in the folder, by its lock or by its answer."""
    if is_running(folder):
        return True
    try:
        path = _where(folder)
        return path is not None and b" 200 " in _ask(path)[:16]
    except (OSError, SkerryError):
        return False


def _where(folder: StateFolder) -> Path | None:
    """Return where the agent listens: of the places where it may, the first at which anybody does, or has done."""
    there = []
    for place in socket_places(folder.path):
        with contextlib.suppress(OSError, Broken):
            # another user's folder is none of ours, and may not be looked into
            if place.exists():
                there.append(place)
            connect(place, timeout_s=ASKED_S).close()
            return place
    return there[0] if there else None


def _ask(path: Path) -> bytes:
    with connect(path, timeout_s=ASKED_S) as sock:
        sock.sendall(_LIVE)
        return sock.recv(4096)
