"""Measures the agent beside the bare runtime: time of a call, memory, start, idling, and a week's growth.

    python -m bench.agent [--quick]

A real agent runs on a real Mosquitto and acknowledges to a shore, with a network of 16 watched features. Every figure
is a ratio in one run, measured in turn and as the median of rounds:

- a call in the program's own process (`skerry.Model`, counted by the agent), through a supervised worker, and over the
  agent's unix socket (Open Inference Protocol, binary), against the runtime in a loop: on a model of 300 us or more,
  and on a tiny one, where the microseconds that are added count;
- memory: the proportional set size of daemon and worker together, as if nobody else had the same libraries mapped,
  against one interpreter that imports runtime, paho, ssl and sqlite3 and holds the same (small) model;
- from the start of the process to the first answer, against the same interpreter's first inference;
- the share of a processor that an idle agent takes; and what memory and disk grow by from the first day to the seventh
  of a week on an accelerated event clock, 168 windows of an hour, all acknowledged.

The last line is one JSON object.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from bench.agent_process import LiveAgent, bare_stack, cpu_s, disk_bytes, keep_bytecode, pss_alone_bytes, pss_bytes
from bench.delivery import mosquitto
from skerry.runtimes.arrays import pack
from tests.artifacts import LABELS, make_artifact, make_windows, write_recurring_model
from tests.integration.agent.shore import Shore, wait_for

RUNTIMES = {"onnx": "onnxruntime", "litert": "litert"}
# width and layers; both large ones take 300 us and more on what this was written on
TINY, LARGE = (16, 1), (512, 24)
RECURRING = {"width": 256, "layers": 10}
WAYS = ("in_process", "bound", "child", "socket")
DAY_S = 24 * 3600
WINDOWS = 7 * 24
IDLE_S = {True: 20.0, False: 60.0}


def call_figures(shore: Shore, folder: Path, *, quick: bool) -> dict[str, float]:
    """Ratios of a call to the bare runtime's, and microseconds added."""
    figures: dict[str, float] = {}
    large = make_artifact("onnxruntime", data=write_recurring_model(**RECURRING))
    cases = [("", "onnxruntime", large), ("tiny_", "onnxruntime", _dense("onnxruntime", TINY))]
    if not quick:
        cases += [("litert_", "litert", _dense("litert", LARGE)), ("litert_tiny_", "litert", _dense("litert", TINY))]
    for prefix, runtime, files in cases:
        agent = LiveAgent(shore, folder / f"calls-{prefix}x".replace("_", "-"), files, runtime)
        agent.start()
        try:
            measured = _time_ways(agent, runtime, rounds=25 if quick else 80, calls=50)
        finally:
            agent.stop()
        print(f"\n{prefix or 'large '}{runtime}: microseconds and against bare: p50, p99, p99 of undisturbed calls")
        floor = measured["bare"]
        figures[f"{prefix}bare_p50_us"] = round(floor[0], 1)
        for way, times in measured.items():
            ratios = [ours / bare for ours, bare in zip(times, floor, strict=True)]
            print(f"  {way:12s}" + "".join(f"{each:10.1f}" for each in times) + "".join(f"{r:9.3f}" for r in ratios))
        for way in WAYS:
            figures[f"{prefix}{way}_p50_ratio"] = round(measured[way][0] / floor[0], 3)
            figures[f"{prefix}{way}_p99_ratio"] = round(measured[way][1] / floor[1], 3)
            figures[f"{prefix}{way}_p99_quiet_ratio"] = round(measured[way][2] / floor[2], 3)
            figures[f"{prefix}{way}_added_us"] = round(measured[way][0] - floor[0], 1)
    return figures


def _dense(runtime: str, size: tuple[int, int]) -> dict[str, bytes]:
    return make_artifact(runtime, width=size[0], layers=size[1])


