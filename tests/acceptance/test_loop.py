"""The product's loop through its public faces, on the embedded broker and on Mosquitto: two devices, one recording."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demo import watch
from demo.__main__ import found_control_plane
from demo.fleet import until
from demo.programs import Programs
from skerry.client import Client

RECIPE = Path(watch.__file__).with_name("recipe.toml")
DEVICES = {"gateway": "x86-64-gateway", "board": "arm64-board"}
ROWS = 50


@pytest.fixture(params=["embedded", pytest.param("mosquitto", marks=pytest.mark.broker)])
def broker_url(request: pytest.FixtureRequest) -> str:
    """Return the server's broker setting: its own, or a Mosquitto of this test's."""
    if request.param == "embedded":
        return "embedded"
    url: str = request.getfixturevalue("mosquitto").url
    return url


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    """Return the programs, all ended afterwards."""
    with Programs(home=tmp_path / "server", logs=tmp_path / "logs") as running:
        yield running


def test_data_becomes_a_model_that_runs_on_two_devices_and_is_heard_of(
    programs: Programs, broker_url: str, tmp_path: Path
) -> None:
    _, pages = found_control_plane(programs, tmp_path / "keys", broker_url=broker_url)
    windows = watch.load()
    learnt = windows.where(wearers=watch.TRAIN_WEARERS, wrist="right")
    watch.write(tmp_path / "data.npz", windows, learnt)
    watch.write(tmp_path / "worn.npz", windows, windows.where(wearers=(8,), wrist="right"))

    programs.skerry("data", "add", "watch", str(tmp_path / "data.npz"))
    programs.skerry("model", "train", "watch", "--data", "watch", "--recipe", str(RECIPE))
    chosen = [f"--profile={profile}" for profile in DEVICES.values()]
    built = programs.skerry("model", "compile", "watch", "1", *chosen)
    assert {build["gate"] for build in built["builds"]} == {"passed"}
    programs.skerry("release", "create", "watch", "1")
    assert programs.skerry("release", "sign", "watch-1", "--keys", str(tmp_path / "keys"))["state"] == "live"

    for name, profile in DEVICES.items():
        join = programs.skerry("device", "invite", "--profile", profile, "--name", name)["join"]
        state = str(tmp_path / name)
        programs.run("skerry-agent", "init", join, "--profile", profile, "--state", state, "--simulate")
        replay = ("--replay", str(tmp_path / "worn.npz"), "--rate", "200", "--event-step", "60")
        programs.start(name, "skerry-agent", "run", "--state", state, *replay, "--window-rows", str(ROWS))
    rollout = programs.skerry("rollout", "create", "watch-1", "--wave=first=gateway", "--wave=rest=rest")["id"]
    done = programs.skerry("rollout", "wait", str(rollout), "--timeout", "100")
    # where a latency was a proxy, a device measures two builds, and may commit one after the other
    assert {(each["device"], each["wave"], each["state"]) for each in done["deployments"]} == {
        ("gateway", 1, "committed"),
        ("board", 2, "committed"),
    }
    assert done["choices"]["arm64-board"]["devices"] == ["board"]
    assert done["choices"]["arm64-board"]["ratio"] > 0

    with Client(pages, (programs.home / "operator.token").read_text().strip()) as client:

        def heard() -> list[dict[str, Any]] | None:
            rows = list(client.windows())
            return rows if all(sum(row["device"] == name for row in rows) >= 3 for name in DEVICES) else None

        rows = until("three windows of each device", heard, timeout_s=60, programs=programs)
    assert {row["rows"] for row in rows} == {ROWS}
    # the truth travels with the recording: what the devices got right is what this model gets right on this wearer
    assert np.mean([row["correct"] / row["labelled"] for row in rows]) > 0.7
    assert json.loads((tmp_path / "gateway" / "identity.json").read_text())["device"] == "gateway"
