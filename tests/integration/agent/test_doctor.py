"""The doctor, with each fault made for real: what it says, who should act, and that it changes nothing."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agent.config import Config
from agent.deployment.lifecycle import Good, State
from agent.deployment.runner import Saved, encode_saved
from agent.identity.folder import StateFolder
from agent.telling.outbox import OutboxFile
from agent.trust.floor import advance
from agent.upkeep import checks
from agent.upkeep.doctor import CHECKS, Finding, diagnose, exit_status, show, to_json
from tests.integration.agent.ailing import (
    Patient,
    found,
    one,
    pem_of,
)
from tests.integration.agent.shore import Device, Shore, wait_for


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Return every file below a folder with its length and time."""
    return {str(each): (each.stat().st_size, each.stat().st_mtime_ns) for each in sorted(folder.rglob("*"))}


def test_a_device_that_is_well_is_left_as_it_is(patient: Patient) -> None:
    OutboxFile(patient.folder.outbox_file, quota_bytes=1 << 20).close()
    before = listing(patient.folder.path)

    findings = found(patient)

    assert {each.level for each in findings.values()} == {"ok", "warn"}
    # the one thing to look at: nobody runs the agent
    assert [each.check for each in findings.values() if each.level == "warn"] == ["socket"]
    assert exit_status(list(findings.values())) == 0
    assert listing(patient.folder.path) == before
    assert list(findings) == list(CHECKS)
    assert findings["broker"].said == f"mqtts://127.0.0.1:{patient.broker_port} lets us in"


def test_it_is_a_verb_with_a_table_and_an_exit_status(patient: Patient) -> None:
    patient.set_certificate(begins_days=-9, ends_days=-1)
    command = [sys.executable, "-m", "agent", "doctor", "--state", str(patient.folder.path)]

    began = time.monotonic()
    people = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    took = time.monotonic() - began
    programs = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60, check=False)

    assert (people.returncode, programs.returncode) == (2, 2)
    assert took < 15
    line = next(each for each in people.stdout.splitlines() if "certificate " in each)
    assert line.startswith("fail  certificate  expected one for now, got one from ")
    tree = json.loads(programs.stdout)
    assert (tree["ok"], tree["exit_status"]) == (False, 2)
    assert [each["check"] for each in tree["checks"]] == list(CHECKS)


# --- the state folder


def test_a_folder_without_a_device_says_what_to_do(tmp_path: Path) -> None:
    (empty,) = diagnose(tmp_path)
    assert (empty.level, empty.exit_status) == ("fail", 2)
    assert "run skerry-agent init first" in empty.said
    (missing,) = diagnose(tmp_path / "nowhere")
    assert "name it with --state" in missing.said


def test_a_folder_of_a_newer_agent_is_said(patient: Patient) -> None:
    (patient.folder.path / "VERSION").write_text("99\n")
    (finding,) = diagnose(patient.folder.path)
    assert (finding.level, finding.exit_status) == ("fail", 4)
    assert "use a newer skerry-agent" in finding.said


def test_a_folder_that_others_may_look_into_is_a_doubt_and_a_key_that_they_may_read_a_fault(patient: Patient) -> None:
    patient.folder.path.chmod(0o710)
    assert one(patient, "state")[0] == "ok"
    patient.folder.path.chmod(0o755)
    assert one(patient, "state")[0] == "warn"
    patient.folder.credentials.key.chmod(0o644)
    level, status, said = one(patient, "state")
    assert (level, status) == ("fail", 4)
    assert "chmod 600" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_somebody_else_in_it_is_a_fault(patient: Patient) -> None:
    os.chown(patient.folder.identity_file, 65534, 65534)
    level, status, said = one(patient, "state")
    assert (level, status) == ("fail", 4)
    assert "nobody" in said
    assert "chown -R root" in said


def test_a_configuration_that_is_none_is_said_by_its_name(patient: Patient) -> None:
    patient.configure("colour = 3\n")
    level, status, said = one(patient, "config")
    assert (level, status) == ("fail", 2)
    assert "colour" in said


# --- the clock and the certificate


