"""After a restart the windows of years are read in bites, so that the server still stops and rollouts go on."""

import json
from datetime import timedelta

import pytest
from sqlalchemy import select

from control_plane import fleet_drift
from control_plane.plane import Plane
from control_plane.schema.devices import Device, DeviceComponent
from control_plane.schema.models import Build
from control_plane.schema.releases import Deployment, Release
from control_plane.schema.telemetry import OutboxMark, Window
from skerry import drift
from skerry.drift.monitor import Scalar

WINDOWS = 1200


@pytest.fixture
def filled(plane: Plane) -> Plane:
    """Return the plane with windows of gull under an artifact with a small monitor."""
    scalar = Scalar(name="level", kind="numeric", reference=(25, 25, 25, 25), edges=(0.0, 1.0))
    monitor = drift.Monitor(scalars=(scalar,), pairs=(), window_n=100)
    manifest = plane.blobs.put(json.dumps({"monitor": monitor.to_json()}).encode())
    now = plane.clock()
    with plane.sessions.begin() as session:
        session.add(
            Build(model="m", version=1, profile="x86-64-gateway", gate="passed", manifest=manifest, built_at=now)
        )
        session.get_one(Device, "gull").online = True
        session.add_all(
            Window(
                device="gull",
                epoch="e1",
                sequence=number + 1,
                manifest=manifest[:16],
                monitor=monitor.digest()[:16],
                number=number,
                start=number,
                end=number + 1,
                rows=100,
                labelled=0,
                correct=0,
                latency_p50_us=1,
                latency_p99_us=1,
                crc=0,
                tables=[[25, 25, 25, 25]],
                merged_at=now,
            )
            for number in range(WINDOWS)
        )
    return plane


def test_a_turn_ends_when_its_time_is_over_and_decides_only_when_all_is_read(
    filled: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_drift, "READING_S", 0.0)
    assert fleet_drift.tick(filled) == fleet_drift.BATCH
    assert fleet_drift.view(filled).fleets == ()
    assert fleet_drift.tick(filled) == fleet_drift.BATCH
    assert fleet_drift.tick(filled) == WINDOWS - 2 * fleet_drift.BATCH
    (fleet,) = fleet_drift.view(filled).fleets
    assert fleet.devices == 1


def test_a_server_that_stops_does_not_wait_for_the_reading(filled: Plane) -> None:
    filled.stopping.set()
    assert fleet_drift.tick(filled) == fleet_drift.BATCH


def test_windows_of_a_second_build_are_judged_by_its_own_monitor(filled: Plane) -> None:
    with filled.sessions.begin() as session:
        build = session.scalars(select(Build)).one()
        # the device runs the other one of two: the first has other bins
        build.second, build.manifest = build.manifest, filled.blobs.put(b"{}")
    while fleet_drift.tick(filled):
        pass
    (fleet,) = fleet_drift.view(filled).fleets
    assert (fleet.devices, [each.device for each in fleet_drift.view(filled).devices]) == (1, ["gull"])


def test_windows_that_came_before_their_turn_wait_for_those_before_them(filled: Plane) -> None:
    now = filled.clock()
    with filled.sessions.begin() as session:
        # all but the first hundred came first, and the device has those still to say
        late = list(session.scalars(select(Window).where(Window.number < 100)))
        held = [{name: getattr(row, name) for name in Window.__table__.columns.keys() if name != "id"} for row in late]  # noqa: SIM118 -- not a dict
        for row in late:
            session.delete(row)
        mark = OutboxMark(device="gull", epoch="e1", up_to=0, beyond={"101": WINDOWS}, first_seen=now)
        session.add(mark)
    while fleet_drift.tick(filled):
        pass
    assert fleet_drift.view(filled).fleets == ()

    with filled.sessions.begin() as session:
        session.add_all(Window(**{**values, "merged_at": now}) for values in held)
        session.get_one(OutboxMark, ("gull", "e1")).up_to = WINDOWS
    while fleet_drift.tick(filled):
        pass

    (device,) = fleet_drift.view(filled).devices
    assert (device.windows, device.last_window) == (WINDOWS, WINDOWS - 1)


