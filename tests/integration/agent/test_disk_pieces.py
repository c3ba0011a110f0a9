"""The pieces of an agent on real disks that refuse: read-only, full, and well again."""

import errno
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from agent.config import Config
from agent.daemon import Daemon
from agent.deployment.lifecycle import Grant, Phase, State
from agent.deployment.runner import Saved, encode_saved
from agent.identity.folder import StateFolder
from agent.inference import held
from agent.inference.windows import Windows
from agent.local.serving_port import Models
from agent.local.serving_port import Rows as ServedRows
from agent.telling.outbox import OutboxFile, look
from agent.upkeep import holding
from agent.upkeep.disk import LOOK_S, Disk
from agent.wiring import Ground, open_face
from skerry.delivery.slots import Mark, Slots, encode_pointer
from skerry.errors import Broken
from skerry.inference import local_socket
from skerry.inference.local_socket import connect_first, socket_places
from skerry.runtimes.arrays import pack
from skerry.wire import codec
from skerry.wire.messages import Gap
from skerry.wire.report import decode_report
from tests.integration.agent.shore import LABELS, WINDOW_ROWS, wait_for
from tests.integration.agent.spoilt import Stranded, request_for
from tests.mounts import Mounted, mounted
from tests.unit.agent.engine_bench import MANIFEST, WIDTH, row
from tests.unit.agent.test_state_folder import enrolled

