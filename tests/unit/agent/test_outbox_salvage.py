"""What is taken over of a damaged outbox: what is proven to be what was put, under its own number, whatever comes."""

import json
import sqlite3
from base64 import b64decode
from contextlib import closing
from pathlib import Path

import pytest

from agent.telling.outbox import OutboxFile
from agent.telling.outbox_file import DAMAGED
from skerry.wire.messages import Ack, Entry

ROWS = 40


def body(number: int) -> bytes:
    return b"row %d " % number * 60


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """An outbox with 40 rows, of which three were heard."""
    file = tmp_path / "outbox.db"
    outbox = OutboxFile(file)
    for number in range(1, ROWS + 1):
        outbox.put("window", body(number), event_time=float(number))
    outbox.save_open("ab" * 32, b"open", number=7, event_clock=5.0)
    batch = outbox.batch()
    assert batch is not None
    outbox.acknowledge(Ack(epoch=batch.epoch, up_to=3, window=8))
    outbox.close()
    return file


@pytest.fixture
def damaged(sound: Path) -> Path:
    """The same with a page in the middle that is spoilt."""
    spoil(sound)
    return sound


def spoil(file: Path) -> None:
    data = bytearray(file.read_bytes())
    at = data.index(body(20))
    data[at - at % 4096 : at - at % 4096 + 4096] = bytes(4096)
    file.write_bytes(data)


def tell(outbox: OutboxFile) -> list[tuple[str, Entry]]:
    """Say everything, and have it heard; return it with the epochs under which it was said."""
    said: list[tuple[str, Entry]] = []
    while (batch := outbox.batch()) is not None:
        said += [(batch.epoch, entry) for entry in batch.entries]
        outbox.acknowledge(Ack(epoch=batch.epoch, up_to=batch.entries[-1].sequence, window=8))
        assert len(said) < 10 * ROWS
    return said


def epoch_of(file: Path) -> str:
    with closing(sqlite3.connect(file)) as db:
        return str(db.execute("select value from meta where key = 'epoch'").fetchone()[0])


def check(said: list[tuple[str, Entry]], epoch: str) -> None:
    """Each number of the old epoch is said once, as its row or within a gap record, and what is new in a new one."""
    old = [entry for each, entry in said if each == epoch]
    rows = {entry.sequence: b64decode(entry.body) for entry in old if entry.kind == "window"}
    gaps = [json.loads(b64decode(entry.body)) for entry in old if entry.kind == "gap"]
    covered = [number for gap in gaps for number in range(gap["first"], gap["last"] + 1)]
    assert sorted([*rows, *covered]) == list(range(1, ROWS + 1))
    assert rows == {number: body(number) for number in rows}
    assert {1, 2, 3, 20} <= set(covered)
    assert len(rows) > 20
    new = [b64decode(entry.body) for each, entry in said if each != epoch]
    assert new == [b"after"]


def test_rows_that_are_sound_are_said_under_their_own_numbers_and_the_others_are_in_gap_records(damaged: Path) -> None:
    epoch = epoch_of(damaged)

    outbox = OutboxFile(damaged)
    outbox.put("window", b"after", event_time=99.0)

    assert "damaged" in outbox.problem
    assert outbox.open_window("ab" * 32).number == 8
    check(tell(outbox), epoch)
    assert outbox.epoch != epoch
    assert outbox.depth == 0


def test_a_row_under_a_number_or_in_an_epoch_that_is_not_its_own_is_not_believed(sound: Path) -> None:
    with closing(sqlite3.connect(sound)) as db:
        (last,) = db.execute("select max(sequence) from outbox").fetchone()
        db.execute("update outbox set sequence = ? where sequence = ?", (last + 5, last))
        db.execute("update outbox set kind = 'sample' where sequence = 6")
        db.commit()
    spoil(sound)

    said = tell(OutboxFile(sound))

    bodies = [b64decode(entry.body) for _, entry in said]
    assert body(ROWS) not in bodies
    assert body(6) not in bodies
    assert body(7) in bodies


class PowerCut(Exception):
    """The end of this run."""


@pytest.mark.parametrize("step", range(16))
def test_a_power_cut_in_the_middle_is_followed_by_the_rest(
    damaged: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    epoch = epoch_of(damaged)
    steps = iter(range(1000))

    def cut_before(name: str) -> None:
        real = getattr(Path, name)

        def cut(path: Path, *args: object, **options: object) -> object:
            if "outbox.db" in path.name and "ballast" not in path.name and next(steps) == step:
                raise PowerCut
            return real(path, *args, **options)

        monkeypatch.setattr(Path, name, cut)

    with monkeypatch.context():
        cut_before("rename")
        cut_before("unlink")
        try:
            OutboxFile(damaged).close()
        except PowerCut:
            pass
        finally:
            monkeypatch.undo()

    outbox = OutboxFile(damaged)
    outbox.put("window", b"after", event_time=99.0)

    check(tell(outbox), epoch)
    assert damaged.with_name(damaged.name + DAMAGED).exists()