@pytest.mark.parametrize(
    ("now", "ahead_days", "level", "said"),
    [
        (60.0, 0, "fail", "expected a clock that was set, got 1970-01-01"),
        (1_740_000_000.0, 0, "fail", "when our certificate began"),
        (None, 0, "ok", "not before the newest assignment"),
        (None, 40, "warn", "is the clock ahead?"),
    ],
)
def test_a_clock_is_held_against_all_that_is_known(
    patient: Patient, monkeypatch: pytest.MonkeyPatch, now: float | None, ahead_days: int, level: str, said: str
) -> None:
    shown = (now or time.time()) + ahead_days * 86400
    monkeypatch.setattr("agent.upkeep.checks.time.time", lambda: shown)
    finding = one(patient, "clock")
    assert finding[0] == level
    assert said in finding[2]


def test_a_clock_before_the_floor_is_wrong(patient: Patient) -> None:
    advance(patient.folder.trust, time.time() + 86400)
    level, status, said = one(patient, "clock")
    assert (level, status) == ("fail", 4)
    assert said.endswith("set the clock")


@pytest.mark.parametrize(
    ("begins", "ends", "level", "said"),
    [
        (-9.0, -1.0, "fail", "run the agent where it reaches the server"),
        (1.0, 9.0, "fail", "set the clock"),
        (-9.0, 1.0, "warn", "but due since"),
        (-1.0, 9.0, "ok", "good until"),
    ],
)
def test_a_certificate_is_judged_by_its_life(
    patient: Patient, begins: float, ends: float, level: str, said: str
) -> None:
    patient.set_certificate(begins_days=begins, ends_days=ends)
    finding = one(patient, "certificate")
    assert finding[0] == level
    assert said in finding[2]


def test_a_certificate_that_ended_by_the_floor_is_expired_whatever_the_clock(patient: Patient) -> None:
    advance(patient.folder.trust, time.time() + 20 * 86400)
    assert one(patient, "certificate")[0] == "fail"


def test_a_missing_certificate_a_strange_key_and_a_strange_name_are_told_apart(patient: Patient) -> None:
    patient.set_certificate("plant.press-5")
    assert "expected a certificate of plant.press-4, got one of plant.press-5" in one(patient, "certificate")[2]

    other, _ = patient.authority.issue("plant.press-4")
    patient.set_certificate()
    patient.folder.credentials.key.write_bytes(other)
    level, status, said = one(patient, "certificate")
    assert (level, status) == ("fail", 4)
    assert "to be the certificate's key, got another" in said

    patient.folder.credentials.certificate.write_text("no PEM")
    assert one(patient, "certificate")[0] == "fail"
    patient.folder.credentials.certificate.unlink()
    level, status, said = one(patient, "certificate")
    assert (level, status) == ("fail", 4)
    assert "got none; enrol again" in said


# --- what it keeps


def test_a_committed_model_without_its_slot_is_a_fault(patient: Patient) -> None:
    assert one(patient, "model") == ("ok", 0, "nothing is committed")
    good = Good(manifest="ab" * 32, release="watch-3")
    patient.folder.lifecycle_file.write_bytes(encode_saved(Saved(state=State(good=good))))
    level, status, said = one(patient, "model")
    assert (level, status) == ("fail", 4)
    assert "watch-3" in said


def test_a_damaged_lifecycle_is_a_fault_and_a_failed_deployment_a_doubt(patient: Patient) -> None:
    assert one(patient, "lifecycle")[:1] == ("ok",)
    patient.folder.lifecycle_file.write_bytes(
        b'{"state":{"phase":"failed","reason":"it was refused"},"announced":true,"v":1}'
    )
    level, _, said = one(patient, "lifecycle")
    assert (level, "it was refused" in said) == ("warn", True)
    patient.folder.lifecycle_file.write_bytes(b"\0" * 100)
    assert one(patient, "lifecycle")[:2] == ("fail", 4)


def test_an_outbox_says_how_deep_it_is_and_whether_it_is_sound(patient: Patient) -> None:
    path = patient.folder.outbox_file
    outbox = OutboxFile(path, quota_bytes=Config().quota_bytes)
    for _ in range(200):
        outbox.put("deployment", b"x" * 200, event_time=1.0)
    # while the agent has it open, too
    assert one(patient, "outbox")[2].startswith("200 deployment to be heard")
    outbox.close()
    level, _, said = one(patient, "outbox")
    assert (level, said.startswith("200 deployment")) == ("ok", True)

    data = bytearray(path.read_bytes())
    data[4096 * 3 : 4096 * 8] = b"\x5a" * (4096 * 5)
    path.write_bytes(data)
    level, status, said = one(patient, "outbox")
    assert (level, status) == ("fail", 4)
    assert "expected a sound outbox" in said
    path.write_bytes(b"no database at all" * 1000)
    assert one(patient, "outbox")[:2] == ("fail", 4)


