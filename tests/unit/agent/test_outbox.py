"""The outbox: nothing lost that fits, nothing given up in silence, nothing twice."""

import json
import sqlite3
from base64 import b64decode
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.outbox import BATCH_BYTES, BATCH_ENTRIES, KEPT_ACCUMULATORS, OutboxFile, decode_open, encode_open, look
from skerry.errors import Broken
from skerry.wire.messages import Ack, Entry, Outbox

SMALL = 512 * 1024


def bodies(batch: Outbox | None) -> list[bytes]:
    """Return the bodies in a batch."""
    assert batch is not None
    return [b64decode(entry.body) for entry in batch.entries]


def drain(outbox: OutboxFile) -> list[Entry]:
    """Acknowledge batch after batch; return all entries."""
    entries: list[Entry] = []
    while batch := outbox.batch():
        entries += batch.entries
        outbox.acknowledge(Ack(epoch=batch.epoch, up_to=batch.entries[-1].sequence))
    return entries


def test_rows_leave_in_order_and_only_when_they_were_heard(tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db")
    for number in range(5):
        assert outbox.put("window", b"%d" % number, event_time=1.0) == number + 1

    assert bodies(outbox.batch()) == bodies(outbox.batch()) == [b"0", b"1", b"2", b"3", b"4"]
    assert outbox.acknowledge(Ack(epoch=outbox.epoch, up_to=3))

    assert bodies(outbox.batch()) == [b"3", b"4"]
    assert outbox.depth == 2


def test_an_acknowledgement_of_another_epoch_empties_nothing(tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db")
    outbox.put("window", b"body", event_time=1.0)

    assert not outbox.acknowledge(Ack(epoch="ffff", up_to=9))
    assert outbox.depth == 1


def test_numbers_go_on_after_a_restart_even_when_everything_was_heard(tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db")
    outbox.put("window", b"body", event_time=1.0)
    drain(outbox)
    epoch = outbox.epoch
    outbox.close()

    again = OutboxFile(tmp_path / "outbox.db")

    assert again.epoch == epoch
    assert again.put("window", b"next", event_time=2.0) == 2


def test_a_new_database_is_a_new_epoch(tmp_path: Path) -> None:
    assert OutboxFile(tmp_path / "a.db").epoch != OutboxFile(tmp_path / "b.db").epoch


def test_batches_are_bounded_in_entries_and_bytes(tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db")
    for _ in range(2 * BATCH_ENTRIES):
        outbox.put("window", b"x" * 10, event_time=1.0)
    batch = outbox.batch()
    assert batch is not None
    assert len(batch.entries) == BATCH_ENTRIES
    drain(outbox)

    for _ in range(BATCH_ENTRIES):
        outbox.put("window", b"x" * 8000, event_time=1.0)
    batch = outbox.batch()

    assert batch is not None
    assert sum(len(entry.body) for entry in batch.entries) <= BATCH_BYTES


def test_without_room_the_oldest_windows_go_first_and_a_gap_record_stands_for_them(tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db", quota_bytes=SMALL)
    outbox.put("deployment", b"{}", event_time=1.0)
    for _ in range(400):
        outbox.put("window", b"x" * 2000, event_time=1.0)
    outbox.put("deployment", b"{}", event_time=2.0)

    entries = drain(outbox)

    kinds = [entry.kind for entry in entries]
    assert (kinds[0], kinds[1], kinds[-1]) == ("deployment", "gap", "deployment")
    assert kinds.count("gap") == 1
    gap = json.loads(b64decode(entries[1].body))
    assert (gap["kind"], gap["first"], gap["count"]) == ("window", 2, 400 - kinds.count("window"))
    assert (tmp_path / "outbox.db").stat().st_size <= SMALL


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["window", "big", "deployment", "send", "hear", "restart"]), max_size=120))
def test_every_number_is_accounted_for_once(tmp_path_factory: pytest.TempPathFactory, moves: list[str]) -> None:
    path = tmp_path_factory.mktemp("outbox") / "outbox.db"
    outbox = OutboxFile(path, quota_bytes=SMALL)
    heard: dict[int, str] = {}
    put = 0

    def hear(batch: Outbox) -> None:
        for entry in batch.entries:
            # what was heard under a number is never another thing later
            assert heard.setdefault(entry.sequence, entry.body) == entry.body
        body = b64decode(batch.entries[-1].body)
        # as the control plane does: a gap record accounts for all of its run
        through = json.loads(body)["last"] if body.startswith(b"{") else batch.entries[-1].sequence
        outbox.acknowledge(Ack(epoch=batch.epoch, up_to=through))

    for move in moves:
        if move in ("window", "big", "deployment"):
            size = {"window": 300, "big": 60_000, "deployment": 100}[move]
            outbox.put("deployment" if move == "deployment" else "window", b"x" * size, event_time=1.0)
            put += 1
        elif move == "restart":
            outbox.close()
            outbox = OutboxFile(path, quota_bytes=SMALL)
        else:
            batch = outbox.batch()
            if batch is not None:
                heard.update({entry.sequence: heard.get(entry.sequence, entry.body) for entry in batch.entries})
                if move == "hear":
                    hear(batch)
    while batch := outbox.batch():
        hear(batch)
    outbox.close()

    covered: list[int] = []
    for number, body in sorted(heard.items()):
        gap = json.loads(b64decode(body)) if b64decode(body).startswith(b"{") else None
        covered += range(gap["first"], gap["last"] + 1) if gap else [number]
    assert covered == list(range(1, put + 1))


def test_closing_a_window_is_one_step_with_its_number_and_clock(tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db")
    outbox.save_open("aa", encode_open({"rows": 7}), number=3, event_clock=50.0)
    outbox.close_window("aa", b"report", number=3, event_clock=99.0)
    outbox.close()

    again = OutboxFile(tmp_path / "outbox.db")
    kept = again.open_window("aa")

    assert (kept.number, kept.event_clock, kept.body) == (4, 99.0, b"")
    assert again.event_clock() == 99.0
    assert bodies(again.batch()) == [b"report"]


def test_an_open_window_is_kept_for_each_artifact(tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db")
    outbox.save_open("old", encode_open({"rows": 7}), number=12, event_clock=50.0)
    outbox.save_open("new", encode_open({"rows": 1}), number=0, event_clock=60.0)

    assert outbox.open_window("old").number == 12
    assert decode_open(outbox.open_window("old").body) == {"rows": 7}
    assert outbox.open_window("never").number == 0


def test_a_damaged_accumulator_is_not_counted() -> None:
    body = encode_open({"rows": 7})

    assert decode_open(body) == {"rows": 7}
    assert decode_open(body[:-2] + b"8}") is None
    assert decode_open(b"") is None


def test_bit_rot_leaves_a_gap_record_and_the_rest_is_heard(tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db")
    for number in range(3):
        outbox.put("window", b"body %d" % number, event_time=1.0)
    with sqlite3.connect(tmp_path / "outbox.db") as db:
        db.execute("update outbox set body = x'00' where sequence = 2")
    db.close()

    entries = drain(outbox)

    assert [entry.kind for entry in entries] == ["window", "gap", "window"]
    gap = json.loads(b64decode(entries[1].body))
    assert (gap["kind"], gap["first"], gap["last"], gap["reason"]) == ("window", 2, 2, "damaged")


def test_a_conflict_starts_a_new_epoch_with_what_was_not_heard(tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db")
    for number in range(4):
        outbox.put("window", b"%d" % number, event_time=1.0)
    epoch = outbox.epoch
    assert len(bodies(outbox.batch())) == 4

    outbox.acknowledge(Ack(epoch=epoch, up_to=2, new_epoch=True))

    batch = outbox.batch()
    assert batch is not None
    assert batch.epoch != epoch
    assert [(entry.sequence, b64decode(entry.body)) for entry in batch.entries] == [(1, b"2"), (2, b"3")]
    assert outbox.put("window", b"4", event_time=1.0) == 3


def test_rows_that_a_restored_copy_has_yet_to_publish_are_not_taken_for_heard(tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db")
    for number in range(BATCH_ENTRIES + 2):
        outbox.put("window", b"%d" % number, event_time=1.0)
    assert len(bodies(outbox.batch())) == BATCH_ENTRIES

    outbox.acknowledge(Ack(epoch=outbox.epoch, up_to=300))

    assert bodies(outbox.batch()) == [b"%d" % BATCH_ENTRIES, b"%d" % (BATCH_ENTRIES + 1)]


@pytest.mark.parametrize("left", [0, 2])
def test_a_control_plane_restored_from_a_copy_hears_what_it_forgot_as_a_gap(tmp_path: Path, left: int) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db")
    for _ in range(5):
        outbox.put("window", b"x", event_time=1.0)
    drain(outbox)
    for _ in range(left):
        outbox.put("window", b"y", event_time=1.0)

    outbox.acknowledge(Ack(epoch=outbox.epoch, up_to=3))

    batch = outbox.batch()
    assert batch is not None
    assert [(entry.sequence, entry.kind) for entry in batch.entries] == [
        (4, "gap"),
        *((6 + at, "window") for at in range(left)),
    ]
    gap = json.loads(bodies(batch)[0])
    assert (gap["first"], gap["last"], gap["count"]) == (4, 5, 2)


def test_bit_rot_in_a_gap_record_still_accounts_for_its_whole_run(tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db", quota_bytes=SMALL)
    for _ in range(400):
        outbox.put("window", b"x" * 2000, event_time=1.0)
    outbox._db.execute("update outbox set body = x'00' where kind = 'gap'")

    entries = drain(outbox)

    gap = json.loads(b64decode(entries[0].body))
    assert (gap["reason"], gap["first"], gap["last"] + 1) == ("damaged", 1, entries[1].sequence)


def test_what_is_published_when_the_disk_fills_up_is_not_given_up_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db", quota_bytes=SMALL)
    for _ in range(60):
        outbox.put("window", b"x" * 1000, event_time=1.0)
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL
    refusals = [full]
    mark = outbox._set_meta

    def refuse_once(key: str, value: str) -> None:
        if refusals:
            raise refusals.pop()
        mark(key, value)

    monkeypatch.setattr(outbox, "_set_meta", refuse_once)
    batch = outbox.batch()

    assert batch is not None
    said = [(entry.sequence, entry.kind) for entry in batch.entries]
    assert refusals == []
    assert said[0] == (1, "gap")
    assert said == outbox._db.execute("select sequence, kind from outbox limit ?", (len(said),)).fetchall()


def test_a_database_that_breaks_under_way_is_broken_and_no_foreign_error(tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db")
    ack = Ack(epoch=outbox.epoch, up_to=0)
    outbox.put("window", b"x", event_time=1.0)
    outbox._db.execute("drop table outbox")

    for use in (outbox.batch, lambda: outbox.depth, lambda: outbox.acknowledge(ack)):
        with pytest.raises(Broken, match="expected a sound outbox"):
            use()
    with pytest.raises(Broken, match="expected a sound outbox"):
        outbox.put("window", b"x", event_time=1.0)


def test_the_open_window_of_what_runs_is_kept_whatever_the_clock_says(tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db")
    for number in range(2 * KEPT_ACCUMULATORS):
        outbox.save_open(f"{number:02}", b"body", number=number, event_clock=1000.0 - number)

        assert outbox.open_window(f"{number:02}").number == number
    assert outbox._db.execute("select count(*) from accumulator").fetchone() == (KEPT_ACCUMULATORS,)


def test_a_full_disk_frees_the_ballast_and_gives_up_old_windows(tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db", quota_bytes=SMALL)
    for _ in range(60):
        outbox.put("window", b"x" * 4000, event_time=1.0)
    pages = outbox._db.execute("pragma page_count").fetchone()[0]
    outbox._db.execute(f"pragma max_page_count = {pages}")

    for _ in range(10):
        outbox.put("deployment", b"y" * 4000, event_time=2.0)

    kinds = [entry.kind for entry in drain(outbox)]
    assert kinds.count("deployment") == 10
    assert "gap" in kinds


def test_a_file_that_is_no_database_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "outbox.db").write_bytes(b"not a database, but long enough to be read as one" * 50)

    with pytest.raises(Broken, match="expected an outbox"):
        OutboxFile(tmp_path / "outbox.db")


def test_status_can_look_without_disturbing(tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db")
    outbox.put("window", b"body", event_time=1.0)

    assert look(tmp_path / "outbox.db").rows == {"window": 1}
    outbox.close()
    odd = (tmp_path / "outbox.db").rename(tmp_path / "a#b%41?c.db")
    assert look(odd).rows == {"window": 1}
    assert look(tmp_path / "none.db").rows == {}
