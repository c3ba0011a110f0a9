"""Chunks, partial files, slots and the durable write: whatever comes, and whenever the power goes."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.delivery.chunks import WINDOW, Arrival, Outcome, Progress, Stall, Wanted, accept, next_window
from skerry.delivery.durable import write_durably
from skerry.delivery.partial import PartialFile
from skerry.delivery.slots import MANIFEST, NAMES, Mark, Slots
from skerry.errors import Broken, Rejected
from skerry.wire import codec
from skerry.wire.manifest import CHUNK_BYTES, FileEntry, describe_file
from tests.manifests import make_manifest

DATA = os.urandom(5 * CHUNK_BYTES + 17)
ENTRY = describe_file("model.onnx", DATA)
PUBLISHED = {ENTRY.sha256: "f" * 64}


def chunk(number: int) -> bytes:
    """Return a true chunk of the test's file."""
    return DATA[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]


def arrived(data: bytes) -> Arrival:
    """Return a chunk that came and opened."""
    return Arrival(received=len(data), data=data)


MOVES = st.lists(
    st.tuples(st.integers(-1, 7), st.sampled_from(["true", "false", "empty", "short", "shut"])), max_size=40
)


@given(MOVES)
def test_any_order_of_any_chunks_ends_complete_or_resumable(moves: list[tuple[int, str]]) -> None:
    progress = Progress(ENTRY)
    written: dict[int, bytes] = {}
    for number, how in moves:
        payload = {"true": chunk(number), "false": b"\0" * CHUNK_BYTES, "short": chunk(number)[:-1]}.get(how, b"")
        arrival = Arrival(received=CHUNK_BYTES, data=None) if how == "shut" else arrived(payload)
        progress, outcome = accept(progress, number, arrival)
        if outcome is Outcome.STORED:
            assert number not in written
            written[number] = payload

    assert set(written) | set(progress.missing()) == set(range(6))
    for wanted in next_window([progress], published=PUBLISHED):
        progress, outcome = accept(progress, wanted.number, arrived(chunk(wanted.number)))
        assert outcome is Outcome.STORED
        written[wanted.number] = chunk(wanted.number)
    assert progress.complete
    assert b"".join(written[number] for number in range(6)) == DATA


