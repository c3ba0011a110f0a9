"""A release reaches a fleet in waves, and the fleet's windows come home: findings, and nothing counted twice."""

import base64
import json
import zlib
from dataclasses import dataclass, field

import httpx
import numpy as np
import pytest
from sqlalchemy import select

from control_plane import fleet_drift, rollouts
from control_plane.ingest import handle
from control_plane.schema.releases import Deployment
from control_plane.schema.telemetry import Window
from skerry import drift
from skerry.wire import codec, messages, topics
from skerry.wire.report import WindowReport, encode_report
from tests.integration.fleet.conftest import Coast, recordings

PROFILES = ("x86-64-gateway", "arm64-board")
RECIPE = {"hidden": [8], "max_iter": 60, "validation_groups": [4, 5]}

pytestmark = pytest.mark.long


@dataclass
class Gull:
    """A device as the control plane hears it."""

    coast: Coast
    name: str
    profile: str
    manifest: str
    monitor: drift.Monitor
    seed: int
    sequence: int = 0
    windows: int = 0
    sent: list[messages.Outbox] = field(default_factory=list)

    def says(self, kind: str, body: bytes) -> None:
        """Say one thing through the outbox."""
        self.sequence += 1
        entry = messages.Entry(
            sequence=self.sequence,
            kind=kind,
            event_time=self.windows * 100.0,
            crc=zlib.crc32(body),
            body=base64.b64encode(body).decode(),
        )
        self.sent.append(messages.Outbox(epoch="e1", entries=(entry,)))
        assert self.repeats(self.sent[-1]).up_to == self.sequence

    def repeats(self, outbox: messages.Outbox) -> messages.Ack:
        """Send an outbox (again)."""
        topic = topics.up(topics.identity("watch", self.name), "outbox")
        (reply,) = handle(self.coast.plane, topic, codec.encode(outbox))
        return codec.decode(messages.Ack, reply.payload)

    def reports(self, **changes: object) -> None:
        """Say how it is."""
        tree = {
            "version": 1,
            "online": True,
            "state": "idle",
            "agent": "0",
            "profile": self.profile,
            "runtime": "r",
            "architecture": "a",
        } | changes
        topic = topics.up(topics.identity("watch", self.name), "reported")
        assert handle(self.coast.plane, topic, json.dumps(tree).encode()) == []

    def moves(self, deployment: str, state: str, reason: str = "") -> None:
        """Report a step of a deployment."""
        event = messages.DeploymentEvent(
            deployment=deployment, release="moves-1", manifest=self.manifest, state=state, reason=reason
        )
        self.says("deployment", codec.encode(event))

    def closes_windows(self, count: int, *, changed: bool = False) -> None:
        """Send windows whose counts are drawn from the reference, or from its mirror image."""
        rng = np.random.default_rng((self.seed, self.windows))
        for _ in range(count):
            tables = []
            for reference in self.monitor.reference:
                shares = np.array(reference[::-1] if changed else reference, float)
                tables.append(tuple(rng.multinomial(100, shares / shares.sum()).tolist()))
            body = encode_report(
                WindowReport(
                    manifest=self.manifest[:16],
                    monitor=self.monitor.digest()[:16],
                    window=self.windows,
                    start=self.windows * 100,
                    end=self.windows * 100 + 100,
                    rows=100,
                    labelled=100,
                    correct=90,
                    latency_p50_us=10,
                    latency_p99_us=20,
                    tables=tuple(tables),
                )
            )
            self.windows += 1
            self.says("window", body)


def tick(coast: Coast) -> None:
    """Let the drift clock tick, without its pause between decisions."""
    fleet_drift._fleet(coast.plane)._not_before = 0.0
    fleet_drift.tick(coast.plane)


