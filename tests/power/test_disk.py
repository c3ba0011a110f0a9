"""The matrix's own parts: the reader of recordings, and the model of a disk. What they miss, the matrix misses."""

from pathlib import Path
from typing import Any

import pytest

from tests.power.cuts import find_cuts
from tests.power.disk import Bytes, Chosen, Disk, Tree, read_tree, write_tree
from tests.power.mqtt import PublishReader
from tests.power.operations import Make, Open, Operation, Remove, Rename, Sync, Write, read_operations
from tests.power.strace import UnreadableTraceError, read_calls

ROOT = "/state"


def _hex(text: str) -> str:
    return "".join(f"\\x{each:02x}" for each in text.encode())


def _string(text: str) -> str:
    return f'"{_hex(text)}"'


def trace(folder: Path, *lines: str) -> Path:
    """Write a recording; `<PATH>` and `"TEXT"` are given in plain."""
    file = folder / "trace"
    file.write_text("".join(f"7 {number}.0 {line}\n" for number, line in enumerate(lines)))
    return file


Step = tuple[type[Operation], dict[str, Any]]


def operations(*steps: Step) -> list[Operation]:
    """Return operations that come one after the other."""
    return [kind(began=number, ended=number, time=0.0, **fields) for number, (kind, fields) in enumerate(steps)]


def trees(steps: list[Operation], initial: Tree | None = None) -> list[dict[str, bytes]]:
    """Return the files of every tree that a cut after the last of these steps may leave."""
    disk = Disk.holding(initial or {})
    for each in steps:
        disk.apply(each)
    cuts = [cut for cut in find_cuts(initial or {}, steps) if cut.at == len(steps) - 1]
    found = [disk.tree(cut.chosen) for cut in cuts]
    return [{path: content for path, (kind, content) in tree.items() if kind == "file"} for tree in found]


DURABLY: tuple[Step, ...] = (
    (Open, {"path": "new", "truncate": False}),
    (Write, {"path": "new", "offset": 0, "data": b"2" * 600}),
    (Sync, {"path": "new"}),
    (Rename, {"path": "new", "to": "file"}),
    (Sync, {"path": ""}),
)
OLD: Tree = {"file": ("file", b"1" * 600)}


def test_a_file_that_is_written_durably_is_the_old_one_or_the_new_one_at_every_moment() -> None:
    for last in range(1, len(DURABLY) + 1):
        found = {tree["file"] for tree in trees(operations(*DURABLY[:last]), OLD)}
        assert found <= {b"1" * 600, b"2" * 600}
    assert found == {b"2" * 600}


def test_without_the_sync_of_the_file_its_new_name_may_stand_for_nothing_a_part_or_zeros() -> None:
    found = {tree["file"] for tree in trees(operations(*DURABLY[:2], *DURABLY[3:]), OLD)}

    assert {b"", b"2" * 512, bytes(600), b"2" * 600} <= found
    assert b"1" * 600 not in found


def test_without_the_sync_of_the_folder_the_old_file_may_be_back() -> None:
    assert {tree["file"] for tree in trees(operations(*DURABLY[:4]), OLD)} == {b"1" * 600, b"2" * 600}


def test_a_sync_covers_what_ended_before_it_began() -> None:
    steps = operations(*DURABLY[:3])
    early = Sync(path="new", began=0, ended=2, time=0.0)

    assert Disk.holding(OLD).pending == []
    for sync, left in ((steps[2], 1), (early, 2)):
        disk = Disk.holding(OLD)
        for each in (*steps[:2], sync):
            disk.apply(each)
        assert len(disk.pending) == left


def test_what_was_removed_may_be_back_until_the_folder_is_synced() -> None:
    removed = operations((Remove, {"path": "file"}))

    assert {"file" in tree for tree in trees(removed, OLD)} == {True, False}
    synced = [*removed, Sync(path="", began=5, ended=5, time=0.0)]
    assert ["file" in tree for tree in trees(synced, OLD)] == [False]


def test_what_is_in_a_folder_is_lost_with_its_name() -> None:
    steps = operations(
        (Make, {"path": "a"}),
        (Open, {"path": "a/file", "truncate": False}),
        (Sync, {"path": "a"}),
        (Sync, {"path": "a/file"}),
    )
    assert {"a/file" in tree for tree in trees(steps)} == {True, False}