@given(st.lists(st.integers(0, 20 * CHUNK_BYTES), min_size=1, max_size=5))
def test_a_window_asks_for_at_most_eight_chunks_and_never_for_one_that_is_held(lengths: list[int]) -> None:
    hashes = ["0" * 64]
    files = [
        Progress(
            FileEntry(
                name="f", length=length, sha256=f"{index:064x}", chunks=tuple(hashes * -(-length // CHUNK_BYTES))
            ),
            have=0b101 if length > 3 * CHUNK_BYTES else 0,
        )
        for index, length in enumerate(lengths)
    ]
    published = {file.entry.sha256: f"{index + 100:064x}" for index, file in enumerate(files)}
    window = next_window(files, published=published)

    assert len(window) == min(WINDOW, sum(len(tuple(file.missing())) for file in files))
    assert len({each.topic for each in window}) == len(window)
    assert not any(files[int(each.sha256, 16)].holds(each.number) for each in window)
    assert all(published[each.sha256] in each.topic and each.sha256 not in each.topic for each in window)


def test_windows_that_bring_nothing_are_told_apart() -> None:
    wanted = Wanted("0" * 64, 0, "f" * 64, length=17)
    stall = Stall().after({}).after({wanted: Outcome.EMPTY}).after({wanted: Outcome.CORRUPT})

    assert (stall.silent, stall.corrupt) == (2, 1)
    assert stall.after({wanted: Outcome.STORED}) == Stall()


def test_a_partial_file_goes_on_where_it_stopped(tmp_path: Path) -> None:
    PartialFile(tmp_path, ENTRY).add({0: arrived(chunk(0)), 5: arrived(chunk(5)), 2: arrived(b"lies")})

    again = PartialFile(tmp_path, ENTRY)
    assert tuple(again.progress.missing()) == (1, 2, 3, 4)
    again.add({number: arrived(chunk(number)) for number in (1, 2, 3, 4)})

    assert again.finish() == DATA
    assert again.progress.received == len(DATA) + len(b"lies")


def test_what_the_disk_has_spoilt_of_a_partial_file_is_missing_again(tmp_path: Path) -> None:
    file = PartialFile(tmp_path, ENTRY)
    file.add({number: arrived(chunk(number)) for number in range(6)})
    file.path.write_bytes(b"?" + DATA[1:])

    with pytest.raises(Broken, match="got 1 other ones from the disk"):
        file.finish()
    assert tuple(PartialFile(tmp_path, ENTRY).progress.missing()) == (0,)


def test_chunks_that_make_another_file_than_was_signed_never_will(tmp_path: Path) -> None:
    file = PartialFile(tmp_path, replace(ENTRY, sha256="0" * 64))
    file.add({number: arrived(chunk(number)) for number in range(6)})

    with pytest.raises(Rejected, match="over the whole file"):
        file.finish()
    assert file.progress.have == 0


def test_a_bitmap_that_cannot_be_read_proves_nothing(tmp_path: Path) -> None:
    file = PartialFile(tmp_path, ENTRY)
    file.add({0: arrived(chunk(0))})
    (tmp_path / f"{ENTRY.sha256}.map").write_bytes(b'{"have": "zz"}')

    assert PartialFile(tmp_path, ENTRY).progress.have == 0


def test_a_durable_write_replaces_the_whole_file_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_durably(path, b"old")
    (tmp_path / ".key.new").write_bytes(b"left over by a power cut")

    write_durably(path, b"new", mode=0o600)

    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o600)
    assert [each.name for each in tmp_path.iterdir()] == ["key"]


def test_a_durable_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    write_durably(path, b"old")

    def refuse(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(Broken, match="No space left"):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old"


def artifact(name: str) -> tuple[dict[str, bytes], str]:
    """Return the files of a small artifact and the digest of its manifest."""
    model = name.encode() * 100
    manifest = make_manifest({"model.onnx": model}, created=name)
    data = codec.encode(manifest)
    return {"model.onnx": model, MANIFEST: data}, hashlib.sha256(data).hexdigest()


def install(slots: Slots, name: str) -> str:
    """Stage, activate and commit an artifact; return its digest."""
    files, digest = artifact(name)
    slots.stage(files, release=name, deployment=name)
    slots.activate()
    slots.commit()
    return digest


def test_a_staged_artifact_does_not_touch_the_one_that_runs(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    install(slots, "v1")
    active = slots.active

    name = slots.stage(artifact("v2")[0], release="v2", deployment="d2")

    assert slots.active == active != name
    assert slots.pointer.slot(name).mark == Mark.PENDING.value
    assert Slots(tmp_path).pointer == slots.pointer


def test_a_trial_is_rolled_back_to_the_last_good_slot(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    first = install(slots, "v1")
    files, second = artifact("v2")
    slots.stage(files, release="v2", deployment="d2")
    trial = slots.activate()

    for _ in range(2):  # once more after a power cut
        slots = Slots(tmp_path)
        back = slots.roll_back(second)

        assert (back.manifest, slots.pointer.slot(slots.active).manifest) == (first, first)
        assert slots.pointer.slot(trial).mark == Mark.BAD.value


def test_a_first_artifact_that_is_rolled_back_leaves_nothing_active(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    files, digest = artifact("v1")
    slots.stage(files, release="v1", deployment="d1")
    slots.activate()

    assert slots.roll_back(digest).manifest == ""
    assert slots.active == ""
    assert install(slots, "v2")


def test_what_was_revoked_is_never_rolled_back_to(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    first, second = install(slots, "v1"), install(slots, "v2")
    slots.note_standing(revoked=[first], listed=[second])

    for _ in range(2):  # once more after a power cut
        slots = Slots(tmp_path)
        assert slots.roll_back(second).manifest == ""
        assert slots.active == ""
    assert install(slots, "v3")
    assert slots.pointer.slot(slots.active).fit


def test_a_standing_that_nobody_could_look_up_stays_and_one_that_is_listed_again_is_good_again(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    first, second = install(slots, "v1"), install(slots, "v2")
    slots.note_standing(revoked=[first, second], listed=[])
    slots.note_standing(revoked=[], listed=[])
    assert [slots.pointer.slot(name).revoked for name in NAMES] == [True, True]

    slots.note_standing(revoked=[], listed=[first])
    assert slots.roll_back(second).manifest == first


def test_with_both_revoked_there_is_still_room_for_the_next(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    first, second = install(slots, "v1"), install(slots, "v2")
    slots.note_standing(revoked=[first, second], listed=[])

    slots.roll_back("neither")
    assert slots.active == ""
    assert install(slots, "v3")


def test_a_damaged_slot_is_noticed_and_the_one_before_is_still_there(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    first = install(slots, "v1")
    second = install(slots, "v2")
    (slots.folder(slots.active) / "model.onnx").write_bytes(b"rot")

    with pytest.raises(Rejected, match=r"expected model\.onnx as signed"):
        slots.read(slots.active)
    assert slots.roll_back(second).manifest == first
    assert slots.read(slots.active).created == "v1"


def test_a_slot_is_bad_from_its_first_byte_until_its_digests_hold(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    files, _ = artifact("v1")

    with pytest.raises(Rejected):
        slots.stage({**files, "model.onnx": b"other bytes"}, release="v1", deployment="d1")
    assert slots.pointer.a.mark == Mark.BAD.value
    with pytest.raises(Broken, match="expected one that is pending"):
        slots.activate()


@pytest.mark.parametrize("writes", range(9))
def test_a_power_cut_at_any_write_leaves_the_last_good_slot_active(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    slots = Slots(tmp_path)
    first = install(slots, "v1")
    left = writes

    def write_until_the_cut(path: Path, data: bytes, *, mode: int = 0o644) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        write_durably(path, data, mode=mode)

    monkeypatch.setattr("skerry.delivery.slots.write_durably", write_until_the_cut)
    try:
        second = install(slots, "v2")
    except KeyboardInterrupt:
        second = artifact("v2")[1]
    monkeypatch.undo()

    after = Slots(tmp_path)
    running = after.read(after.active).created
    assert running in ("v1", "v2")
    assert running == "v1" or after.pointer.slot(after.active).manifest == second
    assert after.roll_back(second).manifest == first
    assert install(after, "v3")
