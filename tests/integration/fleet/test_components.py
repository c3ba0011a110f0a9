"""Components by the operator's program and the API: models beside a device's own, and versions of the agent."""

from dataclasses import replace
from pathlib import Path

import pytest

from control_plane import fleet_drift, ingest
from control_plane.cli.program import main
from control_plane.drift_evidence import DeviceDrift, View
from control_plane.schema.models import ModelVersion
from skerry.wire import codec, topics
from skerry.wire.messages import Component, Reported
from tests.integration.fleet.conftest import Coast
from tests.wheels import wheel

GULL = topics.identity("watch", "gull")
REPORT = Reported(
    version=2,
    online=True,
    state="committed",
    agent="0.2.0",
    profile="x86-64-gateway",
    runtime="onnxruntime 1.23",
    architecture="x86_64",
    release="gestures-1",
    components={},
)


@pytest.fixture
def operator(coast: Coast, monkeypatch: pytest.MonkeyPatch) -> Coast:
    """A coast with a device that reports, which the operator's program reaches."""
    coast.enrol("gull", "x86-64-gateway")
    with coast.plane.sessions.begin() as session:
        for model in ("gestures", "lamps"):
            session.add(
                ModelVersion(model=model, version=1, dataset="d", bundle="ab" * 32, trained_at=coast.plane.clock())
            )
    ingest.handle(coast.plane, topics.up(GULL, "reported"), codec.encode(REPORT))
    monkeypatch.setenv("SKERRY_URL", str(coast.client.base_url))
    monkeypatch.setenv("SKERRY_TOKEN", coast.client.headers["Authorization"].removeprefix("Bearer "))
    return coast


def test_an_operator_adds_a_model_beside_and_takes_it_away(operator: Coast, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "component", "add", "gull", "lamps"]) == 0
    assert "gull runs lamps beside its own; next: skerry rollout create lamps-VERSION" in capsys.readouterr().out
    assert main(["device", "component", "add", "gull", "doors"]) == 2
    assert "skerry model list" in capsys.readouterr().err

    lamps = Component(state="committed", release="lamps-1", manifest="cd" * 32)
    said = codec.encode(replace(REPORT, version=3, components={"lamps": lamps}))
    ingest.handle(operator.plane, topics.up(GULL, "reported"), said)
    assert main(["device", "show", "gull"]) == 0
    assert "lamps-1, committed" in capsys.readouterr().out
    (shown,) = operator.ask("GET", "/v1/devices/gull")["components"]
    assert (shown["name"], shown["manifest"]) == ("lamps", "cd" * 32)

    assert main(["device", "component", "remove", "gull", "lamps"]) == 0
    assert operator.ask("GET", "/v1/devices/gull")["components"] == []
    texts = [event["text"] for event in operator.ask("GET", "/v1/events")]
    assert "gull gets a component for lamps" in texts
    assert "gull loses its component for lamps" in texts


@pytest.mark.usefixtures("operator")
def test_the_drift_of_two_models_of_a_device_is_two_rows_that_say_which(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = [
        DeviceDrift("gull", model, 3, "quiet", windows=9, last_window=9, event_time=0.0)
        for model in ("gestures", "lamps")
    ]
    monkeypatch.setattr(fleet_drift, "view", lambda _: View(devices=tuple(seen)))
    assert main(["drift"]) == 0
    rows = [line.split()[:3] for line in capsys.readouterr().out.splitlines()[-2:]]
    assert rows == [["gull", "gestures", "3"], ["gull", "lamps", "3"]]


def test_an_operator_adds_a_version_of_the_agent_and_stages_its_release(
    operator: Coast, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "skerry-0.2.0-py3-none-any.whl"
    file.write_bytes(wheel("skerry", "0.2.0", {"skerry/__init__.py": ""}))

    assert main(["agent", "add", str(file), "--profile", "x86-64-gateway", "--profile", "raspberry-pi-5"]) == 0
    assert "agent version 1; next: skerry release create agent 1" in capsys.readouterr().out
    assert main(["release", "create", "agent", "1"]) == 0
    assert "raspberry-pi-5, x86-64-gateway" in capsys.readouterr().out
    assert main(["agent", "add", str(file), "--profile", "cortex-m4f-256kb"]) == 2
    assert operator.ask("GET", "/v1/models/agent/versions/1")["recipe"] == {"kind": "agent"}