def _time_ways(agent: LiveAgent, runtime: str, *, rounds: int, calls: int) -> dict[str, list[float]]:
    command = [sys.executable, "-m", "bench.agent_loop", runtime, str(agent.state), str(rounds), str(calls)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    measured: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return measured


def stack_figures(shore: Shore, folder: Path, *, rounds: int) -> dict[str, float]:
    """Memory and time to the first inference, agent against bare stack, for both runtimes."""
    figures: dict[str, float] = {}
    starts: list[float] = []
    print(f"\n{'stack':14s}{'bare MB':>10s}{'agent MB':>10s}{'kernel':>16s}{'start s':>16s}")
    for short, runtime in RUNTIMES.items():
        files = make_artifact(runtime)
        agent = LiveAgent(shore, folder / f"stack-{short}", files, runtime)
        model = folder / next(name for name in files if name.startswith("model."))
        model.write_bytes(files[model.name])
        rows = []
        with bare_stack(runtime, model):
            pass  # compiles what all others find
        for _ in range(rounds):
            shore.reported.pop(agent.name, None)
            with bare_stack(runtime, model) as (pid, bare_first):
                bare = pss_alone_bytes([pid]), pss_bytes([pid])
            first = agent.start()
            try:
                _event_time(shore, agent)
                assert agent.ask(50)
                ours = pss_alone_bytes(agent.pids), pss_bytes(agent.pids)
            finally:
                agent.stop()
            rows.append((bare[0], ours[0], bare[1], ours[1], bare_first, first))
        middle = [median(column) for column in zip(*rows, strict=True)]
        print(
            f"{short:14s}{middle[0] / 1e6:10.1f}{middle[1] / 1e6:10.1f}"
            f"{middle[2] / 1e6:8.1f}{middle[3] / 1e6:8.1f}{middle[4]:8.2f}{middle[5]:8.2f}",
            flush=True,
        )
        figures[f"rss_ratio_{short}"] = round(median(row[1] / row[0] for row in rows), 3)
        figures[f"rss_ratio_{short}_kernel"] = round(median(row[3] / row[2] for row in rows), 3)
        figures[f"start_ratio_{short}"] = round(median(row[5] / row[4] for row in rows), 2)
        starts += [row[5] / row[4] for row in rows]
    figures["start_to_first_inference_ratio"] = round(median(starts), 2)
    return figures


def week_figures(shore: Shore, folder: Path, *, quick: bool) -> dict[str, float]:
    """Run a week of windows of an hour; return what memory and disk grew by from the first day to the last."""
    # inferences of an hour; with fewer of them a week is shorter, and has as many windows
    hourly = 60 if quick else 360
    agent = LiveAgent(shore, folder / "week", make_artifact("onnxruntime"), "onnxruntime")
    recording = folder / "recording.npz"
    truth = np.random.default_rng(5).integers(0, len(LABELS), 500)
    recording.write_bytes(pack({"X": make_windows(500), "y": truth}))
    agent.start(
        *("--replay", str(recording), "--rate", "0"),
        *("--event-step", str(3600 / hourly), "--window-rows", str(hourly)),
    )
    try:
        began = _event_time(shore, agent)
        marks = []
        for days in (1, 7):
            wait_for(
                lambda days=days: _event_time(shore, agent) >= began + days * DAY_S,  # type: ignore[misc]
                why=f"day {days}",
                timeout_s=600,
            )
            marks.append((pss_alone_bytes(agent.pids), disk_bytes(agent.state), len(shore.windows(agent.name))))
        wait_for(lambda: len(shore.windows(agent.name)) >= WINDOWS, why="every window", timeout_s=120)
    finally:
        agent.stop()
    (first_rss, first_disk, first_windows), (rss, disk, windows) = marks
    print(f"\nweek: {first_rss / 1e6:.1f} to {rss / 1e6:.1f} MB, {first_disk} to {disk} bytes of disk,")
    print(f"      {first_windows} to {windows} windows of {hourly} rows heard")
    return {
        "week_rss_growth_ratio": round(rss / first_rss, 3),
        "week_disk_growth_bytes": disk - first_disk,
        "week_windows": WINDOWS,
        "week_rows": WINDOWS * hourly,
    }


def _event_time(shore: Shore, agent: LiveAgent) -> float:
    wait_for(lambda: shore.reported.get(agent.name), why="the agent to report", timeout_s=30)
    return shore.reported[agent.name].event_time


def main() -> None:
    """Measure, print for people, and end with one line for programs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds; ends within 50 s on two cores")
    quick: bool = parser.parse_args().quick
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keep_bytecode(folder / "bytecode")
        with mosquitto(folder / "broker") as broker:
            shore = Shore(broker.port, folder)
            try:
                figures = call_figures(shore, folder, quick=quick)
                idle = LiveAgent(shore, folder / "idle", make_artifact("onnxruntime"), "onnxruntime")
                idle.start()
                try:
                    time.sleep(2)
                    since, used = time.monotonic(), cpu_s(idle.pids)
                    # an idle agent's processor time is its own, whatever else goes on
                    figures |= stack_figures(shore, folder, rounds=1 if quick else 7)
                    figures |= week_figures(shore, folder, quick=quick)
                    time.sleep(max(0.0, since + IDLE_S[quick] - time.monotonic()))
                    share = (cpu_s(idle.pids) - used) / (time.monotonic() - since)
                finally:
                    idle.stop()
            finally:
                shore.close()
    figures["idle_cpu_share"] = round(share, 5)
    print(f"\nidle: {share:.3%} of a processor\n{time.monotonic() - began:.0f} s")
    print(json.dumps({"bench": "agent", "quick": quick, "figures": figures}))


if __name__ == "__main__":
    main()
