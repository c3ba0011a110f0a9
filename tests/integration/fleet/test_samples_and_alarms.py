"""Samples and alarms of devices through the API and the command line: what is right, and each wrong word in a line."""

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from control_plane import sample_retention
from control_plane.cli import samples
from control_plane.cli.program import main
from control_plane.clones import MOST_RETURNS
from control_plane.ingest import handle
from control_plane.schema.models import Build
from control_plane.schema.telemetry import OutboxMark, Sample
from skerry.runtimes.arrays import unpack
from skerry.wire import codec, messages, topics
from skerry.wire.sample import Sample as Said
from skerry.wire.sample import encode_sample
from tests.integration.fleet.conftest import Coast
from tests.unit.fleet.test_ingest import entry, window

Output = pytest.CaptureFixture[str]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def gull(coast: Coast, monkeypatch: pytest.MonkeyPatch) -> Coast:
    """A coast with a device, three stored samples of it, one in quarantine, and the command line's way to it."""
    coast.enrol("gull", "x86-64-gateway")
    now = coast.plane.clock()
    with coast.plane.sessions.begin() as session:
        session.add(Build(model="m", version=1, profile="p", gate="passed", manifest="ab" * 32, built_at=now))
        session.add(OutboxMark(device="gull", epoch="e1", beyond={}, recent={}, first_seen=now))
        for number in (1, 2, 3, 4):
            body = encode_sample(Said("ab" * 8, 7, "rest", 0.9, {"x": bytes([number] * 4)}))
            session.add(
                Sample(
                    device="gull",
                    epoch="e1",
                    sequence=number,
                    manifest="ab" * 8,
                    window=7,
                    size_bytes=4,
                    crc=0,
                    blob=coast.plane.blobs.put(body) if number < 4 else "",
                    reason="" if number < 4 else "its manifest allows no samples",
                    taken_at=now,
                )
            )
    monkeypatch.setenv("SKERRY_URL", str(coast.client.base_url))
    monkeypatch.setenv("SKERRY_TOKEN", coast.plane.home.operator_token())
    monkeypatch.delenv("SKERRY_HOME", raising=False)
    return coast


@pytest.fixture
def run(capsys: Output) -> Run:
    """Return the operator's program: exit code, what it printed, and what it complained of."""

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(arguments)
        return code, *capsys.readouterr()

    return call


def audited(coast: Coast, kind: str) -> list[dict[str, Any]]:
    """Return what the timeline says."""
    return [each for each in coast.ask("GET", "/v1/events?limit=1000") if each["kind"] == kind]


def test_a_devices_samples_are_listed_exported_and_deleted_and_all_but_the_list_is_audited(
    gull: Coast, run: Run, tmp_path: Path
) -> None:
    code, shown, _ = run("sample", "list", "gull")
    assert code == 0
    assert shown.splitlines()[1].split()[2:] == ["m", "1", "7", "4", "stored", "-"]
    assert "its manifest allows no samples" in shown
    assert "gull: 3 stored, 12 bytes; 1 quarantined; 0 deleted. Kept for 90 days, 64 MB of a device" in shown
    assert audited(gull, "samples") == []

    out = tmp_path / "samples.npz"
    assert run("sample", "export", "gull", "--out", str(out))[:2] == (0, f"3 samples of gull are in {out}\n")
    assert unpack(out.read_bytes(), what="samples")["x"].tolist() == [[number] * 4 for number in (1, 2, 3)]
    assert stat.S_IMODE(out.stat().st_mode) == 0o600

    assert run("sample", "export", "gull", "--out", str(out), "--after", "1", "--most", "1")[0] == 0

    code, shown, _ = run("sample", "delete", "gull", "1", "3")
    assert (code, shown.partition(";")[0]) == (0, "gull: 2 samples of 8 bytes are deleted")
    code, shown, _ = run("--json", "sample", "delete", "gull", "--all")
    assert json.loads(shown) == {"device": "gull", "stored": 1, "size_bytes": 4, "quarantined": 1, "left": 0}
    told = run("sample", "list", "gull")[1]
    assert told.startswith("no samples\n")
    assert "0 stored, 0 bytes; 0 quarantined; 4 deleted" in told
    (mark,) = gull.ask("GET", "/v1/outbox")
    assert (mark["samples"], mark["quarantined"], mark["samples_deleted"]) == (0, 0, 4)

    said = [each["data"] for each in audited(gull, "samples") if each["subject"] == "gull"]
    assert [(each["action"], each["numbers"]) for each in said] == [
        ("read", [1, 2, 3]),
        ("read", [2]),
        ("deleted", [1, 3]),
        ("deleted", [2, 4]),
    ]
    assert {each["by"] for each in said} == {"operator at 127.0.0.1"}