def test_a_full_outbox_and_one_that_was_moved_aside_are_doubts(patient: Patient) -> None:
    OutboxFile(patient.folder.outbox_file, quota_bytes=1 << 20).close()
    patient.configure("quota_bytes = 524288\n")
    with sqlite3.connect(patient.folder.outbox_file) as db:
        db.execute("create table filler (body blob)")
        db.execute("insert into filler values (zeroblob(500000))")
    db.close()
    assert one(patient, "outbox")[0] == "warn"
    patient.configure("")
    patient.folder.path.joinpath("outbox.db.damaged").write_bytes(b"")
    assert "moved aside" in one(patient, "outbox")[2]


def test_a_rotten_slot_is_found(device: Device, shore: Shore) -> None:
    shore.release(1)
    device.start()
    deployment = shore.assign(device.name, 1)
    assert shore.ends(device.name, deployment).state == "committed"

    # while it runs: it answers, and its connection is left alone
    findings = {each.check: each for each in diagnose(device.folder)}
    assert findings["socket"].said.startswith("the agent runs and answers on ")
    assert "the running agent would lose its connection" in findings["broker"].said
    assert findings["model"].level == "ok"
    assert shore.reported[device.name].online

    device.stop()
    (rotten,) = (device.folder / "slots" / "a").glob("model.onnx")
    data = bytearray(rotten.read_bytes())
    data[1000] ^= 1
    rotten.write_bytes(data)
    findings = {each.check: each for each in diagnose(device.folder)}
    assert findings["model"].level == "fail"
    assert findings["broker"].said.endswith("lets us in")


# --- the local socket


def test_a_socket_that_nobody_listens_on_and_one_that_hangs_are_told_apart(patient: Patient) -> None:
    path = patient.folder.path / "serve.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        assert one(patient, "socket")[0] == "warn"
        with patient.folder.lock():
            assert "expected the running agent to listen" in one(patient, "socket")[2]
        sock.listen()
        level, status, said = one(patient, "socket")
        assert (level, status) == ("fail", 4)
        assert "hangs" in said
    patient.configure('serve = "off"\n')
    assert one(patient, "socket")[0] == "ok"


# --- the doctor itself


def test_a_check_that_hangs_or_fails_itself_hides_no_other(patient: Patient) -> None:
    gate = threading.Event()

    def hangs(_folder: StateFolder) -> str:
        gate.wait(60)
        return "too late"

    def fails(_folder: StateFolder) -> str:
        raise ZeroDivisionError("a defect")

    findings = diagnose(patient.folder.path, table={"disk": hangs, "state": fails, "clock": checks.clock}, most_s=0.5)
    gate.set()

    assert [(each.check, each.level, each.exit_status) for each in findings] == [
        ("disk", "fail", 4),
        ("state", "fail", 1),
        ("clock", "ok", 0),
    ]
    assert exit_status(findings) == 4
    assert show(findings).count("\n") == 2
    assert json.loads(to_json(findings))["exit_status"] == 4


def test_who_owns_the_machine_acts_before_who_owns_the_network() -> None:
    network, owner = Finding("broker", "fail", "x", 3), Finding("certificate", "fail", "x", 2)
    assert exit_status([network]) == 3
    assert exit_status([network, owner]) == 2
    assert exit_status([Finding("clock", "warn", "x"), Finding("disk", "ok", "x")]) == 0


def test_a_key_is_written_as_the_tests_read_it() -> None:
    from cryptography.hazmat.primitives.asymmetric import ec

    assert pem_of(ec.generate_private_key(ec.SECP256R1())).startswith(b"-----BEGIN PRIVATE KEY")


def test_a_running_agent_is_known_by_its_lock(patient: Patient) -> None:
    from agent.upkeep.holding import is_running

    assert not is_running(patient.folder)
    with patient.folder.lock():
        wait_for(lambda: is_running(patient.folder), why="the lock to be seen")
    assert not is_running(patient.folder)