@pytest.fixture
def gulls(coast: Coast) -> list[Gull]:
    """Return six devices of two profiles, and a live release for both."""
    coast.ask("POST", "/v1/datasets/moves/parts", content=recordings(groups=6, rows=100, seed=1))
    coast.job(coast.ask("POST", "/v1/models/moves/train", json={"dataset": "moves", "recipe": RECIPE}))
    coast.job(coast.ask("POST", "/v1/models/moves/versions/1/compile", json={"profiles": list(PROFILES)}))
    assert coast.release("moves", 1)["state"] == "live"
    builds = {build["profile"]: build for build in coast.ask("GET", "/v1/models/moves/versions/1")["builds"]}
    fleet = []
    for number in range(6):
        profile = PROFILES[number % 2]
        manifest = builds[profile]["manifest"]
        monitor = drift.Monitor.from_json(json.loads(coast.plane.blobs.get(manifest))["monitor"])
        coast.enrol(f"gull-{number}", profile)
        fleet.append(Gull(coast, f"gull-{number}", profile, manifest, monitor, seed=number))
    coast.enrol("limpet", "cortex-m")
    return fleet


def test_a_release_reaches_the_fleet_in_waves(coast: Coast, gulls: list[Gull]) -> None:
    waves = [{"name": "canary", "share": 0.3}, {"name": "named", "devices": ["limpet"]}, {"name": "rest", "rest": True}]
    rollout = coast.ask("POST", "/v1/rollouts", json={"release": "moves-1", "waves": waves})
    path = f"/v1/rollouts/{rollout['id']}"
    by_name = {gull.name: gull for gull in gulls}

    def reconcile() -> list[dict[str, str]]:
        before = len(coast.said.messages)
        rollouts.reconcile(coast.plane, coast.plane.clock())
        assert rollouts.reconcile(coast.plane, coast.plane.clock()) == 0
        assigned = [
            topic for topic, _, retain in coast.said.messages[before:] if topic.endswith("/down/assign") and retain
        ]
        now = coast.ask("GET", path)["deployments"]
        running = [one for one in now if one["state"] == "assigned"]
        assert len(assigned) == len(running)
        return running

    canaries = reconcile()
    assert {by_name[one["device"]].profile for one in canaries} == set(PROFILES)
    assert coast.client.post("/v1/rollouts", json={"release": "moves-1", "waves": waves[2:]}).status_code == 422
    for one in canaries:
        for state in ("fetching", "trial", "committed"):
            by_name[one["device"]].moves(one["id"], state)
    rest = reconcile()
    assert len(rest) == 4
    for one in rest:
        by_name[one["device"]].moves(one["id"], "committed")
    assert reconcile() == []

    done = coast.ask("GET", path)
    assert (done["state"], [wave["state"] for wave in done["waves"]]) == ("done", ["done"] * 3)
    assert sum(one["state"] == "committed" for one in done["deployments"]) == 6
    (left_out,) = [one for one in done["deployments"] if one["state"] == "left-out"]
    assert left_out["device"] == "limpet"
    assert "no passed build for profile cortex-m" in left_out["reason"]


def test_a_failed_canary_pauses_the_rollout_and_cancelling_frees_the_devices(coast: Coast, gulls: list[Gull]) -> None:
    waves = [{"name": "first", "devices": ["gull-0"]}, {"name": "rest", "rest": True}]
    rollout = coast.ask("POST", "/v1/rollouts", json={"release": "moves-1", "waves": waves})
    path = f"/v1/rollouts/{rollout['id']}"
    rollouts.reconcile(coast.plane, coast.plane.clock())
    first = next(one for one in coast.ask("GET", path)["deployments"] if one["device"] == "gull-0")
    gulls[0].moves(first["id"], "failed", "the golden vectors differ")
    rollouts.reconcile(coast.plane, coast.plane.clock())
    paused = coast.ask("GET", path)
    assert (paused["state"], paused["reason"]) == ("paused", "gull-0 failed: the golden vectors differ")
    assert coast.ask("POST", f"{path}/cancel")["state"] == "cancelled"
    assert coast.client.post(f"{path}/cancel").status_code == 409
    with coast.plane.readers() as session:
        states = session.scalars(select(Deployment.state).where(Deployment.device != "gull-0"))
        assert set(states) == {"left-out"}

    gulls[1].reports(state="committed", manifest=gulls[1].manifest, release="moves-1")
    body = {"release": "moves-1", "waves": [{"name": "again", "devices": ["gull-1"]}]}
    again = coast.ask("POST", "/v1/rollouts", json=body)
    rollouts.reconcile(coast.plane, coast.plane.clock())
    settled = coast.ask("GET", f"/v1/rollouts/{again['id']}")
    assert (settled["state"], settled["deployments"][0]["reason"]) == ("done", "the device already runs it")


