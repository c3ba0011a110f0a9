"""A file damaged amid a conversation: what is taken over of it is counted once, however often it was said."""

import random
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import pytest

from agent.telling.outbox import OutboxFile
from agent.telling.outbox_file import DAMAGED
from control_plane.plane import Plane
from tests.integration.outbox.account import given_up, heard
from tests.integration.outbox.test_exactly_once import SMALL, World, forget

MOVES = {"window": 4, "sample": 2, "big window": 1, "say": 8, "deliver": 8, "acknowledge": 3}
CASES = 60


def spoil(file: Path, luck: random.Random) -> None:
    """Do to a file what disks do, but for its first page, without which nothing of it can be read."""
    data = bytearray(file.read_bytes())
    at = luck.randrange(4096, len(data))
    match luck.choice(["bits", "sector", "page", "short"]):
        case "bits":
            for _ in range(luck.choice([1, 8, 64])):
                data[luck.randrange(4096, len(data))] ^= 1 << luck.randrange(8)
        case "sector":
            data[at - at % 512 : at - at % 512 + 512] = luck.randbytes(512)
        case "page":
            data[at - at % 4096 : at - at % 4096 + 4096] = bytes(4096)
        case "short":
            del data[at:]
    file.write_bytes(data)


def next_of(file: Path) -> int:
    with suppress(sqlite3.Error, ValueError), closing(sqlite3.connect(file)) as db:
        return int(db.execute("select value from meta where key = 'next_sequence'").fetchone()[0])
    return 0


@pytest.mark.timeout(300)
def test_no_row_of_a_damaged_file_is_counted_twice(plane: Plane, tmp_path: Path) -> None:
    luck = random.Random(7)
    aside = exact = 0
    for case in range(CASES):
        forget(plane)
        folder = tmp_path / str(case)
        folder.mkdir()
        world = World(plane, folder)
        for what in luck.choices(list(MOVES), list(MOVES.values()), k=40):
            world.move(what, luck.randrange(1, 5))
        world.outbox.close()
        spoil(world.path, luck)
        world.outbox = OutboxFile(world.path, quota_bytes=SMALL)
        is_aside = (folder / f"outbox.db{DAMAGED}").exists()
        known = next_of(folder / f"outbox.db{DAMAGED}") == world.put + 1 if is_aside else True
        salvaged = is_aside and world.outbox._rows.meta("closing") == "1"
        # what was under way arrives now, and what is new is put beside it
        for what in luck.choices(list(MOVES), list(MOVES.values()), k=20):
            world.move(what, luck.randrange(1, 5))

        world.settle()
        world.outbox.close()

        merged = heard(plane)
        assert set(merged.values()) <= {1}, case
        aside += salvaged
        if salvaged and known:
            exact += 1
            assert len(merged) + given_up(plane) == world.put, case
    print(f"\n{CASES} damaged: of {aside} rows were taken over, {exact} with an exact account")
    assert exact > 5
