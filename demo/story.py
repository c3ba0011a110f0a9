"""The story that `make demo` tells: ten acts, each through the product's public faces alone.

The recording carries the truth of every window, so each agent also reports how many of its predictions were right:
all accuracies of the report are sums of those counts.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from demo import watch
from demo.fleet import WATCHES, Fleet, Watch, until
from demo.programs import Programs
from demo.relay import Relay
from skerry.client import Client

PROFILES = ("x86-64-gateway", "arm64-board", "cortex-m")
COMMISSIONING = 8
CUT_OFF = WATCHES[5:8]
MOVES_FIRST = WATCHES[2]
FIRST_WAVE = (WATCHES[0], WATCHES[4])
CANARIES = (WATCHES[1], WATCHES[5])


@dataclass(slots=True)
class Moment:
    """When something happened to a device on its event clock: not before `after`, and seen by `by` at the latest."""

    after: float
    by: float


@dataclass(slots=True)
class Story:
    """What the acts share and find out."""

    folder: Path
    console: Console
    programs: Programs
    client: Client
    fleet: Fleet
    windows: watch.Windows
    relay: Relay
    began: float
    began_at: datetime
    keys: Path
    moved: dict[str, Moment] = field(default_factory=dict)
    moved_back: dict[str, Moment] = field(default_factory=dict)
    offline: dict[str, int] = field(default_factory=dict)
    false_alarms_before: int = -1
    local: dict[str, Any] = field(default_factory=dict)
    world: dict[str, Any] = field(default_factory=dict)
    rollouts: dict[str, int] = field(default_factory=dict)
    moments: list[tuple[float, str]] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Print one line with the seconds since the beginning."""
        self.console.print(f"[dim]{time.monotonic() - self.began:6.1f} s[/dim]  {text}", soft_wrap=True)

    def mark(self, label: str) -> None:
        """Remember this moment for the charts."""
        self.moments.append((time.monotonic() - self.began, label))

    @contextmanager
    def act(self, title: str) -> Iterator[None]:
        """Open an act: a headline, and a spinner while it goes on."""
        self.console.print(f"\n[bold]{title}[/bold]", soft_wrap=True)
        with self.console.status("working"):
            yield

    def until(self, what: str, check: Any, *, timeout_s: float = 120.0) -> Any:
        """Wait for something that the product shall do by itself."""
        return until(what, check, timeout_s=timeout_s, programs=self.programs)


def train_and_build(story: Story, *, version: int, parts: tuple[tuple[str, str, Any], ...]) -> None:
    """Add data, train a version, compile it for every profile; the gates must pass."""
    added = {"train": 0, "gate": 0}
    for name, role, rows in parts:
        file = story.folder / "data" / f"{name}.npz"
        watch.write(file, story.windows, rows)
        added[role] += story.programs.skerry("data", "add", "watch", str(file), "--role", role)["rows"]
    story.say(f"added {added['train']} windows to learn from, and {added['gate']} labelled in the field to gate on")
    recipe = Path(__file__).with_name("recipe.toml")
    trained = story.programs.skerry("model", "train", "watch", "--data", "watch", "--recipe", str(recipe))
    story.say(f"trained watch version {trained['result']['version']}")
    chosen = [f"--profile={profile}" for profile in PROFILES]
    model = story.programs.skerry("model", "compile", "watch", str(version), *chosen)
    for build in model["builds"]:
        report = build["report"]
        best = next(each for each in report["candidates"] if each["name"] == report["chosen"])
        story.say(
            f"{build['profile']}: gate {build['gate']}, {best['name']}, {best['size_bytes'] / 1024:.1f} KiB, "
            f"accuracy {best['accuracy']:.3f}, agreement {best['agreement']:.3f}"
        )


def release(story: Story, *, version: int, waves: tuple[tuple[str, str], ...]) -> None:
    """Sign a version with the offline keys and roll it out; every device must commit it."""
    name = f"watch-{version}"
    story.programs.skerry("release", "create", "watch", str(version))
    signed = story.programs.skerry("release", "sign", name, "--keys", str(story.keys))
    story.say(f"release {name} is {signed['state']}: signed with the offline keys")
    chosen = [f"--wave={wave}={who}" for wave, who in waves]
    rollout = story.programs.skerry("rollout", "create", name, *chosen)["id"]
    story.rollouts[name] = rollout
    story.mark(name)

    done: set[int] = set()

    def over() -> bool:
        state = story.client.rollout(rollout)
        for wave in state["waves"]:
            if wave["state"] == "done" and wave["number"] not in done:
                done.add(wave["number"])
                held = sorted({each["device"] for each in state["deployments"] if each["wave"] == wave["number"]})
                story.say(f"wave {wave['name']}: {len(held)} committed ({', '.join(held)})")
        return bool(state["state"] != "running")

    story.until(f"the end of the rollout of {name}", over)


def grown(story: Story, watches: tuple[Watch, ...], *, count: int, since: dict[str, float]) -> None:
    """Wait until each of the watches has `count` merged windows that began after its time in `since`."""

    def enough() -> bool:
        rows = story.fleet.windows()
        return all(
            sum(row["device"] == one.name and row["start"] >= since.get(one.name, 0.0) for row in rows) >= count
            for one in watches
        )

    story.until(f"{count} more windows of {len(watches)} devices", enough)


