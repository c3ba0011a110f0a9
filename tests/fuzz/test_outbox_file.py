"""The outbox's file damaged in every way a disk can: torn WAL, flipped bits, cut short, garbage; so many cases.

Whatever comes of it, the agent starts and goes on: with a consistent prefix of what it held, or with a new epoch whose
first gap record says so while the damaged file is kept. What it then says is what was put, or it is in a gap record.

    SKERRY_FUZZ_ROUNDS=100000 python -m pytest tests/fuzz/test_outbox_file.py
"""

import json
import os
import random
import shutil
import sqlite3
from base64 import b64decode
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

import pytest

from agent.telling.outbox import OutboxFile
from agent.telling.outbox_file import DAMAGED
from skerry.errors import Broken
from skerry.wire.messages import Ack, Entry

SEED = 11
ROUNDS = int(os.environ.get("SKERRY_FUZZ_ROUNDS", "200"))
ROWS = 60
FILES = ("outbox.db", "outbox.db-wal")
KINDS = ("window", "sample", "deployment", "window")


def body(number: int) -> bytes:
    return b"row %d " % number + bytes(random.Random(number).randbytes(200 + number % 7 * 60))


ROW = "sequence, kind, event_time, crc, seal, body from outbox"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an outbox as a power cut leaves it: some of it in the main file, the rest in the WAL."""
    live, copy = tmp_path_factory.mktemp("live"), tmp_path_factory.mktemp("sound")
    outbox = OutboxFile(live / "outbox.db")
    for number in range(ROWS):
        outbox.put(KINDS[number % 4], body(number), event_time=float(number))
        if number == ROWS // 2:
            outbox._db.execute("pragma wal_checkpoint(truncate)")
    outbox.save_open("ab" * 32, b"open", number=7, event_clock=5.0)
    assert outbox.batch(newest=5) is not None
    for name in FILES:
        shutil.copy(live / name, copy / name)
    outbox.close()
    return copy


def damage(folder: Path, luck: random.Random) -> str:
    """Do one thing to one of the two files; return what it was."""
    name = luck.choice(FILES)
    path = folder / name
    data = bytearray(path.read_bytes())
    what = luck.choice(["bits", "bits", "bytes", "torn", "short", "sector", "garbage", "empty", "gone", "swap"])
    match what:
        case "bits":
            for _ in range(luck.choice([1, 1, 1, 8, 64])):
                data[luck.randrange(len(data))] ^= 1 << luck.randrange(8)
        case "bytes":
            at = luck.randrange(len(data))
            data[at : at + 16] = luck.randbytes(16)
        case "torn":
            # what was written last never came: as long as it was, and zero
            at = luck.randrange(len(data))
            data[at:] = bytes(len(data) - at)
        case "short":
            del data[luck.randrange(len(data)) :]
        case "sector":
            at = luck.randrange(len(data) // 512) * 512
            data[at : at + 512] = luck.choice([bytes(512), luck.randbytes(512)])
        case "garbage":
            data[:] = luck.randbytes(len(data))
        case "empty":
            data.clear()
        case "gone":
            path.unlink()
            return f"{name} gone"
        case "swap":
            other = folder / FILES[1 - FILES.index(name)]
            data = bytearray(other.read_bytes())
    path.write_bytes(data)
    return f"{what} of {name}"


def drain(outbox: OutboxFile) -> list[Entry]:
    entries: list[Entry] = []
    while batch := outbox.batch():
        entries += batch.entries
        outbox.acknowledge(Ack(epoch=batch.epoch, up_to=batch.entries[-1].sequence, window=8))
        assert len(entries) < 10 * ROWS
    return entries


def accounted(entry: Entry) -> range:
    """Return the numbers that an entry accounts for; a row's body tells its own."""
    content = b64decode(entry.body)
    if entry.kind == "gap":
        gap = json.loads(content)
        return range(gap["first"], gap["last"] + 1)
    assert content == b"after" or int(content.split()[1]) == entry.sequence - 1
    return range(entry.sequence, entry.sequence + 1)


def go_on(folder: Path) -> tuple[str, list[Entry]]:
    """Open it and use it as an agent does, which asks again where it was told that a damaged file was left."""
    outbox = OutboxFile(folder / "outbox.db")
    for _ in range(3):
        try:
            outbox.put("window", b"after", event_time=99.0)
            entries = drain(outbox)
            assert outbox.depth == 0
            epoch = outbox.epoch
        except Broken:
            continue
        outbox.close()
        return epoch, entries
    raise AssertionError("expected an outbox that can be used after it was begun anew")


