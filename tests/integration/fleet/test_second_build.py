"""A release with two builds on a real fleet: canaries measure both, their evidence chooses, and all end on that."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from control_plane.schema.models import Build, ModelVersion
from control_plane.server import open_plane
from demo.__main__ import found_control_plane
from demo.programs import Programs
from skerry.client import Client
from skerry.runtimes.arrays import pack
from tests.integration.agent.shore import LABELS, MODEL, make_artifact

PROFILE = "arm64-gateway-512mb"
CANARIES, REST = ("gull", "auk"), ("tern", "skua")


@pytest.fixture(params=["embedded", pytest.param("mosquitto", marks=pytest.mark.broker)])
def programs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Programs, Client]]:
    """Run a control plane on either broker, and return it with a client; all ended afterwards."""
    url = "embedded" if request.param == "embedded" else str(request.getfixturevalue("mosquitto").url)
    with Programs(home=tmp_path / "server", logs=tmp_path / "logs") as running:
        _, pages = found_control_plane(running, tmp_path / "keys", broker_url=url)
        with Client(pages, (running.home / "operator.token").read_text().strip()) as client:
            yield running, client


def keep_two_builds(home: Path, folder: Path) -> dict[str, str]:
    """Record a version as compiling does where latency was a proxy: the first build is big, the second one is small."""
    plane = open_plane(home)
    made = {}
    for name, layers in (("first", 6), ("second", 0)):
        files = make_artifact(folder, version=1, layers=layers, profile=PROFILE)
        made[name] = {file: plane.blobs.put(data) for file, data in files.items()}
    manifests = {name: files.pop("manifest.json") for name, files in made.items()}
    now = datetime.now(UTC)
    with plane.sessions.begin() as session:
        session.add(ModelVersion(model=MODEL, version=1, dataset="d", bundle="", trained_at=now))
        session.add(
            Build(
                model=MODEL,
                version=1,
                profile=PROFILE,
                gate="passed",
                manifest=manifests["first"],
                files=made["first"],
                report={"second": {"manifest": manifests["second"], "files": made["second"]}},
                built_at=now,
            )
        )
    plane.sessions.kw["bind"].dispose()
    return manifests


def run_fleet(programs: Programs, client: Client, folder: Path) -> None:
    """Enrol all devices and start their agents on one recording."""
    rng = np.random.default_rng(3)
    arrays: dict[str, Any] = {
        "X": rng.normal(size=(60, 100, 6)).astype(np.float32),
        "y": rng.integers(0, 3, size=60),
        "labels": np.array(LABELS),
    }
    (folder / "worn.npz").write_bytes(pack(arrays))
    for name in (*CANARIES, *REST):
        join = client.invite(profile=PROFILE, name=name)["join"]
        state = str(folder / name)
        programs.run("skerry-agent", "init", join, "--profile", PROFILE, "--state", state, "--simulate")
        replay = ("--replay", str(folder / "worn.npz"), "--rate", "50")
        programs.start(name, "skerry-agent", "run", "--state", state, *replay)


def until(holds: Callable[[], bool], timeout_s: float = 15.0) -> None:
    """Wait until something holds, or fail."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.long
def test_canaries_choose_the_faster_build_and_the_whole_fleet_ends_on_it(
    programs: tuple[Programs, Client], tmp_path: Path
) -> None:
    running, client = programs
    manifests = keep_two_builds(running.home, tmp_path)
    running.skerry("release", "create", MODEL, "1")
    running.skerry("release", "sign", f"{MODEL}-1", "--keys", str(tmp_path / "keys"))
    run_fleet(running, client, tmp_path)

    waves = (f"--wave=canary={','.join(CANARIES)}", "--wave=rest=rest")
    rollout = running.skerry("rollout", "create", f"{MODEL}-1", *waves)["id"]
    done = running.skerry("rollout", "wait", str(rollout), "--timeout", "100")

    ran = [(each["device"], each["manifest"], each["wave"], each["state"]) for each in done["deployments"]]
    first, second = manifests["first"], manifests["second"]
    assert sorted(ran) == sorted(
        [(name, each, 1, "committed") for name in CANARIES for each in (first, second)]
        + [(name, second, 2, "committed") for name in REST]
    )
    running.check_running()
    until(lambda: {device["reported"]["manifest"] for device in client.devices()} == {second})
    # what it counts from then on is known to be of this model
    until(lambda: any((row["manifest"], row["model"]) == (second[:16], MODEL) for row in client.windows()))

    choice = client.release(f"{MODEL}-1")["choices"][PROFILE]
    assert (choice["build"], choice["manifest"], choice["devices"]) == ("second", second, ["auk", "gull"])
    assert choice["low"] > 1
    assert done["choices"][PROFILE] == choice
    evidence = {each["device"]: each["evidence"] for each in done["deployments"] if each["measures"]}
    assert [len(evidence[name]["races"]) for name in ("auk", "gull")] == [4, 4]
    (chose,) = [event["text"] for event in client.events() if event["kind"] == "choice"]
    assert "the second build is chosen: the first takes" in chose
    shown = running.run("skerry", "--home", str(running.home), "release", "show", f"{MODEL}-1")
    assert f"{PROFILE}: the second build is chosen" in shown