def test_windows_before_their_turn_do_not_wait_for_an_epoch_that_has_ended(filled: Plane) -> None:
    now = filled.clock()
    with filled.sessions.begin() as session:
        session.add(OutboxMark(device="gull", epoch="e1", up_to=5, beyond={"7": WINDOWS}, first_seen=now))
        session.add(OutboxMark(device="gull", epoch="e2", up_to=5, first_seen=now + timedelta(seconds=1)))
    while fleet_drift.tick(filled):
        pass
    (device,) = fleet_drift.view(filled).devices
    assert device.windows == WINDOWS


def test_each_component_of_a_device_speaks_for_its_own_model(filled: Plane) -> None:
    now = filled.clock()
    with filled.sessions.begin() as session:
        first = session.scalars(select(Build)).one()
        # the same monitor, in another manifest
        tree = json.loads(filled.blobs.get(first.manifest))
        lamps = filled.blobs.put(json.dumps({**tree, "model": "lamps"}).encode())
        profile = "x86-64-gateway"
        session.add(Build(model="lamps", version=4, profile=profile, gate="passed", manifest=lamps, built_at=now))
        session.add(DeviceComponent(device="gull", name="lamps", added_at=now))
        windows = session.scalars(select(Window).where(Window.number < 20))
        shown = [{name: getattr(row, name) for name in Window.__table__.columns.keys()} for row in windows]  # noqa: SIM118 -- not a dict
        place = {"manifest": lamps[:16], "epoch": "e9"}
        session.add_all(Window(**{**row, "id": WINDOWS + row["id"], **place}) for row in shown)
    while fleet_drift.tick(filled):
        pass
    seen = [(each.model, each.version, each.windows) for each in fleet_drift.view(filled).devices]
    assert seen == [("lamps", 4, 20), ("m", 1, WINDOWS)]
    assert {each.model for each in fleet_drift.view(filled).fleets} == {"lamps", "m"}

    with filled.sessions.begin() as session:
        session.delete(session.get_one(DeviceComponent, ("gull", "lamps")))
    fleet_drift._fleet(filled)._not_before = 0.0
    fleet_drift.tick(filled)

    assert [each.model for each in fleet_drift.view(filled).devices] == ["m"]
    assert [each.model for each in fleet_drift.view(filled).fleets] == ["m"]


@pytest.mark.parametrize(("component", "speaks"), [("lamps", "m"), ("", "lamps")])
def test_what_comes_late_of_a_component_that_was_removed_does_not_take_the_place_of_the_devices_own(
    filled: Plane, component: str, speaks: str
) -> None:
    now = filled.clock()
    with filled.sessions.begin() as session:
        tree = json.loads(filled.blobs.get(session.scalars(select(Build)).one().manifest))
        lamps = filled.blobs.put(json.dumps({**tree, "model": "lamps"}).encode())
        profile = "x86-64-gateway"
        session.add(Build(model="lamps", version=4, profile=profile, gate="passed", manifest=lamps, built_at=now))
        session.add(Release(name="lamps-4", model="lamps", version=4, state="live", created_at=now))
        session.flush()
        made = {"device": "gull", "release": "lamps-4", "manifest": lamps, "state": "failed"}
        session.add(Deployment(id="d1", component=component, **made))
        row = session.scalars(select(Window).where(Window.number == 0)).one()
        late = {name: getattr(row, name) for name in Window.__table__.columns.keys() if name != "id"}  # noqa: SIM118 -- not a dict
        session.add(Window(**{**late, "manifest": lamps[:16], "epoch": "e9"}))
    while fleet_drift.tick(filled):
        pass
    assert [each.model for each in fleet_drift.view(filled).devices] == [speaks]
