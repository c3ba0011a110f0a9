"""The figures of `report.json`, computed from what the agents reported and the API answers: none is written in."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from statistics import median
from typing import Any

from demo.report_page import Deployed, Measured
from demo.story import CANARIES, Moment, Story

Row = dict[str, Any]


def accuracy(rows: Iterable[Row]) -> float:
    """Return the share of labelled rows that the device's model got right; 0 when there are none."""
    labelled = correct = 0
    for row in rows:
        labelled += row["labelled"]
        correct += row["correct"]
    return round(correct / labelled, 4) if labelled else 0.0


def before(rows: Iterable[Row], moments: dict[str, Moment]) -> list[Row]:
    """Return the windows that ended before their device was moved."""
    return [row for row in rows if row["device"] not in moments or row["end"] <= moments[row["device"]].after]


def after(rows: Iterable[Row], moments: dict[str, Moment]) -> list[Row]:
    """Return the windows that began after their device had been seen to be moved."""
    return [row for row in rows if row["device"] in moments and row["start"] >= moments[row["device"]].by]


def lost_and_repeated(rows: Sequence[Row], gaps: int) -> tuple[int, int]:
    """Return (windows lost, windows counted twice), from the numbers that the devices gave to their windows.

    A device numbers its windows from 0 under each manifest, so a number that is missing below the highest is a lost
    window, and a number that stands twice was counted twice. Windows that a device gave up, by its own gap records,
    are missing numbers as well; `gaps` is their count, and a gap record without a missing number is a lost one too.
    """
    numbers: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for row in rows:
        numbers[row["device"], row["manifest"]].append(row["number"])
    missing = sum(max(each) + 1 - len(set(each)) for each in numbers.values())
    repeated = sum(len(each) - len(set(each)) for each in numbers.values())
    return max(missing, gaps), repeated


def windows_to(rows: Iterable[Row], finding: Row, *, device: str, moment: Moment) -> int:
    """Return how many windows a device had sent, since it was moved, when a finding was made."""
    last = finding["detail"]["windows"].get(device, -1)
    return sum(
        row["device"] == device
        and row["version"] == finding["version"]
        and row["end"] > moment.after
        and row["number"] <= last
        for row in rows
    )


def report(story: Story, *, seconds: float) -> dict[str, Any]:
    """Return the whole report."""
    rows = story.fleet.windows()
    of_version = {version: [row for row in rows if row["version"] == version] for version in (1, 2)}
    lost, repeated = lost_and_repeated(rows, sum(each["gaps"] for each in story.client.outbox()))
    first, second = (story.client.rollout(story.rollouts[name]) for name in ("watch-1", "watch-2"))
    flagged = story.local.get("device", "")
    return {
        "profiles": profiles(story.client.model("watch", 2)),
        "v1": {
            "accuracy_as_trained": accuracy(before(of_version[1], story.moved)),
            "accuracy_other_wrist": accuracy(after(of_version[1], story.moved)),
        },
        "v2": {
            "accuracy_as_trained": accuracy(after(of_version[2], story.moved_back)),
            "accuracy_other_wrist": accuracy(before(of_version[2], story.moved_back)),
        },
        "offline": {
            "devices": len(story.offline),
            "windows_buffered": sum(story.offline.values()),
            "windows_lost": lost,
            "windows_duplicated": repeated,
        },
        "drift": {
            "false_alarms_before": story.false_alarms_before,
            "local_flag": {
                "device": flagged,
                "windows_to_flag": windows_to(rows, story.local, device=flagged, moment=story.moved[flagged])
                if flagged in story.moved
                else -1,
            },
            "world_changed": bool(story.world),
            "windows_to_alarm": windows_to_alarm(story, rows),
        },
        "rollout": {
            "v1_committed": committed(first),
            "v2_committed": committed(second),
            "v2_canary_devices": len({each["device"] for each in second["deployments"] if each["wave"] == 1}),
            "v2_bytes_sent": sum(
                each["bytes_sent"] for each in story.client.publications() if each["release"] == "watch-2"
            ),
        },
        "seconds": round(seconds, 1),
    }


def profiles(model: dict[str, Any]) -> dict[str, Any]:
    """Return the chosen build of each profile, with its gate."""
    found = {}
    for build in model["builds"]:
        report = build["report"]
        best: dict[str, Any] = next((each for each in report["candidates"] if each["name"] == report.get("chosen")), {})
        found[build["profile"]] = {
            "runtime": build["runtime"],
            "size_bytes": best.get("size_bytes"),
            "accuracy": best.get("accuracy"),
            "agreement": best.get("agreement"),
            "gate": build["gate"],
        }
    return found