RATE = 100.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Mounted]:
    """A disk with nothing on it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with mounted(folder, size="12m") as disk:
        yield disk


def rows(path: Path) -> list[tuple[int, str, bytes]]:
    """Return what an outbox holds."""
    with sqlite3.connect(path) as db:
        found = db.execute("select sequence, kind, body from outbox order by sequence").fetchall()
    db.close()
    return found


# --- the disk


def test_a_disk_is_read_only_until_it_is_mended(disk: Mounted) -> None:
    now = [0.0]
    assert Disk(disk.folder).problem == ""
    disk.make_read_only()
    found = Disk(disk.folder, clock=lambda: now[0])

    def is_mended(after_s: float) -> bool:
        now[0] += after_s
        return found.is_mended

    assert found.problem.startswith("the disk is read-only")
    assert not is_mended(LOOK_S)
    disk.make_writable()
    # it is not tried at every turn
    assert not is_mended(0.0)
    assert is_mended(LOOK_S)
    # what was not kept meanwhile is not there: it is a new start that makes it well
    assert found.problem


def test_the_ballast_goes_before_a_disk_is_called_full(disk: Mounted) -> None:
    outbox = disk.folder / "outbox.db"
    OutboxFile(outbox).close()
    disk.fill()

    assert Disk(disk.folder, outbox=outbox).problem == ""
    disk.fill()
    found = Disk(disk.folder, outbox=outbox, clock=lambda: 0.0)
    assert found.problem.startswith("the disk is full")


def test_a_little_room_is_no_reason_to_start_anew(disk: Mounted) -> None:
    now = [0.0]
    disk.fill()
    found = Disk(disk.folder, clock=lambda: now[0])
    with (disk.folder / "filled").open("r+b") as file:
        file.truncate((disk.folder / "filled").stat().st_size - (256 << 10))

    now[0] += LOOK_S
    was_mended = found.is_mended
    disk.make_room()
    now[0] += LOOK_S
    assert (was_mended, found.is_mended) == (False, True)


def test_a_disk_that_is_gone_is_not_mended(disk: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    disk.fill()
    found = Disk(disk.folder, clock=lambda: now[0])

    def gone(_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    now[0] += LOOK_S
    monkeypatch.setattr(os, "statvfs", gone)
    assert not found.is_mended
    monkeypatch.undo()
    disk.make_room()
    now[0] += LOOK_S
    assert found.is_mended


# --- the state folder


def test_the_lock_of_a_read_only_folder_is_held_by_one_agent(disk: Mounted) -> None:
    state = enrolled(disk.folder / "state")
    assert [state.starts(), state.starts()] == [1, 2]
    disk.make_read_only()

    with state.lock(), pytest.raises(Broken, match="another one running"):
        state.lock()
    number, ago_s = state.last_start()
    assert number == 2
    assert 0 <= ago_s < 60


DROPPED = """
import os, sys
import agent.__main__, agent.daemon, agent.upkeep.recovery, agent.upkeep.shadow
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
sys.exit(agent.__main__.main(["run", "--state", sys.argv[1]]))
"""


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_a_folder_of_another_user_is_one_line(mode: int) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs to be root to be somebody else")
    with tempfile.TemporaryDirectory() as above:
        state = enrolled(Path(above) / "state").path
        Path(above).chmod(0o755)
        state.chmod(mode)
        for each in state.iterdir():
            each.chmod(mode & 0o666)
        ran = subprocess.run([sys.executable, "-c", DROPPED, str(state)], capture_output=True, text=True, check=False)

    assert ran.returncode == 4
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"skerry-agent: {state}/")
    assert "Permission denied" in line


# --- the outbox


@pytest.mark.parametrize("how", ["closed", "open"])
def test_a_frozen_outbox_is_read_and_not_written_until_it_thaws(disk: Mounted, how: str) -> None:
    path = disk.folder / "outbox.db"
    before = OutboxFile(path)
    before.put("window", b"one", event_time=1.0)
    before.save_open("ab" * 32, b"body", number=4, event_clock=7.0)
    epoch = before.epoch
    kept = {each.name: each.read_bytes() for each in disk.folder.iterdir()}
    before.close()
    if how == "open":
        # as a power cut leaves it
        for name, data in kept.items():
            (disk.folder / name).write_bytes(data)
    disk.make_read_only()

    outbox = OutboxFile(path, frozen=True)
    assert (outbox.depth, outbox.epoch, outbox.event_clock(), outbox.open_window("ab" * 32).number) == (
        1,
        epoch,
        7.0,
        4,
    )
    assert look(path).rows == {"window": 1}
    for write in (lambda: outbox.put("window", b"two", event_time=1.0), outbox.batch):
        with pytest.raises(Broken):
            write()
    with pytest.raises(Broken):
        outbox.thaw()
    assert outbox.depth == 1

    disk.make_writable()
    outbox.thaw()
    assert outbox.put("window", b"two", event_time=1.0) == 2
    outbox.close()


def test_a_frozen_outbox_that_cannot_be_read_is_as_an_empty_one(disk: Mounted) -> None:
    path = disk.folder / "outbox.db"
    path.write_bytes(b"no database" * 1000)
    disk.make_read_only()
    outbox = OutboxFile(path, frozen=True)

    assert (outbox.depth, outbox.size_bytes, outbox.event_clock()) == (0, 0, 0.0)
    with pytest.raises(Broken):
        outbox.put("window", b"one", event_time=1.0)
    outbox.close()


def test_an_outbox_of_an_older_agent_is_opened_on_a_disk_that_is_nearly_full(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    with mounted(folder, size="4m") as disk:
        path = folder / "outbox.db"
        before = OutboxFile(path)
        for number in range(600):
            before.put("window", bytes(3900), event_time=float(number))
        before.close()
        with sqlite3.connect(path) as db:
            db.execute("pragma wal_autocheckpoint = 16")
            for number in range(1, 601):
                db.execute("update outbox set seal = null where sequence = ?", (number,))
                db.commit()
        db.close()
        disk.fill()
        with (folder / "filled").open("r+b") as file:
            file.truncate((folder / "filled").stat().st_size - (400 << 10))

        outbox = OutboxFile(path)
        assert (outbox.problem, outbox.depth) == ("", 600)
        outbox.close()
        disk.make_room()
        OutboxFile(path).close()
        with sqlite3.connect(path) as db:
            assert db.execute("select count(*) from outbox where seal is null").fetchone() == (0,)
        db.close()


def unread(disk: Mounted, *, number: int) -> Path:
    """An outbox as a power cut leaves it, with seven rows of an open window, that cannot be read without a write."""
    path = disk.folder / "outbox.db"
    before = OutboxFile(path)
    windows = windows_on(before)
    for _ in range(number):
        windows.count(ten_rows())
    windows.count(ServedRows(WIDTH, row() * 7))
    windows.end()
    kept = {each.name: each.read_bytes() for each in disk.folder.iterdir() if not each.name.endswith("-shm")}
    before.close()
    for name, data in kept.items():
        (disk.folder / name).write_bytes(data)
    disk.make_read_only()
    return path


def windows_on(outbox: OutboxFile) -> Windows:
    windows = Windows(config=Config(), outbox=outbox, event_time=lambda: 1.0, on_window=lambda: None)
    windows.open(MANIFEST, "ab" * 32)
    return windows


def ten_rows() -> ServedRows:
    return ServedRows(WIDTH, row() * 10)


@pytest.mark.parametrize("number", [0, 3])
def test_windows_that_were_counted_unread_follow_those_on_the_disk(disk: Mounted, number: int) -> None:
    outbox = OutboxFile(unread(disk, number=number), frozen=True)
    assert outbox.is_blind
    windows = windows_on(outbox)
    windows.count(ten_rows())
    # a roll-back and its return: what was open is closed early, and nothing is counted twice
    windows.count(ServedRows(WIDTH, row() * 4))
    windows.open(MANIFEST, "cd" * 32)
    windows.open(MANIFEST, "ab" * 32)
    windows.count(ServedRows(WIDTH, row() * 5))

    disk.make_writable()
    outbox.thaw()
    windows._held._again = 0.0
    windows.end()
    outbox.close()
    again = OutboxFile(disk.folder / "outbox.db")
    following = windows_on(again)
    following.count(ServedRows(WIDTH, row() * 3))
    again.close()

    reports = [decode_report(body) for _, kind, body in rows(disk.folder / "outbox.db") if kind == "window"]
    # the last one is of the seven rows that were saved, and three more
    assert [(report.window, report.rows) for report in reports] == [
        *((each, 10) for each in range(number)),
        *((number + each, counted) for each, counted in enumerate((10, 4, 5, 10))),
    ]


# --- inference on a disk that fills up


@pytest.fixture
def stranded(disk: Mounted, tmp_path: Path) -> Iterator[Stranded]:
    """A device without a network, with a source, on a disk of its own."""
    rng = np.random.default_rng(3)
    recording = tmp_path / "recording.npz"
    arrays: dict[str, Any] = {
        "X": rng.normal(size=(60, 100, 6)).astype(np.float32),
        "y": rng.integers(0, 3, size=60),
        "labels": np.array(LABELS),
    }
    recording.write_bytes(pack(arrays))
    device = Stranded(disk.folder, rate=RATE, replay=str(recording), save_rows=5)
    device.commit(1)
    yield device.wake()
    device.close()


def rate_of(device: Stranded, seconds: float = 1.5) -> float:
    """Return how many inferences there are in a second."""
    before, began = device.engine.inferences, time.monotonic()
    time.sleep(seconds)
    return (device.engine.inferences - before) / (time.monotonic() - began)


@pytest.mark.parametrize("most_bytes", [held.MOST_BYTES, 1500])
def test_inference_keeps_its_pace_on_a_full_disk_and_what_is_not_stored_is_counted(
    disk: Mounted, stranded: Stranded, monkeypatch: pytest.MonkeyPatch, most_bytes: int
) -> None:
    monkeypatch.setattr(held, "MOST_BYTES", most_bytes)
    monkeypatch.setattr(held, "RETRY_S", 0.5)
    wait_for(lambda: stranded.engine.inferences > 50, why="inferences")
    with_room = rate_of(stranded)

    while not stranded.engine.unkept:
        # the outbox frees its ballast, and gives up rows, before it refuses
        disk.fill()
        time.sleep(0.05)
    began = stranded.engine.inferences
    without_room = rate_of(stranded)
    wait_for(lambda: stranded.engine.inferences > began + 8 * WINDOW_ROWS, why="more windows than are held")
    assert "full" in stranded.engine.unkept
    disk.make_room()
    wait_for(lambda: not stranded.engine.unkept, why="a disk that takes it")
    stranded.close()

    print(f"{with_room:.0f} inferences/s with room, {without_room:.0f} without")
    # a disk that is asked at each row leaves a fiftieth of it; the machine of a test has other things to do
    assert without_room > 0.5 * with_room
    found = rows(stranded.state.outbox_file)
    gaps = [codec.decode(Gap, body) for _, kind, body in found if kind == "gap"]
    windows = [sequence for sequence, kind, _ in found if kind == "window"]
    accounted = len(windows) + sum(gap.count for gap in gaps)
    assert accounted == stranded.engine.inferences // WINDOW_ROWS
    # the outbox may have given up rows of its own before it refused
    reasons = {gap.reason for gap in gaps} - {"no room"}
    assert reasons == ({held.REASON} if most_bytes == 1500 else set())


# --- the local face


@pytest.mark.parametrize("runtime", [True, False])
def test_the_local_face_is_where_a_socket_can_be_and_programs_find_it(
    disk: Mounted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_port: Callable[[], int], runtime: bool
) -> None:
    monkeypatch.setattr(local_socket, "RUNTIME", tmp_path / ("run" if runtime else "is/not/there"))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    folder, port = enrolled(disk.folder / "state"), free_port()
    disk.make_read_only()
    ground = Ground(folder, folder.identity(), Config(serve=f"127.0.0.1:{port}"), Disk(folder.path))

    face, problem = open_face(ground, cast(Models, SimpleNamespace(serving=lambda: ())))

    assert face is not None
    assert problem == ""
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
    if runtime:
        # with the signs that a killed agent leaves
        connect_first(folder.path, timeout_s=5).close()
        assert holding.local_socket(folder).endswith(str(socket_places(folder.path)[1]))
    face.stop()
    assert not any(place.exists() for place in socket_places(folder.path))
    with pytest.raises((OSError, Broken)):
        connect_first(folder.path, timeout_s=5)


# --- which model runs


PHASES = {
    "committed": (2, State(phase=Phase.COMMITTED.value)),
    "on trial": (1, State(phase=Phase.TRIAL.value)),
    "given up, and not gone back yet": (1, State(phase=Phase.ROLLING_BACK.value, undo="2")),
    "spoilt": (1, State(phase=Phase.COMMITTED.value)),
}


@pytest.mark.parametrize("how", PHASES)
def test_on_a_disk_that_refuses_the_last_good_model_runs_and_nothing_moves(
    disk: Mounted, tmp_path: Path, how: str
) -> None:
    device = Stranded(tmp_path, rate=RATE)
    digests = {version: device.commit(version) for version in (1, 2)}
    place = device.state
    pointer = Slots(place.slots).pointer
    runs, state = PHASES[how]
    grant = Grant(deployment="d2", release="strokes-2", manifest=digests[2])
    state = replace(state, grant=grant, undo=digests[2] if state.undo else "")
    place.lifecycle_file.write_bytes(encode_saved(Saved(state=state)))
    if how == "on trial":
        pending = replace(pointer.slot(pointer.active), mark=Mark.PENDING.value)
        (place.slots / "pointer.json").write_bytes(encode_pointer(pointer.with_slot(pointer.active, pending)))
    if how == "spoilt":
        (place.slots / pointer.active / "model.onnx").write_bytes(b"spoilt")
    shutil.copytree(place.path, disk.folder / "state")
    disk.make_read_only()

    daemon = Daemon(StateFolder(disk.folder / "state"), Config(serve="off"), disk=Disk(disk.folder))
    daemon.units.start()
    running = daemon.units.main.engine.running
    head, body = request_for(1.0)
    reply = daemon.units.infer("strokes", "", head=head, body=body)
    # whoever tells of crash after crash has nobody act on it, and no memory either
    for _ in range(1000):
        daemon.units.crashed(digests[runs], reason="again")
    daemon.units.stop()
    daemon.units.join()
    daemon._outbox.close()

    assert running is not None
    assert (running.digest, reply.status, reply.manifest) == (digests[runs], 200, digests[runs])
    assert daemon.units.main.runner.state.phase == state.phase