def test_one_changed_device_is_flagged_and_then_the_world(coast: Coast, gulls: list[Gull]) -> None:
    for gull in gulls:
        gull.reports(state="committed", manifest=gull.manifest)
        gull.closes_windows(12)
        gull.repeats(gull.sent[3])
    tick(coast)
    quiet = coast.ask("GET", "/v1/drift")
    assert quiet["findings"] == []
    assert [one["state"] for one in quiet["devices"]] == ["quiet"] * 6
    assert quiet["fleet"][0]["devices"] == 6

    gulls[2].closes_windows(1, changed=True)
    tick(coast)
    assert coast.ask("GET", "/v1/drift")["findings"] == []
    flagged = next(one for one in coast.ask("GET", "/v1/drift")["devices"] if one["device"] == "gull-2")
    assert (flagged["state"], flagged["flagged"]) == ("alarm", True)
    for gull in gulls:
        gull.closes_windows(2, changed=gull is gulls[2])
    tick(coast)
    (finding,) = coast.ask("GET", "/v1/drift")["findings"]
    assert (finding["kind"], finding["device"], finding["version"]) == ("local", "gull-2", 1)
    assert finding["log10_e"] > 2

    for gull in gulls:
        gull.closes_windows(1, changed=True)
        tick(coast)
    for gull in gulls:
        gull.closes_windows(2, changed=True)
    tick(coast)
    findings = coast.ask("GET", "/v1/drift")["findings"]
    assert [one["kind"] for one in findings] == ["local", "world"]
    assert findings[1]["severity"] > 0.1

    rows = coast.ask("GET", "/v1/windows", params={"device": "gull-2", "version": 1})
    assert [row["number"] for row in rows] == list(range(18))
    assert {(row["model"], row["version"]) for row in rows} == {("moves", 1)}
    page = coast.ask("GET", "/v1/windows", params={"limit": 10, "after": rows[0]["id"]})
    assert len(page) == 10
    assert min(row["id"] for row in page) > rows[0]["id"]
    for mark in coast.ask("GET", "/v1/outbox"):
        assert (mark["repeated"], mark["conflicts"], mark["gaps"], mark["beyond"]) == (1, 0, 0, 0)
        gull = next(gull for gull in gulls if gull.name == mark["device"])
        assert mark["windows"] == mark["merged"] == gull.windows

    before = fleet_drift.view(coast.plane)
    fleet_drift._fleets.clear()
    tick(coast)
    assert fleet_drift.view(coast.plane) == before


def test_windows_that_come_late_are_put_in_their_place(coast: Coast, gulls: list[Gull]) -> None:
    gull = gulls[0]
    gull.reports(manifest=gull.manifest)
    gull.closes_windows(12)
    tick(coast)
    whole = fleet_drift.view(coast.plane)
    with coast.plane.sessions.begin() as session:
        # as if window 5 had come last
        late = session.scalars(select(Window).where(Window.number == 5)).one()
        late.id = 1000
    fleet_drift._fleets.clear()
    tick(coast)
    assert fleet_drift.view(coast.plane) == whole


def test_events_are_streamed_from_where_a_client_left_off(coast: Coast) -> None:
    coast.ask("POST", "/v1/datasets/moves/parts", content=recordings(groups=2, rows=4, seed=1))
    known = coast.ask("GET", "/v1/events")
    headers = {"Last-Event-ID": str(known[-2]["id"])}
    lines: list[str] = []
    with coast.client.stream("GET", "/v1/events/stream", headers=headers, timeout=httpx.Timeout(10)) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            lines.append(line)
            if line.startswith("data: "):
                break
    assert f"id: {known[-1]['id']}" in lines
    assert "event: change" in lines
    assert json.loads(lines[-1].removeprefix("data: "))["subject"] == "moves"
