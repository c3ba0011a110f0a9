"""The demo's eight watches: who wears them, what they run on, and what they have reported so far."""

import json
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo import watch
from demo.programs import Programs
from skerry.client import Client
from skerry.errors import SkerryError, Unavailable

PROFILES = ("x86-64-gateway", "arm64-board")
WINDOW_ROWS = 100
EVENT_STEP_S = 864  # a hundred inferences are a day on the event clock
RATE = 120  # inferences in a real second


@dataclass(frozen=True, slots=True)
class Watch:
    """One device of the demo; `number` is its seed as well."""

    name: str
    number: int
    wearer: int
    profile: str


WATCHES = tuple(
    Watch(
        name=f"watch-{number:02}",
        number=number,
        wearer=watch.FLEET_WEARERS[(number - 1) % len(watch.FLEET_WEARERS)],
        profile=PROFILES[(number - 1) // 4],
    )
    for number in range(1, 9)
)


@dataclass(slots=True)
class Series:
    """What was seen over time, for the charts; `buffer` in real seconds, `evidence` on the event clock."""

    buffer: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    evidence: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


class Fleet:
    """Start the agents, move their watches, and follow what they report."""

    def __init__(self, programs: Programs, client: Client, folder: Path, windows: watch.Windows) -> None:
        self.programs = programs
        self.client = client
        self.series = Series()
        self._folder = folder
        self._windows = windows
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="follow", daemon=True)

    def enrol(self, one: Watch) -> None:
        """Invite one device and let its agent claim the invitation."""
        join = self.client.invite(profile=one.profile, name=one.name)["join"]
        state = str(self.state(one))
        self.programs.run("skerry-agent", "init", join, "--profile", one.profile, "--state", state, "--simulate")
        # twelve devices need not spread their return over as many seconds as a thousand
        (self.state(one) / "config.toml").write_text("reconnect_s = 1.0\n")

    def enrol_all(self) -> None:
        """Enrol all devices, two at a time."""
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(self.enrol, WATCHES))

    def start(self, one: Watch, *, broker: str = "") -> None:
        """Start the agent of a device on the recording of its wearer; `broker` is another way to the broker."""
        self.wear(one, wrist="right")
        self.programs.start(
            one.name,
            "skerry-agent",
            "run",
            *("--state", str(self.state(one))),
            *("--replay", str(self._recording(one))),
            *("--seed", str(one.number)),
            *("--rate", str(RATE)),
            *("--event-step", str(EVENT_STEP_S)),
            *("--window-rows", str(WINDOW_ROWS)),
            *(("--broker", broker) if broker else ()),
        )

    def wear(self, one: Watch, *, wrist: str) -> None:
        """Put the watch on a wrist: the agent goes on with that recording of the same wearer."""
        rows = self._windows.where(wearers=(one.wearer,), wrist=wrist)
        watch.write(self._recording(one), self._windows, rows)

    def state(self, one: Watch) -> Path:
        """Return the state folder of a device's agent."""
        return self._folder / one.name / "state"

    def status(self, one: Watch) -> dict[str, Any]:
        """Return what the agent says of itself on its own machine, also when it is cut off."""
        state = str(self.state(one))
        answer: dict[str, Any] = json.loads(self.programs.run("skerry-agent", "status", "--state", state, "--json"))
        return answer

    def event_clocks(self, watches: tuple[Watch, ...]) -> dict[str, float]:
        """Return the devices' event clocks as they last saved them, at most half a window ago."""
        with ThreadPoolExecutor(2) as pool:
            states = pool.map(self.status, watches)
        return {one.name: state["event_clock"] for one, state in zip(watches, states, strict=True)}

    def follow(self) -> None:
        """Begin to sample buffer depth and evidence once a second."""
        self._follower.start()

    def end(self) -> None:
        """Stop sampling."""
        self._ended.set()
        if self._follower.is_alive():
            self._follower.join(10)

    def note_depth(self, name: str, depth: float, *, at: float | None = None) -> None:
        """Add a point to the chart of buffer depths; `at` is seconds since the fleet was made, now by default."""
        moment = time.monotonic() - self._began if at is None else at
        self.series.buffer.setdefault(name, []).append((moment, depth))

    def windows(self) -> list[dict[str, Any]]:
        """Return every merged window of every device."""
        return list(self.client.windows())

    def _recording(self, one: Watch) -> Path:
        return self._folder / one.name / "recording.npz"

    def _follow(self) -> None:
        while not self._ended.wait(1.0):
            try:
                devices, drift = self.client.devices(), self.client.drift()
            except SkerryError:
                continue  # a sample is missing from a chart: the story itself notices a lost server
            now = time.monotonic() - self._began
            for device in devices:
                # the last word of a device that is cut off is not its depth now: `note_depth` has that from the device
                if device["online"]:
                    self.note_depth(device["name"], device["reported"].get("outbox_depth", 0), at=now)
            times = {device["name"]: device["reported"].get("event_time", 0.0) for device in devices}
            for each in drift["devices"]:
                point = (times.get(each["device"], 0.0), each["log_e"] / math.log(10))
                self.series.evidence.setdefault(each["device"], []).append(point)


def until(what: str, check: Callable[[], Any], *, timeout_s: float, programs: Programs, every_s: float = 0.3) -> Any:
    """Wait until `check` returns something true and return it; raises `Unavailable` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        programs.check_running()
        if answer := check():
            return answer
        time.sleep(every_s)
    raise Unavailable(f"expected {what} within {timeout_s:g} s, got none; see the logs in {programs.logs}")
