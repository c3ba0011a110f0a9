"""A state folder of which the disk has spoilt a file: the device starts, runs nothing unproven, forgets no trust."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent.__main__ import main
from agent.config import Config
from agent.deployment.lifecycle import Good, Grant, Phase, State
from agent.deployment.runner import Saved, encode_saved, read_state
from agent.fetching.desired import DesiredFile
from agent.identity.folder import Identity, StateFolder
from agent.trust.assignment import Inbox
from agent.trust.floor import advance, read_floor
from agent.upkeep import recovery
from agent.upkeep.recovery import recover
from skerry.delivery.chunks import Arrival, Progress
from skerry.delivery.durable import write_durably
from skerry.delivery.partial import PartialFile
from skerry.delivery.slots import Mark, Slots
from skerry.errors import Broken
from skerry.wire import codec
from skerry.wire.enrolment import Anchor
from skerry.wire.manifest import CHUNK_BYTES, describe_file
from skerry.wire.messages import Desired
from tests.manifests import make_manifest

IDENTITY = Identity(
    project="watch",
    device="watch-1",
    profile="gateway",
    runtime="onnxruntime",
    architecture="x86_64",
    broker="mqtts://broker.example:8883",
    server="https://server.example:8443",
)
ANCHOR = Anchor(project="watch", image_root="{}", director_root="{}", server_ca="-----BEGIN")
ASSIGNMENT = b'{"metadata":{"targets":"{}"},"v":1}'


Damage = Callable[[bytes, random.Random], bytes | None]


def missing(_data: bytes, _rng: random.Random) -> bytes | None:
    return None


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def zeroed(data: bytes, rng: random.Random) -> bytes:
    start = rng.choice([0, rng.randrange(len(data))])
    return data[:start] + bytes(len(data) - start)


def flipped(data: bytes, rng: random.Random) -> bytes:
    spoilt = bytearray(data)
    spoilt[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(spoilt)


def filled(data: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(max(len(data), 512))


DAMAGES = (missing, truncated, zeroed, flipped, filled)
each_damage = pytest.mark.parametrize("damage", DAMAGES, ids=lambda each: str(each.__name__))


def seeds(damage: Damage) -> range:
    return range({missing: 1, flipped: 32}.get(damage, 6))


@pytest.fixture(autouse=True)
def memory_is_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for no disk: which syncs there must be is shown in `tests/power`."""
    monkeypatch.setattr("os.fsync", lambda _: None)


def spoil(file: Path, damage: Damage, seed: int) -> bool:
    """Damage a file; False when that has left it as it was."""
    before = file.read_bytes()
    after = damage(before, random.Random(seed))
    if after is None:
        file.unlink()
    else:
        file.write_bytes(after)
    return after != before


def artifact(version: int) -> dict[str, bytes]:
    files = {"model.onnx": random.Random(version).randbytes(3000), "golden.npz": b"golden"}
    return {**files, "manifest.json": codec.encode(make_manifest(files, version=version))}


def digest(version: int) -> str:
    return hashlib.sha256(artifact(version)["manifest.json"]).hexdigest()


def grant(version: int) -> Grant:
    return Grant(deployment=f"d{version}", release=f"strokes-{version}", manifest=digest(version))


def good(version: int) -> Good:
    return Good(manifest=digest(version), release=f"strokes-{version}", deployment=f"d{version}")


def stage(folder: StateFolder, version: int) -> Slots:
    slots = Slots(folder.slots)
    slots.stage(artifact(version), release=f"strokes-{version}", deployment=f"d{version}")
    return slots


def commit(folder: StateFolder, version: int) -> None:
    slots = stage(folder, version)
    slots.activate()
    slots.commit()
    folder.lifecycle_file.write_bytes(
        encode_saved(Saved(State(phase=Phase.COMMITTED.value, grant=grant(version), good=good(version))))
    )


def make_device(path: Path) -> StateFolder:
    """Return the state of a device that had version 1 and runs version 2, with all else that is kept."""
    folder = StateFolder(path)
    folder.keep(IDENTITY, anchor=codec.encode(ANCHOR), key=b"secret", certificate="", broker_ca="")
    commit(folder, 1)
    commit(folder, 2)
    inbox = Inbox(path)
    inbox.offer(ASSIGNMENT)
    inbox.decided(ASSIGNMENT)
    DesiredFile(path).offer(codec.encode(Desired(version=4)))
    (folder.trust / "director").mkdir(parents=True)
    (folder.trust / "director" / "targets.json").write_bytes(b'{"signed":{"version":7}}')
    advance(folder.trust, 1000.0)
    return folder