def test_a_long_list_says_how_to_go_on_and_all_of_it_is_deleted_by_several_requests(
    gull: Coast, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "there may be more" not in run("sample", "list", "gull")[1]
    monkeypatch.setattr(samples, "MOST_ROWS", 2)
    assert run("sample", "list", "gull")[1].endswith("; there may be more: --after 2\n")
    assert run("sample", "list", "gull", "--after", "3")[1].count("quarantined") == 2

    monkeypatch.setattr(sample_retention, "MOST_OF_AN_ANSWER", 1)
    shown = run("--json", "sample", "delete", "gull", "--all")[1]
    assert json.loads(shown) == {"device": "gull", "stored": 3, "size_bytes": 12, "quarantined": 1, "left": 0}
    assert len(audited(gull, "samples")) == 4


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("sample", "list", "nobody"), "device: expected one that is enrolled, got 'nobody'"),
        (("sample", "export", "nobody", "--out", "x"), "device: expected one that is enrolled, got 'nobody'"),
        (
            ("sample", "export", "gull", "--out", "x", "--model", "doors"),
            "expected stored samples, got none; see",
        ),
        (("sample", "export", "gull", "--out", "x", "--most", "0"), "--most: expected 1 or more, got 0"),
        (("sample", "export", "gull", "--out", "/nowhere/x"), "expected to write /nowhere/x, got: No such file"),
        (("sample", "delete", "gull"), "expected ID of samples, or --all, got neither"),
        (("sample", "delete", "gull", "1", "--all"), "expected ID of samples, or --all, got both"),
        (("sample", "delete", "gull", "1", "x"), "expected numbers of samples, got 'x'; see: skerry sample list gull"),
        (("sample", "delete", "gull", "1", "9"), "got 9; nothing was deleted; see: skerry sample list gull"),
        (("sample", "delete", "nobody", "--all"), "device: expected one that is enrolled, got 'nobody'"),
        (("alarm", "acknowledge", "77"), "expected the number of one, got 77; see: skerry alarm list --all"),
    ],
)
def test_a_wrong_word_is_one_line_and_loses_nothing(gull: Coast, run: Run, words: tuple[str, ...], line: str) -> None:
    code, shown, complaint = run(*words)
    assert code in (2, 4)
    assert shown == ""
    assert complaint.startswith("skerry: ")
    assert complaint.count("\n") == 1
    assert line in complaint
    assert gull.ask("GET", "/v1/devices/gull/samples/list")["stored"] == 3


@pytest.mark.parametrize(
    "body", [{}, {"numbers": [1], "every": True}, {"numbers": [-1]}, {"numbers": list(range(1001))}]
)
def test_a_deletion_that_says_nothing_clear_is_refused(gull: Coast, body: dict[str, Any]) -> None:
    assert gull.client.post("/v1/devices/gull/samples/delete", json=body).status_code == 422
    assert gull.ask("GET", "/v1/devices/gull/samples/list")["stored"] == 3


def test_samples_and_alarms_are_for_operators_alone(gull: Coast) -> None:
    for method, path in (
        ("GET", "/v1/devices/gull/samples/list"),
        ("POST", "/v1/devices/gull/samples/delete"),
        ("GET", "/v1/alarms"),
        ("POST", "/v1/alarms/1/acknowledge"),
    ):
        answer = gull.client.request(method, path, json={}, headers={"Authorization": "Bearer no"})
        assert answer.status_code == 401, path


def test_a_clones_alarm_is_in_the_api_the_list_the_device_and_health_until_it_is_acknowledged(
    gull: Coast, run: Run
) -> None:
    assert run("alarm", "list")[1] == "no alarms of devices\n"
    up = topics.up("watch.gull", "outbox")
    for number in range(1, MOST_RETURNS + 3):
        for epoch in ("a1", "b2"):
            said = messages.Outbox(epoch=epoch, entries=(entry(number, "window", window(number)),))
            handle(gull.plane, up, codec.encode(said))

    (alarm,) = gull.ask("GET", "/v1/alarms")
    assert (alarm["device"], alarm["kind"], alarm["cleared_at"]) == ("gull", "clone", None)
    assert [each["epoch"] for each in alarm["detail"]["epochs"]] == ["a1", "b2"]
    assert gull.ask("GET", "/v1/devices/gull")["alarms"] == [alarm]
    assert gull.ask("GET", "/v1/health")["alarms"] == ["1 alarm of devices; see: skerry alarm list"]
    assert "gull may be cloned" in run("alarm", "list")[1]
    assert "gull may be cloned" in run("device", "show", "gull")[1]
    assert run("alarm", "list", "--device", "tern")[1] == "no alarms of devices\n"

    shown = run("alarm", "acknowledge", str(alarm["id"]))[1]
    assert shown == "alarm 1 of gull is cleared: acknowledged by operator at 127.0.0.1\n"
    code, _, complaint = run("alarm", "acknowledge", "1")
    assert (code, complaint.count("\n")) == (2, 1)
    assert gull.ask("GET", "/v1/health")["alarms"] == []
    assert "acknowledged by operator" in run("alarm", "list", "--all")[1]
    assert [each["text"][:29] for each in audited(gull, "alarm")] == [
        "gull may be cloned: two outbo",
        "gull: the alarm that it may b",
    ]
