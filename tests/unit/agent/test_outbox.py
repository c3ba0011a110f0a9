"""The outbox: nothing lost that fits, nothing given up in silence, nothing twice."""

import json
import sqlite3
from base64 import b64decode
from collections.abc import Collection, Sequence
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.telling.outbox import OutboxFile, decode_open, encode_open, look
from agent.telling.outbox_rows import BATCH_BYTES, BATCH_ENTRIES, KEPT_ACCUMULATORS
from skerry.errors import Broken
from skerry.wire.messages import Ack, Entry, Outbox

SMALL = 512 * 1024


def bodies(batch: Outbox | None) -> list[bytes]:
    """Return the bodies in a batch."""
    assert batch is not None
    return [b64decode(entry.body) for entry in batch.entries]


def flood(outbox: OutboxFile, kinds: Sequence[str], body: bytes) -> None:
    """Put a row of each of these kinds; no power is cut meanwhile, so nothing need be synced."""
    outbox._db.execute("pragma synchronous = off")
    for kind in kinds:
        outbox.put(kind, body, event_time=1.0)
    outbox._db.execute("pragma synchronous = full")


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
    flood(outbox, ["window"] * 400, b"x" * 2000)
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
    flood(outbox, ["window"] * 400, b"x" * 2000)
    outbox._db.execute("update outbox set body = x'00' where kind = 'gap'")

    entries = drain(outbox)

    gap = json.loads(b64decode(entries[0].body))
    assert (gap["reason"], gap["first"], gap["last"] + 1) == ("damaged", 1, entries[1].sequence)


def test_what_is_said_when_the_disk_fills_up_is_not_given_up_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db", quota_bytes=SMALL)
    for _ in range(60):
        outbox.put("window", b"x" * 1000, event_time=1.0)
    # the freed ballast is not enough, so rows go before the third try
    refusals = [sqlite3.OperationalError("database or disk is full") for _ in range(2)]
    choose = outbox._rows.choose

    def refuse_twice(*, besides: Collection[int], newest: int) -> list[Entry]:
        entries = choose(besides=besides, newest=newest)
        if refusals:
            refusals[-1].sqlite_errorcode = sqlite3.SQLITE_FULL
            raise refusals.pop()
        return entries

    monkeypatch.setattr(outbox._rows, "choose", refuse_twice)
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