@pytest.fixture
def device(tmp_path: Path) -> StateFolder:
    return make_device(tmp_path / "state")


def check(folder: StateFolder, *, runs: int) -> None:
    """Everything opens; what runs is whole and was the last good one, and nothing else would be rolled back to."""
    slots, state = Slots(folder.slots), read_state(folder.lifecycle_file)
    assert bool(slots.active) == bool(runs)
    if runs:
        assert slots.read(slots.active).version == runs
        assert slots.pointer.slot(slots.active).mark == Mark.GOOD.value
        assert slots.pointer.slot(slots.active).manifest == state.good.manifest
        assert slots.pointer.slot(slots.active).release == state.good.release == f"strokes-{runs}"
    else:
        assert state.good == Good()
    assert folder.identity() == IDENTITY
    assert folder.anchor() == ANCHOR
    assert folder.credentials.key.read_bytes() == b"secret"
    assert not list(folder.path.glob("device.key.*"))
    assert (folder.trust / "director" / "targets.json").read_bytes() == b'{"signed":{"version":7}}'
    Inbox(folder.path)
    DesiredFile(folder.path)
    read_floor(folder.trust)


@each_damage
@pytest.mark.parametrize("name", ["lifecycle.json", "slots/pointer.json"])
def test_of_pointer_and_lifecycle_each_is_made_anew_from_the_other(tmp_path: Path, name: str, damage: Damage) -> None:
    for seed in seeds(damage):
        folder = make_device(tmp_path / str(seed))
        file = folder.path / name
        spoil(file, damage, seed)
        before = file.read_bytes() if file.exists() else b""

        found = recover(folder, Config())

        check(folder, runs=2)
        if not found.lines:
            # the bit that turned was in the name of the checksum
            assert damage is flipped, seed
            continue
        assert len(found.lines) == 1
        assert name in found.lines[0]
        # the assignment is judged anew, which brings back what the pointer knew of revocations
        assert Inbox(folder.path).pending() == ASSIGNMENT
        kept = file.with_name(f"{file.name}.damaged")
        assert (kept.read_bytes() if kept.exists() else b"") == before
        if name == "slots/pointer.json":
            # whether version 1 may still be run is not known any more
            pointer = Slots(folder.slots).pointer
            assert [pointer.slot(each).fit for each in ("a", "b")] == [False, True]
            assert read_state(folder.lifecycle_file).grant == grant(2)
        else:
            # any assignment is a new one, the same artifact is `present`
            assert read_state(folder.lifecycle_file).grant is None
            assert "lifecycle.json was" in read_state(folder.lifecycle_file).reason
        assert recover(folder, Config()).lines == ()


@each_damage
@pytest.mark.parametrize("name", ["identity.json", "anchor.json", "VERSION"])
def test_what_exists_twice_is_restored_from_the_other_copy(tmp_path: Path, name: str, damage: Damage) -> None:
    for seed in seeds(damage):
        for which in (name, f"{name}.copy"):
            folder = make_device(tmp_path / f"{seed}-{which}")
            file = folder.path / which
            whole = file.read_bytes()
            if not spoil(file, damage, seed):
                continue
            # a line of the device's own, by whoever only reads
            assert StateFolder(folder.path).identity() == IDENTITY

            lines = recover(StateFolder(folder.path), Config()).lines

            if (name, file.read_bytes()) == ("VERSION", b"1"):
                # it has lost the end of its line, and still says what it said
                continue
            assert [name in line for line in lines] == [True] * (which == name)
            assert file.read_bytes() == whole
            check(folder, runs=2)
            assert recover(folder, Config()).lines == ()