def test_torn_writes_keep_whole_sectors_of_the_disk() -> None:
    write = Bytes(500, b"x" * 1000, sectors=frozenset({1}))

    assert write.torn == [0, 1, 2]
    assert write.apply(b"-" * 1500) == b"-" * 512 + b"x" * 512 + b"-" * 476


def test_a_tree_is_written_and_read_back(tmp_path: Path) -> None:
    tree: Tree = {"a": ("folder", b""), "a/file": ("file", b"1"), "link": ("link", b"a/file")}
    write_tree(tree, tmp_path / "tree")

    assert read_tree(tmp_path / "tree") == tree
    disk = Disk.holding(tree)
    assert disk.tree(Chosen(disk.all_pending)) == tree


def test_calls_of_several_threads_are_put_together(tmp_path: Path) -> None:
    path = _hex(f"{ROOT}/file")
    file = tmp_path / "trace"
    file.write_text(
        f"7 1.0 openat(AT_FDCWD<{_hex('/')}>, {_string(f'{ROOT}/file')}, O_WRONLY|O_CREAT|O_EXCL, 0644) = 3<{path}>\n"
        f"7 2.0 write(3<{path}>, {_string('hel')} <unfinished ...>\n"
        f"8 2.1 fsync(9<{_hex(ROOT)}>) = 0\n"
        f"7 2.2 <... write resumed>, 3) = 3\n"
        f"7 2.3 write(3<{path}>, {_string('lo')}, 2) = 2\n"
        f"8 2.4 ???() = ?\n"
        f"7 2.5 +++ exited with 0 +++\n"
    )

    found = list(read_operations(read_calls(file), ROOT))

    assert [type(each) for each in found] == [Open, Sync, Write, Write]
    assert [(each.offset, each.data) for each in found if isinstance(each, Write)] == [(0, b"hel"), (3, b"lo")]
    assert (found[2].began, found[2].ended) == (1, 3)


@pytest.mark.parametrize(
    "line",
    [
        f"fallocate(3<{_hex(ROOT)}{_hex('/file')}>, 0, 0, 10) = 0",
        f"link({_string('/else')}, {_string(f'{ROOT}/file')}) = 0",
        f"write(3<{_hex(ROOT)}{_hex('/file')}>, {_string('x')}, 1) = 1",
        f"mmap(NULL, 9, PROT_READ|PROT_WRITE, MAP_SHARED, 3<{_hex(ROOT)}{_hex('/file')}>, 0) = 0x7f",
        f"renameat2(3<{_hex(ROOT)}>, {_string('a')}, 3<{_hex(ROOT)}>, {_string('b')}, RENAME_EXCHANGE) = 0",
        "io_uring_setup(8, 0x7f) = 4",
        "no call at all",
    ],
)
def test_an_operation_that_the_model_does_not_know_fails_the_recording(tmp_path: Path, line: str) -> None:
    with pytest.raises(UnreadableTraceError):
        list(read_operations(read_calls(trace(tmp_path, line)), ROOT))


def test_what_does_not_concern_the_folder_is_left_out(tmp_path: Path) -> None:
    lines = [
        f"openat(AT_FDCWD<{_hex('/')}>, {_string('/else')}, O_WRONLY|O_CREAT, 0644) = 3<{_hex('/else')}>",
        f"write(3<{_hex('/else')}>, {_string('x')}, 1) = 1",
        f"unlink({_string(f'{ROOT}/file')}) = -1 ENOENT (No such file or directory)",
        f"pwrite64(5<{_hex(f'{ROOT}/outbox.db-shm')}>, {_string('x')}, 1, 4095) = 1",
        f"unlink({_string('/stateful')}) = 0",
    ]
    assert list(read_operations(read_calls(trace(tmp_path, *lines)), ROOT)) == []


def test_messages_are_read_out_of_a_stream_in_pieces() -> None:
    publish = b"\x32\x0b\x00\x03a/b\x00\x01\x00xyz"
    stream = b"\x10\x02\x00\x00" + publish + b"\xc0\x00" + publish
    reader = PublishReader()

    found = [each for start in range(len(stream)) for each in reader.feed(stream[start : start + 1])]

    assert found == [("a/b", b"xyz")] * 2
    assert list(PublishReader().feed(b"GET / HTTP/1.1\r\n\r\n")) == []
