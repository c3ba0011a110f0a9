"""What the pages say of a fleet, read from a database in memory."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session

from control_plane.fleet_drift import DeviceDrift, FleetDrift, View
from control_plane.pages.build_matrix import build_matrix, size
from control_plane.pages.drift_views import drift
from control_plane.pages.views import ago, fleet, rollouts, timeline
from control_plane.schema.devices import Device, DeviceComponent
from control_plane.schema.models import Build, ModelVersion
from control_plane.schema.releases import Deployment, Release, Rollout, Wave
from control_plane.schema.telemetry import Finding, Window
from control_plane.schema.work import Event

Add = Callable[..., Device]


def add_window(
    session: Session, device: str, number: int, *, labelled: int = 100, correct: int = 80, manifest: str = "m" * 16
) -> None:
    """Add one window of a device."""
    session.add(
        Window(
            device=device,
            epoch="e",
            sequence=number + 1,
            manifest=manifest,
            monitor="n" * 16,
            number=number,
            start=number * 10,
            end=number * 10 + 10,
            rows=100,
            labelled=labelled,
            correct=correct,
            latency_p50_us=1,
            latency_p99_us=2,
            crc=0,
            tables=[],
            merged_at=datetime.fromisoformat("2026-03-01T12:00:00+00:00"),
        )
    )


def add_finding(session: Session, now: datetime, *, kind: str, device: str = "", version: int = 1) -> None:
    """Add a finding on a version of `watch`."""
    session.add(
        Finding(
            kind=kind,
            device=device,
            model="watch",
            version=version,
            log_e=23.03,
            severity=0.5,
            event_time=0.0,
            window=9,
            found_at=now,
        )
    )


HEALTH: dict[str, tuple[dict[str, Any], str]] = {
    "running": ({}, "good"),
    "nothing assigned": ({"state": "idle", "release": ""}, "good"),
    "fetching": ({"state": "fetching"}, "moving"),
    "out of reach": ({"online": False}, "away"),
    "failed": ({"state": "failed"}, "failed"),
    "rolling back while out of reach": ({"state": "rolling_back", "online": False}, "failed"),
    "revoked": ({"enrolled": "revoked", "state": "failed"}, "revoked"),
    "an error that is over": ({"last_error": "broker: refused"}, "good"),
    "a report of another shape": ({"state": 7, "release": None}, "good"),
}


@pytest.mark.parametrize(("said", "health"), HEALTH.values(), ids=HEALTH)
def test_health_names_what_needs_a_person_first(
    session: Session, now: datetime, add_device: Add, said: dict[str, Any], health: str
) -> None:
    add_device("watch-08", **said)
    assert [device.health for device in fleet(session, now=now).devices] == [health]


def test_an_empty_fleet_is_said_to_be_empty(session: Session, now: datetime) -> None:
    assert fleet(session, now=now).headline == "No device has enrolled yet."


def test_the_headline_counts_devices_reach_and_releases(session: Session, now: datetime, add_device: Add) -> None:
    add_device("a")
    assert fleet(session, now=now).headline == "One device, in reach. It runs watch-1."
    add_device("b")
    assert fleet(session, now=now).headline == "2 devices, in reach. All run watch-1."
    add_device("c", online=False, release="watch-2")
    add_device("d", release="")
    headline = "4 devices, 3 in reach: 2 run watch-1, 1 runs watch-2, 1 runs nothing yet."
    assert fleet(session, now=now).headline == headline


def test_a_large_fleet_draws_those_that_need_a_look_first(session: Session, now: datetime, add_device: Add) -> None:
    for index in range(40):
        add_device(f"d{index:02d}", state="failed" if index == 33 else "committed")
    view = fleet(session, now=now)
    assert len(view.devices) == 40
    assert len(view.rocks) == 24
    assert view.rocks[0].name == "d33"


def test_accuracy_is_of_the_last_labelled_windows_oldest_first(
    session: Session, now: datetime, add_device: Add
) -> None:
    add_device("a")
    for number in range(30):
        add_window(session, "a", number, correct=number)
    add_window(session, "a", 30, labelled=0, correct=0)
    # of a model that runs beside it
    session.add(DeviceComponent(device="a", name="lamps", added_at=now))
    session.add(
        Build(
            model="lamps", version=1, profile="p", gate="passed", manifest="c" * 64, files={}, report={}, built_at=now
        )
    )
    add_window(session, "a", 31, correct=1, manifest="c" * 16)
    accuracy = fleet(session, now=now).devices[0].accuracy
    assert accuracy == tuple(number / 100 for number in range(6, 30))


def test_a_device_drifts_until_it_runs_another_version(session: Session, now: datetime, add_device: Add) -> None:
    device = add_device("a")
    add_finding(session, now, kind="local", device="a")
    assert fleet(session, now=now).devices[0].health == "drifting"
    device.reported = device.reported | {"release": "watch-2"}
    assert fleet(session, now=now).devices[0].health == "good"


def test_a_model_that_runs_beside_another_drifts_fails_and_moves_too(
    session: Session, now: datetime, add_device: Add
) -> None:
    lamps = {"state": "committed", "release": "watch-1"}
    device = add_device("a", release="strokes-4", components={"lamps": lamps, "odd": "not a tree"})
    add_finding(session, now, kind="local", device="a")
    assert fleet(session, now=now).devices[0].health == "drifting"
    assert drift(session, View(), now=now).headline == "a has drifted on its own."

    for state, word in (("failed", "lamps: the last deployment failed"), ("fetching", "fetching")):
        device.reported = device.reported | {"components": {"lamps": lamps | {"state": state}}}
        assert fleet(session, now=now).devices[0].word == word


def test_the_evidence_of_several_models_of_a_device_is_told_apart(session: Session, now: datetime) -> None:
    rows = [("a", "lamps"), ("a", "strokes"), ("b", "strokes")]
    seen = View(devices=tuple(DeviceDrift(name, model, 1, "quiet", 20, 20, 0.0) for name, model in rows))
    assert [one.name for one in drift(session, seen, now=now).evidence] == ["a, lamps", "a, strokes", "b"]


DRIFT: dict[str, tuple[list[dict[str, Any]], str]] = {
    "nothing": ([], "Nothing observed yet."),
    "one device": ([{"kind": "local", "device": "a"}], "a has drifted on its own."),
    "two devices": (
        [{"kind": "local", "device": "a"}, {"kind": "local", "device": "b"}],
        "2 devices have drifted on their own.",
    ),
    "the world": ([{"kind": "local", "device": "a"}, {"kind": "world"}], "The world has changed."),
    "a world that is past": ([{"kind": "world", "version": 0}], "The world is as it was."),
}


@pytest.mark.parametrize(("findings", "headline"), DRIFT.values(), ids=DRIFT)
def test_drift_is_summed_up_by_its_open_findings(
    session: Session, now: datetime, add_device: Add, findings: list[dict[str, Any]], headline: str
) -> None:
    add_device("a")
    add_device("b")
    for finding in findings:
        add_finding(session, now, **finding)
    assert drift(session, View(), now=now).headline == headline


def test_evidence_is_shown_as_powers_of_ten_with_its_tone(session: Session, now: datetime) -> None:
    def device(name: str, log_e: float, state: str = "quiet") -> DeviceDrift:
        return DeviceDrift(name, "watch", 1, state, 20, 20, 0.0, log_e=log_e)

    seen = View(
        devices=(device("a", 0.0), device("b", 2.0), device("c", 4.7), device("d", 0.0, "commissioning")),
        fleets=(FleetDrift("watch", 1, 3, False, 9.0, 0.001, "", ()),),
    )
    view = drift(session, seen, now=now)
    tones = [(one.name, one.tone) for one in view.evidence]
    assert tones == [("all on watch-1", "watch"), ("a", "good"), ("b", "watch"), ("c", "alarm"), ("d", "plain")]
    assert view.evidence[3].log10_e == pytest.approx(2.041, abs=1e-3)
    assert view.headline == "Evidence is rising."


def test_a_rollout_has_its_waves_in_order_and_counts_commits(session: Session, now: datetime, add_device: Add) -> None:
    add_device("a")
    add_device("b")
    session.add(Release(name="watch-1", model="watch", version=1, state="live", created_at=now))
    session.flush()
    session.add(Rollout(id=1, release="watch-1", state="running", created_at=now - timedelta(seconds=70)))
    session.flush()
    for number, name, device, state in ((2, "rest", "b", "waiting"), (1, "canary", "a", "committed")):
        session.add(Wave(rollout=1, number=number, name=name, state="running"))
        session.add(
            Deployment(
                id=device,
                rollout=1,
                wave=number,
                device=device,
                release="watch-1",
                manifest="m",
                state=state,
                measured={},
            )
        )
    (view,) = rollouts(session, now=now)
    assert [wave.name for wave in view.waves] == ["canary", "rest"]
    assert (view.committed, view.devices, view.ago) == (1, 2, "1 min ago")


def gate_report() -> dict[str, Any]:
    """Return a gate's report as the compiler writes it: one candidate won, one was refused, one was not preferred."""
    figures = {"size_bytes": 12_650, "accuracy": 0.868, "agreement": 0.987}
    refused = {"name": "agreement", "outcome": "refused", "expected": "at least 0.9750", "got": "0.9510"}
    sticky = {"kept": 9, "scales": 10, "taken": True, "delta_bytes": 812, "free_delta_bytes": 3616}
    return {
        "runtime": "litert",
        "runtime_version": "2.1",
        "chosen": "hybrid-int8",
        "reason": "",
        "candidates": [
            {"name": "hybrid-int8", "outcome": "passed", "checks": [], "sticky": sticky} | figures,
            {"name": "int8", "outcome": "refused", "checks": [refused]},
            {"name": "float32", "outcome": "passed", "checks": []} | figures,
        ],
    }