def read_rows(path: Path) -> set[tuple[object, ...]]:
    """Return the rows that SQLite reads of a file, from both ends and by their numbers."""
    found: set[tuple[object, ...]] = set()
    with closing(sqlite3.connect(path)) as db:
        db.text_factory = lambda raw: raw.decode(errors="replace")
        queries = [f"select {ROW} order by sequence {order}" for order in ("", "desc")]
        for query in (*queries, *(f"select {ROW} where sequence = {number + 1}" for number in range(ROWS))):
            with suppress(sqlite3.Error, ValueError, OverflowError):
                for row in db.execute(query):
                    found.add(row)
    return found


def test_a_damaged_file_is_a_consistent_prefix_or_a_new_epoch_that_says_so(sound: Path, tmp_path: Path) -> None:
    luck = random.Random(SEED)
    ends: Counter[str] = Counter()
    rows = 0
    with_epoch = OutboxFile(shutil.copytree(sound, tmp_path / "untouched") / "outbox.db")
    epoch = with_epoch.epoch
    with_epoch.close()
    put = read_rows(tmp_path / "untouched" / "outbox.db")
    assert len(put) == ROWS
    for number in range(ROUNDS):
        folder = shutil.copytree(sound, tmp_path / "case")
        what = damage(folder, luck)

        now, entries = go_on(folder)

        aside = (folder / f"outbox.db{DAMAGED}").exists()
        whole = [b64decode(entry.body) for entry in entries if entry.kind != "gap"]
        gaps = [json.loads(b64decode(entry.body)) for entry in entries if entry.kind == "gap"]
        told = f"case {number}: {what}"
        assert b"after" in whole, told
        # nothing that was never put, and nothing twice
        assert {each for each in whole if each != b"after"} <= {body(each) for each in range(ROWS)}, told
        assert len(whole) == len(set(whole)), told
        if not aside:
            # a prefix: what is there has its own number, and no number is missing below the last
            numbers = [number for entry in entries for number in accounted(entry)]
            assert numbers == list(range(1, len(numbers) + 1)), told
        if aside:
            assert now != epoch, told
            kept = {each for each in whole if each != b"after"}
            # each number is accounted for, by the row or by a gap record, and what can be read is not lost
            assert len(kept) == ROWS or any("damaged" in gap["reason"] for gap in gaps), told
            readable = read_rows(folder / f"outbox.db{DAMAGED}") & put
            assert {row[-1] for row in readable} <= kept, told
            rows += len(kept)
            ends["a new epoch with rows of the old one" if kept else "a new epoch"] += 1
        elif gaps:
            assert all(gap["reason"] in ("damaged", "forgotten by the control plane") for gap in gaps), told
            ends["rows in quarantine"] += 1
        else:
            ends["a prefix" if len(whole) <= ROWS else "all of it"] += 1
        shutil.rmtree(folder)
    print(f"\n{ROUNDS} damaged outboxes: " + ", ".join(f"{count} ended as {end}" for end, count in ends.most_common()))
    print(f"{rows} rows were taken over")
    assert set(ends) == {
        "a new epoch",
        "a new epoch with rows of the old one",
        "rows in quarantine",
        "a prefix",
        "all of it",
    }


def test_one_damaged_file_is_kept_and_no_more(sound: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "case")
    for number in range(3):
        (folder / "outbox.db").write_bytes(b"garbage %d " % number * 500)
        outbox = OutboxFile(folder / "outbox.db")
        assert "damaged" in outbox.problem
        assert outbox.put("window", b"x", event_time=1.0) >= 2
        outbox.close()

    assert sorted(each.name for each in folder.iterdir() if DAMAGED in each.name) == [f"outbox.db{DAMAGED}"]
    assert (folder / f"outbox.db{DAMAGED}").read_bytes().startswith(b"garbage 2")


def test_the_open_windows_keep_their_numbers_where_they_can_be_read(sound: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "case")
    outbox = OutboxFile(folder / "outbox.db")
    outbox._db.execute("update meta set value = 'nonsense' where key = 'next_sequence'")
    outbox.close()

    again = OutboxFile(folder / "outbox.db")

    assert again.open_window("ab" * 32).number == 8
    assert again.event_clock() == 5.0
    assert [entry.sequence for entry in drain(again)] == list(range(1, ROWS + 1))


def flood(outbox: OutboxFile) -> None:
    for _ in range(200):
        outbox.put("window", b"x" * 5000, event_time=1.0)


def test_damage_that_shows_while_the_agent_runs_is_left_behind_too(sound: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "case")
    outbox = OutboxFile(folder / "outbox.db")
    outbox._db.execute("pragma wal_checkpoint(truncate)")
    data = (folder / "outbox.db").read_bytes()
    (folder / "outbox.db").write_bytes(data[:100] + b"\xff" * (len(data) - 100))
    outbox._db.execute("pragma shrink_memory")

    with pytest.raises(Broken):
        flood(outbox)
    outbox.put("window", b"after", event_time=1.0)

    assert b"after" in [b64decode(entry.body) for entry in drain(outbox)]