def committed(rollout: dict[str, Any]) -> int:
    """Return how many devices committed."""
    # a device that measured two builds may have committed both
    return len({each["device"] for each in rollout["deployments"] if each["state"] == "committed"})


def windows_to_alarm(story: Story, rows: Sequence[Row]) -> int:
    """Return the most windows that any device closed between the move of the fleet and the world's alarm; -1 if none.

    The device that had moved first is left out: it was waiting for the others.
    """
    if not story.world:
        return -1
    return max(
        windows_to(rows, story.world, device=name, moment=moment)
        for name, moment in story.moved.items()
        if name != story.local.get("device")
    )


def series(story: Story) -> Measured:
    """Return what was seen over time, for the charts of the report page."""
    accuracies: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in sorted(story.fleet.windows(), key=lambda row: (row["device"], row["end"])):
        if row["labelled"]:
            accuracies[row["device"]].append((float(row["end"]), row["correct"] / row["labelled"]))
    rollouts = [story.client.rollout(rollout) for rollout in story.rollouts.values()]
    taken = [each["committed_event_time"] for each in rollouts[-1]["deployments"] if each["committed_event_time"]]
    first, *others = sorted(moment.by for moment in story.moved.values())
    return {
        "accuracy": accuracies,
        "evidence": story.fleet.series.evidence,
        "buffer": story.fleet.series.buffer,
        "deployments": [deployed(story, rollout, each) for rollout in rollouts for each in rollout["deployments"]],
        "moments": {
            "event": [
                (first, "one watch moves"),
                (median(others), "all move"),
                (median(taken), "version 2"),
                (median(moment.by for moment in story.moved_back.values()), "all move back"),
            ],
            "real": story.moments,
        },
    }


def deployed(story: Story, rollout: dict[str, Any], deployment: dict[str, Any]) -> Deployed:
    """Return one bar of the rollouts' chart, in seconds since the beginning."""
    waves = {wave["number"]: wave["name"] for wave in rollout["waves"]}
    assigned, ended = (
        (datetime.fromisoformat(deployment[key]) - story.began_at).total_seconds() if deployment[key] else None
        for key in ("assigned_at", "ended_at")
    )
    return {
        "device": deployment["device"],
        "release": rollout["release"],
        "wave": waves[deployment["wave"]],
        "assigned": assigned or 0.0,
        "committed": ended,
    }


def unmet(figures: dict[str, Any], *, expected_flag: str) -> list[str]:
    """Return what the story did not show, one line each; an empty list is a demo that kept its word."""
    offline, drift, rollout = figures["offline"], figures["drift"], figures["rollout"]
    gain = figures["v2"]["accuracy_other_wrist"] - figures["v1"]["accuracy_other_wrist"]
    checks = (
        (offline["windows_lost"] == 0, f"windows_lost: expected 0, got {offline['windows_lost']}"),
        (offline["windows_duplicated"] == 0, f"windows_duplicated: expected 0, got {offline['windows_duplicated']}"),
        (offline["devices"] == 3, f"offline devices: expected 3, got {offline['devices']}"),
        (offline["windows_buffered"] > 0, "windows_buffered: expected some, got none"),
        (drift["false_alarms_before"] == 0, f"false alarms: expected 0, got {drift['false_alarms_before']}"),
        (
            drift["local_flag"]["device"] == expected_flag,
            f"local flag: expected {expected_flag}, got {drift['local_flag']['device'] or 'none'}",
        ),
        (drift["world_changed"], "world_changed: expected true, got false"),
        (rollout["v1_committed"] == 8, f"committed on v1: expected 8, got {rollout['v1_committed']}"),
        (rollout["v2_committed"] == 8, f"committed on v2: expected 8, got {rollout['v2_committed']}"),
        (rollout["v2_canary_devices"] == len(CANARIES), f"canaries: got {rollout['v2_canary_devices']}"),
        (
            figures["v1"]["accuracy_as_trained"] >= 0.75,
            f"v1 as trained: expected .75, got {figures['v1']['accuracy_as_trained']}",
        ),
        (gain >= 0.15, f"v2 on the other wrist: expected .15 above v1, got {gain:.4f}"),
        (
            all(profile["gate"] == "passed" for profile in figures["profiles"].values()),
            "gates: expected all passed",
        ),
    )
    return [line for kept, line in checks if not kept]
