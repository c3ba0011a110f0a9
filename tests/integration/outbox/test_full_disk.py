"""The disk is full at every write in turn: one that fails, or all from there on; nothing is lost without a gap record.

strace makes the failures, in a child that writes as an agent does; the writes of SQLite, of its WAL and shared memory,
of the ballast and of `write_durably` are all there. Every few points are tried here, all of them with

    SKERRY_FULL_DISK_STEP=1 python -m pytest tests/integration/outbox/test_full_disk.py
"""

import json
import os
import re
import shutil
import subprocess
import sys
from base64 import b64decode
from collections import Counter
from pathlib import Path

import pytest

from agent.telling.outbox import OutboxFile
from skerry.delivery.durable import write_durably
from skerry.wire.messages import Ack
from tests.integration.outbox import writer

STEP = int(os.environ.get("SKERRY_FULL_DISK_STEP", "43"))
CALLS = ("pwrite64", "write", "fsync", "fdatasync", "ftruncate")
FILES = ("outbox.db", "outbox.db-wal", "outbox.db-shm", "outbox.db.ballast", ".twin.json.new")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("strace")]


def run(folder: Path, *options: str) -> tuple[list[str], str]:
    """Run the writer under strace; return what it said, and the trace."""
    folder.mkdir()
    trace = folder.with_suffix(".trace")
    paths = [option for name in FILES for option in ("-P", str(folder / name))]
    command = ["strace", "-f", "-qq", "-o", str(trace), "-e", f"trace={','.join(CALLS)}", *paths, *options]
    child = [sys.executable, str(Path(writer.__file__)), str(folder)]
    done = subprocess.run([*command, *child], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in (0, 3), done.stderr
    return done.stdout.splitlines(), trace.read_text()


def points(tmp_path: Path) -> list[tuple[str, int]]:
    """Return every write that the child makes when nothing fails: the call, and its number among those."""
    _, trace = run(tmp_path / "sound")
    counts = Counter(re.findall(r"\b([a-z0-9]+)\(", trace))
    assert counts["pwrite64"] > 50
    assert counts["fsync"] + counts["fdatasync"] > 50
    return [(call, number) for call in CALLS for number in range(1, counts[call] + 1)]


def check(folder: Path, said: list[str], told: str) -> int:
    """Space is back: what was durable is there or in a gap record, and all goes on; return how much was given up."""
    outbox = OutboxFile(folder / "outbox.db", quota_bytes=512 * 1024)
    assert outbox.problem == "", told
    assert outbox.put("window", b"after", event_time=1.0) > 0
    outbox.close()
    outbox = OutboxFile(folder / "outbox.db", quota_bytes=512 * 1024)
    # handed to the network, so maybe heard: what stands there is not for us to account for
    heard = max([int(line.split()[1]) for line in said if line.startswith("said")], default=0)
    rows: dict[int, bytes] = {}
    lost: set[int] = set()
    while batch := outbox.batch():
        for entry in batch.entries:
            content = b64decode(entry.body)
            if entry.kind == "gap":
                gap = json.loads(content)
                assert gap["reason"] == "no room", told
                lost |= set(range(gap["first"], gap["last"] + 1))
            else:
                rows[entry.sequence] = content
        outbox.acknowledge(Ack(epoch=batch.epoch, up_to=batch.entries[-1].sequence))
    outbox.close()
    for line in said:
        word, *rest = line.split()
        if word == "put":
            number, sequence = int(rest[0]), int(rest[1])
            if sequence > heard or sequence in rows:
                assert sequence in lost or rows[sequence] == writer.body(number), f"{told}: {line}"
    assert b"after" in rows.values(), told
    # a number is a row's or in a gap, never both, and none is missing
    assert not lost & rows.keys(), told
    assert sorted(lost | rows.keys()) == list(range(min(lost | rows.keys()), max(rows) + 1)), told

    wrote = [int(line.split()[1]) for line in said if line.startswith("wrote")]
    if wrote:
        # the last one that was told to be durable, or a later one of which only the news failed
        assert int((folder / "twin.json").read_bytes()) >= wrote[-1], told
    write_durably(folder / "twin.json", b"after")
    return len(lost)


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from there on"])
def test_a_disk_that_is_full_at_any_write_costs_nothing_in_silence(tmp_path: Path, *, lasting: bool) -> None:
    tried = refused = lost = 0
    for call, number in points(tmp_path)[int(lasting) :: STEP]:
        when = f"{number}+" if lasting else str(number)
        folder = tmp_path / f"{call}-{number}"
        said, _ = run(folder, "-e", f"inject={call}:error=ENOSPC:when={when}")
        lost += check(folder, said, f"{call} {when}")
        refused += sum(line.split()[0] in ("refused", "unwritten", "no", "unsaid") for line in said)
        tried += 1
        shutil.rmtree(folder)
    print(f"\na disk full at {tried} writes: {refused} refusals, {lost} rows in gap records")
    assert refused