@pytest.mark.parametrize("name", ["identity.json", "anchor.json"])
def test_when_both_copies_are_gone_it_is_one_line(
    device: StateFolder, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for which in (name, f"{name}.copy"):
        (device.path / which).write_bytes(bytes(100))

    assert main(["run", "--state", str(device.path)]) in (2, 4)

    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skerry-agent: ")]
    assert len(said) == 1
    assert name in said[0]
    assert "enrol again" in said[0]


def test_a_folder_of_an_older_agent_gets_its_copies_and_what_its_owner_edits_is_believed(device: StateFolder) -> None:
    for copy in device.path.glob("*.copy"):
        copy.unlink()
    assert recover(device, Config()).lines == ()
    moved = replace(IDENTITY, broker="mqtts://elsewhere.example:8883")
    device.identity_file.write_bytes(codec.encode(moved))

    assert recover(device, Config()).lines == ()

    device.identity_file.write_bytes(b"")
    assert device.identity() == moved


def test_a_refusal_that_was_learnt_is_in_both_copies(device: StateFolder) -> None:
    device.keep_refusal()
    device.identity_file.unlink()
    assert device.identity().refuse_automatic


@each_damage
@pytest.mark.parametrize("name", ["assignment.json", "assignment.decided", "desired.json", "trust/floor.json"])
def test_what_will_be_said_again_is_done_without(tmp_path: Path, name: str, damage: Damage) -> None:
    for seed in seeds(damage):
        folder = make_device(tmp_path / str(seed))
        file = folder.path / name
        spoil(file, damage, seed)

        lines = recover(folder, Config()).lines

        check(folder, runs=2)
        assert all(name.rpartition("/")[2] in line for line in lines)
        # the floor never rises by damage, and a configuration is never taken for a newer one
        assert read_floor(folder.trust) in (0.0, 1000.0)
        assert DesiredFile(folder.path).version in (0, 4)
        assert DesiredFile(folder.path).problem == ""
        if name == "desired.json":
            desired = DesiredFile(folder.path)
            assert desired.offer(codec.encode(Desired(version=5)))
        elif name == "assignment.decided":
            assert Inbox(folder.path).pending() in (ASSIGNMENT, None)
        elif name == "assignment.json":
            # nothing is decided on, or what is there is for the judge, who looks at its signatures
            pending = Inbox(folder.path).pending()
            assert pending is None or (damage is flipped and pending != ASSIGNMENT)
            assert Inbox(folder.path).offer(ASSIGNMENT)
        elif read_floor(folder.trust) == 0.0:
            assert Inbox(folder.path).pending() == ASSIGNMENT


@each_damage
def test_a_bitmap_that_is_damaged_never_makes_a_good_file_a_bad_one(tmp_path: Path, damage: Damage) -> None:
    data = random.Random(1).randbytes(5 * CHUNK_BYTES + 17)
    entry = describe_file("model.onnx", data)
    chunks = [data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)]
    for seed in seeds(damage):
        part = PartialFile(tmp_path / str(seed), entry)
        part.add({number: Arrival(received=0, data=chunks[number]) for number in (0, 2, 3)})
        held = part.progress.have
        spoil(part._map, damage, seed)

        again = PartialFile(tmp_path / str(seed), entry)

        assert again.progress in (part.progress, Progress(entry))
        assert again.progress.have in (held, 0)
        again.add({number: Arrival(received=0, data=chunks[number]) for number in again.progress.missing()})
        assert again.finish() == data


# --- what the two files know of each other


def save(folder: StateFolder, state: State) -> None:
    folder.lifecycle_file.write_bytes(encode_saved(Saved(state)))


@pytest.mark.parametrize("phase", [Phase.STAGED, Phase.REPLAYING, Phase.TRIAL])
def test_without_its_pointer_a_trial_goes_on_with_what_is_staged(device: StateFolder, phase: Phase) -> None:
    slots = stage(device, 3)
    if phase is Phase.TRIAL:
        slots.activate()
    save(device, State(phase=phase.value, grant=grant(3), good=good(2), attempts=1))
    (device.slots / "pointer.json").unlink()

    recover(device, Config())

    check(device, runs=2)
    slots, state = Slots(device.slots), read_state(device.lifecycle_file)
    assert (state.phase, state.attempts) == (phase.value, 1)
    assert slots.read(slots.activate()).version == 3
    assert slots.roll_back(digest(3)).release == "strokes-2"


def test_without_its_lifecycle_what_was_on_trial_runs_no_more(device: StateFolder) -> None:
    stage(device, 3).activate()
    save(device, State(phase=Phase.TRIAL.value, grant=grant(3), good=good(2)))
    device.lifecycle_file.write_bytes(b"")

    recover(device, Config())

    check(device, runs=2)
    assert Slots(device.slots).stage(artifact(3), release="strokes-3", deployment="d3")