def move(story: Story, watches: tuple[Watch, ...], *, wrist: str) -> dict[str, Moment]:
    """Put watches on another wrist; return for each when that was on its event clock."""
    before: dict[str, float] = {}
    for one in watches:
        before |= story.fleet.event_clocks((one,))
        story.fleet.wear(one, wrist=wrist)
    # an agent looks at the file between two inferences, so a clock that it saves from here on is past the move
    stale = story.fleet.event_clocks(watches)

    def seen() -> dict[str, float] | None:
        now = story.fleet.event_clocks(watches)
        return now if all(now[name] > stale[name] for name in now) else None

    after = story.until("an inference of every moved watch", seen)
    return {name: Moment(after=before[name], by=after[name]) for name in after}


def findings(story: Story, kind: str) -> list[dict[str, Any]]:
    """Return the findings of a kind."""
    return [finding for finding in story.client.drift()["findings"] if finding["kind"] == kind]


def tell(story: Story) -> None:
    """Tell the whole story."""
    every = ",".join
    windows = story.windows

    with story.act("1  A model trained on one wrist"):
        one_wrist = windows.where(wearers=watch.TRAIN_WEARERS, wrist="right")
        train_and_build(story, version=1, parts=(("one-wrist-of-wearers-1-to-7", "train", one_wrist),))

    with story.act("2  Eight watches enrol, and version 1 reaches them in two waves"):
        story.fleet.enrol_all()
        for one in WATCHES:
            story.fleet.start(one, broker=f"mqtt://127.0.0.1:{story.relay.port}" if one in CUT_OFF else "")
        story.until("eight devices online", lambda: sum(each["online"] for each in story.client.devices()) == 8)
        story.say("eight agents are online: four on ONNX Runtime, four on LiteRT")
        story.fleet.follow()
        release(story, version=1, waves=(("first", every(one.name for one in FIRST_WAVE)), ("rest", "rest")))

    with story.act("3  Each watch gets to know its wearer"):
        grown(story, WATCHES, count=COMMISSIONING + 2, since={})
        story.say(f"every device has counted its {COMMISSIONING} commissioning windows, and two more")

    with story.act("4  Three watches lose the network, and go on"):
        lose_and_regain_the_network(story)

    with story.act("5  One watch moves to the other wrist"):
        story.false_alarms_before = len(story.client.drift()["findings"])
        story.moved |= move(story, (MOVES_FIRST,), wrist="left")
        flag = story.until("a local flag", lambda: findings(story, "local"))[0]
        story.local = flag
        story.say(f"{flag['device']} is flagged, and nothing else happens")
        grown(story, (MOVES_FIRST,), count=2, since={MOVES_FIRST.name: flag["event_time"]})
        story.say(f"two windows later: {len(story.client.drift()['findings'])} finding in all")

    with story.act("6  All of them move: the world has changed"):
        others = tuple(one for one in WATCHES if one is not MOVES_FIRST)
        story.moved |= move(story, others, wrist="left")
        story.world = story.until("a changed world", lambda: findings(story, "world"))[0]
        story.say("the fleet says that the world has changed")
        since = {name: moment.by for name, moment in story.moved.items()}
        grown(story, WATCHES, count=3, since=since)

    with story.act("7  The operator adds the other wrist, and a few labels from each device; version 2 is gated"):
        other_wrist = windows.where(wearers=watch.TRAIN_WEARERS, wrist="left")
        labelled = tuple(
            (
                f"labelled-on-{one.name}",
                "gate",
                watch.few_of_each(windows, wearers=(one.wearer,), wrist="left", count=12, seed=one.number),
            )
            for one in WATCHES
        )
        train_and_build(story, version=2, parts=(("other-wrist-of-wearers-1-to-7", "train", other_wrist), *labelled))

    with story.act("8  Version 2: two canaries first, then all"):
        release(story, version=2, waves=(("canary", every(one.name for one in CANARIES)), ("all", "rest")))

    with story.act("9  Accuracy is back, on the other wrist and on the first"):
        grown(story, WATCHES, count=6, since=story.fleet.event_clocks(WATCHES))
        story.say("six windows of every device under version 2, on the other wrist")
        story.moved_back = move(story, WATCHES, wrist="right")
        since = {name: moment.by for name, moment in story.moved_back.items()}
        grown(story, WATCHES, count=4, since=since)
        story.say(
            "and four on the first wrist again, which the fleet notices too: its inputs moved, its accuracy did not"
        )
    story.fleet.end()


def lose_and_regain_the_network(story: Story) -> None:
    """Cut three agents off at the relay, let them fill their buffers, and wait until all of it is home."""
    story.mark("three cut off")
    story.relay.cut()
    story.until("three devices offline", lambda: sum(not each["online"] for each in story.client.devices()) == 3)
    story.say(f"{', '.join(one.name for one in CUT_OFF)} are offline; they go on inferring")

    def filled() -> dict[str, int] | None:
        depths = {one.name: sum(story.fleet.status(one)["outbox"].values()) for one in CUT_OFF}
        for name, depth in depths.items():
            story.fleet.note_depth(name, depth)
        return depths if all(depth >= 6 for depth in depths.values()) else None

    story.offline = story.until("six windows in each buffer", filled)
    story.say(f"{sum(story.offline.values())} windows wait in their buffers")
    story.mark("back")
    story.relay.restore()

    def home() -> bool:
        rows = [each for each in story.client.devices() if each["name"] in story.offline]
        return all(each["online"] and each["reported"]["outbox_depth"] <= 1 for each in rows)

    story.until("empty buffers", home)
    story.say("they are back, and their buffers are empty")