def test_status_can_look_without_disturbing(tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db")
    outbox.put("window", b"body", event_time=1.0)

    assert look(tmp_path / "outbox.db").rows == {"window": 1}
    outbox.close()
    odd = (tmp_path / "outbox.db").rename(tmp_path / "a#b%41?c.db")
    assert look(odd).rows == {"window": 1}
    assert look(tmp_path / "none.db").rows == {}


def test_the_newest_few_can_be_said_before_all_that_came_earlier(tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db")
    for number in range(10):
        outbox.put("window", b"%d" % number, event_time=1.0)

    newest = outbox.batch(newest=3)
    assert bodies(newest) == [b"7", b"8", b"9"]
    assert bodies(outbox.batch(besides={8, 9, 10})) == [b"%d" % number for number in range(7)]

    outbox.acknowledge(Ack(epoch=outbox.epoch, up_to=0, ranges=((8, 10),), window=8))
    assert outbox.holds(range(1, 11)) == set(range(1, 8))
    outbox.acknowledge(Ack(epoch=outbox.epoch, up_to=10, window=8))
    assert (outbox.depth, outbox.window) == (0, 8)


def test_what_was_said_out_of_turn_is_not_given_up_and_the_rest_is(tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db", quota_bytes=SMALL)
    for _ in range(20):
        outbox.put("window", b"x" * 2000, event_time=1.0)
    assert outbox.batch(newest=4) is not None
    flood(outbox, ["window"] * 400, b"x" * 2000)

    entries = drain(outbox)

    assert [(entry.sequence, entry.kind) for entry in entries[:6]] == [
        (1, "gap"),
        *((number, "window") for number in range(17, 21)),
        (21, "gap"),
    ]


def test_no_more_is_on_its_way_than_a_quarter_of_the_budget(tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db", quota_bytes=SMALL)
    for _ in range(100):
        outbox.put("window", b"x" * 3000, event_time=1.0)
    said: set[int] = set()
    while batch := outbox.batch(besides=said):
        said |= {entry.sequence for entry in batch.entries}

    assert 0.2 * outbox.budget_bytes < 3000 * len(said) <= 0.25 * outbox.budget_bytes
    # what was said is said again all the same
    assert outbox.batch() is not None


@pytest.mark.parametrize(
    ("flooding", "spared"),
    [("sample", "window"), ("window", "sample"), ("deployment", "window"), ("window", "deployment")],
)
def test_a_flood_of_one_kind_leaves_another_its_share(tmp_path: Path, flooding: str, spared: str) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db", quota_bytes=SMALL)
    for _ in range(40):
        outbox.put(spared, b"y" * 1000, event_time=1.0)
    flood(outbox, [flooding] * 600, b"x" * 2000)

    entries = drain(outbox)

    assert sum(entry.kind == spared for entry in entries) == 40
    gaps = [json.loads(b64decode(entry.body)) for entry in entries if entry.kind == "gap"]
    assert {gap["kind"] for gap in gaps} == {flooding}
    assert sum(gap["count"] for gap in gaps) + sum(entry.kind == flooding for entry in entries) == 600


def test_gap_records_of_kinds_by_turns_do_not_crowd_out_the_rows(tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db", quota_bytes=SMALL)
    total = 2400
    flood(outbox, ["sample", "window", "deployment"] * (total // 3), b"x" * 700)

    entries = drain(outbox)

    gaps = [json.loads(b64decode(entry.body)) for entry in entries if entry.kind == "gap"]
    assert sum(gap["count"] for gap in gaps) + sum(entry.kind != "gap" for entry in entries) == total
    assert sum(len(b64decode(entry.body)) for entry in entries if entry.kind == "gap") < 0.15 * outbox.budget_bytes
    assert {entry.kind for entry in entries} == {"sample", "window", "deployment", "gap"}


def test_a_damaged_body_is_kept_apart_and_counted(tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db")
    for number in range(3):
        outbox.put("window", b"body %d" % number, event_time=1.0)
    outbox._db.execute("update outbox set body = x'00', event_time = 'never' where sequence = 2")
    outbox._db.execute("update outbox set kind = 'windoe' where sequence = 3")

    kinds = [entry.kind for entry in drain(outbox)]

    assert kinds == ["window", "gap", "gap"]
    assert outbox.damaged == 2
    assert outbox._db.execute("select sequence, body from quarantine").fetchall() == [(2, b"\0"), (3, b"body 2")]


def test_a_conflict_among_several_batches_waits_until_the_others_are_settled(tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db")
    for number in range(6):
        outbox.put("window", b"%d" % number, event_time=1.0)
    assert bodies(outbox.batch()) == [b"%d" % number for number in range(6)]
    outbox.put("deployment", b"later", event_time=1.0)
    epoch = outbox.epoch

    outbox.acknowledge(Ack(epoch=epoch, up_to=1, new_epoch=True, ranges=((3, 3),), conflicts=(2,), window=8))

    # 4 to 6 may have been merged under their numbers: nothing else is said before that is known
    assert outbox.epoch == epoch
    assert bodies(outbox.batch()) == [b"3", b"4", b"5"]
    outbox.acknowledge(Ack(epoch=epoch, up_to=1, new_epoch=True, ranges=((4, 6),), window=8))
    assert outbox.epoch != epoch
    assert bodies(outbox.batch()) == [b"1", b"later"]


def test_rows_of_an_agent_before_windows_were_known_are_taken_over(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / "outbox.db")
    old.executescript(
        """
        create table meta (key text primary key, value text not null) without rowid;
        create table outbox (sequence integer primary key, kind text not null, priority integer not null,
            event_time real not null, crc integer not null, body blob not null);
        insert into meta values ('epoch', 'ab'), ('next_sequence', '4'), ('published', '2');
        """
    )
    for sequence in range(1, 4):
        row = (sequence, "window", 0, 1.0, crc32(b"%d" % sequence), b"%d" % sequence)
        old.execute("insert into outbox values (?, ?, ?, ?, ?, ?)", row)
    old.commit()
    old.close()

    outbox = OutboxFile(tmp_path / "outbox.db")

    assert outbox.epoch == "ab"
    assert outbox._db.execute("select sequence, said, priority from outbox").fetchall() == [
        (1, 1, 1),
        (2, 1, 1),
        (3, 0, 1),
    ]
    outbox.acknowledge(Ack(epoch="ab", up_to=2))
    assert bodies(outbox.batch()) == [b"3"]


def test_an_answer_to_what_was_never_said_shows_a_restored_copy_and_begins_a_new_epoch(tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db")
    outbox.put("deployment", b"new", event_time=1.0)
    epoch = outbox.epoch

    outbox.acknowledge(Ack(epoch=epoch, up_to=1, window=8))

    assert outbox.epoch != epoch
    assert bodies(outbox.batch()) == [b"new"]


def test_an_outbox_of_which_all_was_heard_begins_its_new_epoch_too(tmp_path: Path) -> None:
    outbox = OutboxFile(tmp_path / "outbox.db")
    outbox.put("window", b"one", event_time=1.0)
    batch = outbox.batch()
    assert batch is not None

    assert outbox.acknowledge(Ack(epoch=batch.epoch, up_to=1, window=8, new_epoch=True))

    assert outbox.epoch != batch.epoch
    assert outbox.put("window", b"two", event_time=2.0) == 1