def test_the_build_matrix_shows_the_winner_and_why_the_others_lost(session: Session, now: datetime) -> None:
    common = {"model": "watch", "built_at": now, "files": {}, "manifest": ""}
    for version in (1, 2):
        trained = now + timedelta(hours=version)
        session.add(
            ModelVersion(
                model="watch",
                version=version,
                dataset="d",
                metrics={"accuracy": 0.87, "rows": 5},
                bundle="",
                trained_at=trained,
            )
        )
    session.add(Build(**common, version=1, profile="board", gate="passed", report=gate_report()))
    session.add(
        Build(**common, version=2, profile="mcu", gate="not run", report={"reason": "no wheel", "candidates": []})
    )
    matrix = build_matrix(session)
    assert matrix.profiles == ("board", "mcu")
    assert [row.version for row in matrix.versions] == [2, 1]
    newest, first = matrix.versions
    assert newest.builds[0] is None
    assert newest.builds[1] is not None
    assert (newest.builds[1].gate, newest.builds[1].reason, newest.builds[1].size) == ("not run", "no wheel", "–")
    assert first.metrics == (("accuracy", "0.870"),)
    build = first.builds[0]
    assert build is not None
    assert (build.runtime, build.size, build.accuracy, build.agreement) == ("litert 2.1", "12.7 kB", "0.868", "0.987")
    assert [(one.name, one.won, one.reason) for one in build.candidates] == [
        ("hybrid-int8", True, ""),
        ("int8", False, "agreement: expected at least 0.9750, got 0.9510"),
        ("float32", False, "passed; the profile prefers hybrid-int8"),
    ]
    kept = "scales of the version before kept: 9 of 10, delta 812 bytes (free 3616 bytes)"
    assert [one.sticky for one in build.candidates] == [kept, "", ""]


def test_the_timeline_is_newest_first_and_bounded(session: Session, now: datetime) -> None:
    for number in range(60):
        session.add(Event(at=now, kind="job", subject="s", text=f"event {number}", data={}))
    shown = timeline(session, now=now)
    assert [event.text for event in shown[:2]] == ["event 59", "event 58"]
    assert len(shown) == 40


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "just now"), (-3, "just now"), (59, "59 s ago"), (61, "1 min ago"), (7300, "2 h ago"), (200_000, "2 d ago")],
)
def test_the_past_is_told_coarsely(now: datetime, seconds: float, text: str) -> None:
    assert ago(now - timedelta(seconds=seconds), now=now) == text


@pytest.mark.parametrize(
    ("value", "text"), [(3, "3 B"), (12_650, "12.7 kB"), (2.5e6, "2.5 MB"), (None, "–"), (True, "–")]
)
def test_sizes_are_written_in_the_unit_that_reads_best(value: object, text: str) -> None:
    assert size(value) == text