def test_a_slot_that_is_not_whole_is_never_believed(device: StateFolder) -> None:
    (device.slots / "pointer.json").unlink()
    (device.slots / "b" / "model.onnx").write_bytes(b"\0" * 3000)

    assert "nothing is known to be good" in recover(device, Config()).lines[0]

    check(device, runs=0)
    # and the same assignment is a new one, so it is fetched again
    assert read_state(device.lifecycle_file).phase == Phase.IDLE.value


def test_without_both_files_no_slot_runs_before_it_has_been_judged_and_tried(device: StateFolder) -> None:
    # version 1 may have been revoked, and version 2 may have failed: whole they are both
    device.lifecycle_file.write_bytes(bytes(300))
    (device.slots / "pointer.json").unlink()

    recover(device, Config())

    check(device, runs=0)
    assert Inbox(device.path).pending() == ASSIGNMENT
    assert Slots(device.slots).stage(artifact(2), release="strokes-2", deployment="d2")


def test_a_release_that_was_revoked_is_not_rolled_back_to(device: StateFolder) -> None:
    Slots(device.slots).note_standing(revoked=[digest(1)], listed=[digest(2)])
    (device.slots / "pointer.json").write_bytes(b"{")

    recover(device, Config())

    slots = Slots(device.slots)
    assert slots.roll_back(digest(2)).manifest == ""


def test_a_device_that_lost_its_good_slot_while_rolling_back_goes_on_with_what_comes_next(device: StateFolder) -> None:
    rolling = State(phase=Phase.ROLLING_BACK.value, grant=grant(2), good=good(2), undo=digest(2))
    (device.slots / "pointer.json").unlink()
    save(device, replace(rolling, following=grant(3)))
    recover(device, Config())
    state = read_state(device.lifecycle_file)
    assert (state.phase, state.grant, state.good) == (Phase.ASSIGNED.value, grant(3), Good())
    check(device, runs=0)


def test_each_component_is_put_right_by_itself(device: StateFolder) -> None:
    place = device.component("lamps")
    place.path.mkdir(parents=True)
    slots = Slots(place.slots)
    slots.stage(artifact(5), release="lamps-5", deployment="d5")
    slots.activate()
    slots.commit()
    place.lifecycle_file.write_bytes(bytes(40))

    lines = recover(device, Config()).lines

    assert [line.partition(":")[0] for line in lines] == ["lamps"]
    assert read_state(place.lifecycle_file).good.release == "lamps-5"
    check(device, runs=2)


def test_a_new_device_and_a_sound_one_are_left_alone(tmp_path: Path, device: StateFolder) -> None:
    new = StateFolder(tmp_path / "new")
    new.keep(IDENTITY, anchor=codec.encode(ANCHOR), key=b"secret", certificate="", broker_ca="")
    for folder in (new, device):
        before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
        assert recover(folder, Config()).lines == ()
        assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "spoilt", [("lifecycle.json",), ("slots/pointer.json",), ("lifecycle.json", "slots/pointer.json")]
)
@pytest.mark.parametrize("trial", [False, True])
def test_a_power_cut_while_it_is_put_right_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoilt: tuple[str, ...], trial: bool
) -> None:
    ends = set()
    for cut_at in range(4):
        folder = make_device(tmp_path / str(cut_at))
        if trial:
            stage(folder, 3).activate()
            save(folder, State(phase=Phase.TRIAL.value, grant=grant(3), good=good(2)))
        for name in spoilt:
            (folder.path / name).write_bytes(b"")
        writes = 0

        def write(path: Path, data: bytes, *, mode: int = 0o644, at: int = cut_at) -> None:
            nonlocal writes
            writes += 1
            if writes == at:
                raise Broken("the power went")
            write_durably(path, data, mode=mode)

        monkeypatch.setattr(recovery, "write_durably", write)
        if cut_at in (1, 2):
            with pytest.raises(Broken, match="the power went"):
                recover(folder, Config())
        recover(folder, Config())

        assert Inbox(folder.path).pending() == ASSIGNMENT
        check(folder, runs=0 if len(spoilt) == 2 else 2)
        state = replace(read_state(folder.lifecycle_file), reason="")
        ends.add((repr(Slots(folder.slots).pointer), repr(state)))
    assert len(ends) == 1
