"""One whole agent for `bench.delivery`: a fetch, five hard aborts in one, and a slow far link that is reset."""

import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np

from skerry.runtimes.arrays import pack
from tests.conftest import Mosquitto
from tests.integration.agent.shore import Device, Shore, wait_for
from tests.relay import Relay, Shape

# 512 x 512 weights of 4 bytes in a layer
LAYERS = {"5MB": 5, "50MB": 48}
ABORTS = 5
FETCHED = ("verified", "staged", "replaying", "trial", "committed")
# 64 kbit/s, 600 ms there and back, a reset every 30 s
SLOW = Shape(rate_bytes_s=8_000, delay_s=0.3, reset_every_s=30)


def whole_agent(broker: Mosquitto, folder: Path, *, quick: bool) -> dict[str, float]:
    """Return the figures of one agent."""
    folder = folder / "agent"
    folder.mkdir()
    shore = Shore(broker.port, folder)
    try:
        shore.release(1)
        shore.release(2, layers=LAYERS["5MB"])
        shore.release(3, layers=LAYERS["50MB"])
        figures = _fetch(shore, folder)
        if not quick:
            figures |= {f"{key}_50mb": value for key, value in _fetch(shore, folder, version=3).items()}
            figures["device_rss_growth_mb"] = max(
                figures["device_rss_growth_mb"], figures.pop("device_rss_growth_mb_50mb")
            )
        figures |= _aborts(shore, folder)
        if not quick:
            figures |= _slow_link(shore, folder)
    finally:
        shore.close()
    return figures


def _fetch(shore: Shore, folder: Path, *, version: int = 2) -> dict[str, float]:
    """Time the fetch of an artifact by an agent that runs another, and watch its memory."""
    device = _device(shore, folder, f"fetch-{version}")
    try:
        device.start(rate=20)
        assert shore.ends(device.name, shore.assign(device.name, 1)).state == "committed"
        time.sleep(1)
        before = _rss_mb(device)
        most = before
        began = time.monotonic()
        deployment = shore.assign(device.name, version)
        while not _fetched(shore, device, deployment):
            most = max(most, _rss_mb(device))
            time.sleep(0.005)
        took = time.monotonic() - began
    finally:
        device.kill()
    return {
        "agent_seconds": round(took, 2),
        "agent_rss_mb": round(before, 1),
        "device_rss_growth_mb": round(most - before, 2),
    }


def _aborts(shore: Shore, folder: Path) -> dict[str, float]:
    """Kill an agent five times while it fetches; return what came over its link, per byte of the artifact."""
    whole = _sealed_bytes(shore, 3)
    with Relay(shore.port, Shape(rate_bytes_s=whole / 4)) as relay:
        device = _device(shore, folder, "aborts")
        device.port = relay.port
        deployment = shore.assign(device.name, 3)
        try:
            for number in range(1, ABORTS + 1):
                device.start(rate=20)
                mark = whole * number / (ABORTS + 1)
                wait_for(lambda mark=mark: relay.down_bytes > mark, why="bytes", timeout_s=60)  # type: ignore[misc]
                device.kill()
            device.start(rate=20)
            wait_for(lambda: _fetched(shore, device, deployment), why="the end of the fetch", timeout_s=60)
        finally:
            device.kill()
        return {"resume_overhead": round(relay.down_bytes / whole, 4)}


def _slow_link(shore: Shore, folder: Path) -> dict[str, float]:
    """Let an agent commit over a link of 64 kbit/s and 600 ms that is reset every 30 s."""
    with Relay(shore.port, SLOW) as relay:
        device = _device(shore, folder, "slow")
        device.port = relay.port
        began = time.monotonic()
        try:
            device.start(rate=5)
            end = shore.ends(device.name, shore.assign(device.name, 1), timeout_s=300)
        finally:
            device.kill()
        assert end.state == "committed", end
        return {
            "slow_link_seconds": round(time.monotonic() - began, 1),
            "slow_link_floor_seconds": round(_sealed_bytes(shore, 1) / SLOW.rate_bytes_s, 1),
            "slow_link_resets": relay.resets,
        }


def _fetched(shore: Shore, device: Device, deployment: str) -> bool:
    return any(event.state in FETCHED for event in shore.states(device.name, deployment))


def _device(shore: Shore, folder: Path, name: str) -> Device:
    recording = folder / "recording.npz"
    arrays: dict[str, Any] = {"X": np.random.default_rng(3).normal(size=(60, 100, 6)).astype(np.float32)}
    recording.write_bytes(pack(arrays))
    return Device(shore, name, folder / name, recording)


def _sealed_bytes(shore: Shore, version: int) -> int:
    sealed = (shore.sealed_files[hashlib.sha256(data).hexdigest()] for data in shore.artifacts[version].values())
    return sum(len(chunk) for chunks in sealed for chunk in chunks)


def _rss_mb(device: Device) -> float:
    process = device._process  # noqa: SLF001 -- the tests' device has no other use for it
    assert process is not None
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1024
