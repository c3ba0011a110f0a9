"""Several models on one device, and the agent itself, by the real programs on Mosquitto: from releases to windows."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demo.__main__ import found_control_plane
from demo.fleet import until
from demo.programs import Programs
from skerry.client import Client
from skerry.errors import Rejected
from tests.conftest import Mosquitto
from tests.integration.serving.clients import UnixConnection
from tests.integration.trust.products import PROFILE, train
from tests.wheels import build_skerry

pytestmark = [pytest.mark.long, pytest.mark.broker, pytest.mark.timeout(600)]
GULL = "gull-1"
BESIDE = ("lamps", "doors")
MODELS = ("strokes", *BESIDE)
# ends by a signal before the agent can say a word, but only as the agent: its version and its self-check are fine
CRASHES = "import os, sys\nif 'run' in sys.argv:\n    os.kill(os.getpid(), 11)\n"


@dataclass
class Asker(threading.Thread):
    """A program on the device that asks one model for ever: `answers` by manifest, and what was no answer."""

    socket: Path
    model: str
    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self._stop_asking = threading.Event()
        window = np.random.default_rng(len(self.model)).normal(size=(1, 100, 6)).astype(np.float32)
        tensor = {"name": "window", "shape": [1, 100, 6], "datatype": "FP32", "data": window.ravel().tolist()}
        self._body = json.dumps({"inputs": [tensor]})

    def __hash__(self) -> int:
        return id(self)

    def ask(self) -> tuple[int, str]:
        """Ask once; return the status and the manifest that made the answer."""
        connection = UnixConnection(self.socket)
        try:
            connection.request("POST", f"/v2/models/{self.model}/infer", body=self._body)
            answer = connection.getresponse()
            answer.read()
            return answer.status, answer.headers.get("Skerry-Manifest", "")
        finally:
            connection.close()

    def run(self) -> None:
        """Ask, ten times a second, until told to stop."""
        while not self._stop_asking.wait(0.1):
            try:
                status, manifest = self.ask()
            except OSError as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                continue
            if status == 200:
                self.answers[manifest] += 1
            else:
                self.failures.append(f"status {status}")

    def stop(self) -> None:
        """Ask no more."""
        self._stop_asking.set()
        self.join(20)


@dataclass
class World:
    """A control plane on Mosquitto, and one device that is enrolled and runs."""

    programs: Programs
    client: Client
    folder: Path
    askers: dict[str, Asker] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        """The state folder of the device."""
        return self.folder / GULL

    def train(self, model: str, version: int, **options: Any) -> str:
        """Make a version of a model as training would have; return its manifest's SHA-256."""
        return train(self.programs.home, self.folder, model=model, version=version, **options)[1]

    def release(self, model: str, version: int) -> None:
        """Release a version, and sign it with the offline keys."""
        self.programs.skerry("release", "create", model, str(version))
        signed = self.programs.skerry("release", "sign", f"{model}-{version}", "--keys", str(self.folder / "keys"))
        assert signed["state"] == "live"

    def roll_out(self, release: str, *, timeout_s: float = 120.0) -> dict[str, Any]:
        """Roll a release out to the device; return the deployment as it ended."""
        number = self.programs.skerry("rollout", "create", release, f"--wave=all={GULL}")["id"]

        def ended() -> dict[str, Any] | None:
            (found,) = self.client.rollout(number)["deployments"]
            return found if found["state"] in ("committed", "failed", "left-out") else None

        done: dict[str, Any] = until(f"the end of {release}", ended, timeout_s=timeout_s, programs=self.programs)
        return done

    def start(self, *arguments: str) -> None:
        """Start the agent."""
        self.programs.start("agent", "skerry-agent", "run", "--state", str(self.state), *arguments)

    def ask(self, model: str) -> None:
        """Let a program ask a model from now on."""
        self.askers[model] = Asker(self.state / "serve.sock", model)
        self.askers[model].start()

    def device(self) -> dict[str, Any]:
        """Return what the control plane knows of the device."""
        return self.client.device(GULL)

    def component(self, name: str) -> dict[str, Any]:
        """Return what the control plane knows of one component."""
        return next((each for each in self.device()["components"] if each["name"] == name), {})

    def until(self, what: str, check: Any, *, timeout_s: float = 30.0) -> Any:
        """Wait for something true."""
        return until(what, check, timeout_s=timeout_s, programs=self.programs)


@pytest.fixture
def world(mosquitto: Mosquitto, tmp_path: Path) -> Iterator[World]:
    """Found a control plane, enrol a device, and end all that was started afterwards."""
    home = tmp_path / "server"
    with Programs(home=home, logs=tmp_path / "logs") as programs:
        _, pages = found_control_plane(programs, tmp_path / "keys", broker_url=mosquitto.url)
        join = programs.skerry("device", "invite", "--profile", PROFILE, "--name", GULL)["join"]
        state = str(tmp_path / GULL)
        programs.run("skerry-agent", "init", join, "--profile", PROFILE, "--state", state, "--simulate")
        config = "window_rows = 25\nreconnect_s = 1.0\nreport_every_s = 0.5\nretry_s = 0.5\n"
        (tmp_path / GULL / "config.toml").write_text(config)
        with Client(pages, (home / "operator.token").read_text().strip()) as client:
            world = World(programs, client, tmp_path)
            yield world
            for asker in world.askers.values():
                asker.stop()


def test_models_beside_each_other_are_rolled_out_rolled_back_heard_and_dropped_each_by_itself(world: World) -> None:
    made = {model: world.train(model, 1 + number) for number, model in enumerate(MODELS)}
    released = {model: f"{model}-{1 + number}" for number, model in enumerate(MODELS)}
    world.start()
    world.until("a report", lambda: world.device()["online"])
    for model in BESIDE:
        world.programs.skerry("device", "component", "add", GULL, model)

    # each is released, signed, rolled out, tried on what programs ask of it, and committed
    for number, model in enumerate(MODELS):
        world.release(model, 1 + number)
        world.ask(model)
        ended = world.roll_out(released[model])
        assert (ended["state"], ended["component"]) == ("committed", "" if model == "strokes" else model), ended
    for asker in world.askers.values():
        assert asker.ask() == (200, made[asker.model])
        # the face has no model of that name before the trial
        asker.failures.clear()
    for model in BESIDE:
        world.until(f"a report of {model}", lambda model=model: world.component(model)["manifest"] == made[model])
    assert world.device()["reported"]["manifest"] == made["strokes"]

    # a bad version of one is tried and rolled back, and no program notices more than another manifest
    bad = world.train("lamps", 7, latency_budget_ms=1e-6)
    world.release("lamps", 7)
    ended = world.roll_out("lamps-7")
    assert (ended["state"], ended["component"]) == ("failed", "lamps")
    assert "expected a median latency within 1e-06 ms" in ended["reason"]
    world.until("lamps as before", lambda: world.component("lamps")["manifest"] == made["lamps"])
    assert world.component("lamps")["reported"]["runs"] == "up"
    said = world.device()["reported"]
    assert (said["state"], said["health"]) == ("committed", "degraded")
    assert said["reasons"][0].startswith("lamps: expected a median latency")
    assert {asker.model: asker.failures for asker in world.askers.values()} == {model: [] for model in MODELS}
    assert set(world.askers["strokes"].answers) == {made["strokes"]}
    assert set(world.askers["lamps"].answers) == {made["lamps"], bad}
    assert world.askers["lamps"].ask() == (200, made["lamps"])

    # one is restarted from afar, and the device tests all of them
    ask = ("device", "request", GULL)
    done = world.programs.skerry(*ask, "restart-model", "--arg", "component=lamps", "--wait", "60")
    assert done["result"]["runs"] == released["lamps"]
    done = world.programs.skerry(*ask, "self-test", "--wait", "60")
    replayed = {each["check"]: each["detail"] for each in done["result"]["checks"]}["golden"]
    assert [f"{model}: " in replayed for model in MODELS] == [False, True, True]
    with pytest.raises(Rejected, match=r"expected one of its components \(doors, lamps\), got 'gates'"):
        world.programs.skerry(*ask, "restart-model", "--arg", "component=gates")
    assert {asker.model: asker.failures for asker in world.askers.values()} == {model: [] for model in MODELS}

    # the device says the same on its own machine
    status = world.programs.run("skerry-agent", "status", "--state", str(world.state))
    assert f"lamps  {released['lamps']}, failed: expected a median latency" in status
    assert f"doors  {released['doors']}, committed" in status

    # windows of all of them, each under the version that made it; and the evidence of each is kept apart
    windows = world.until("three windows of each", lambda: _windows(world, least=3))
    assert {(each["model"], each["version"], each["manifest"]) for each in windows} <= {
        *((model, 1 + number, made[model][:16]) for number, model in enumerate(MODELS)),
        ("lamps", 7, bad[:16]),
    }
    world.until(
        "evidence of each model",
        lambda: {each["model"] for each in world.client.drift()["devices"]} == set(MODELS),
    )

    # one is taken away: it ends alone
    world.askers.pop("doors").stop()
    world.programs.skerry("device", "component", "remove", GULL, "doors")
    world.until("the end of doors", lambda: not (world.state / "components" / "doors").exists())
    assert Asker(world.state / "serve.sock", "doors").ask()[0] in (400, 404)
    assert {each["name"] for each in world.device()["components"]} == {"lamps"}
    before = {model: asker.answers.total() for model, asker in world.askers.items()}
    world.until(
        "answers of the others",
        lambda: all(asker.answers.total() > before[model] + 5 for model, asker in world.askers.items()),
    )
    assert {asker.model: asker.failures for asker in world.askers.values()} == {"strokes": [], "lamps": []}
    world.until(
        "no evidence of doors",
        lambda: {each["model"] for each in world.client.drift()["devices"]} == {"strokes", "lamps"},
    )
    with pytest.raises(Rejected, match="expected one of the components that were added, got 'doors'"):
        world.programs.skerry("device", "component", "remove", GULL, "doors")


def test_versions_of_the_agent_are_rolled_out_as_models_are_and_a_broken_one_rolls_itself_back(world: World) -> None:
    made = world.train("strokes", 1)
    world.start()
    world.release("strokes", 1)
    world.ask("strokes")
    assert world.roll_out("strokes-1")["state"] == "committed"
    for number, (version, changes) in enumerate({"0.7.0": {}, "0.8.0": {"agent/telling/twin.py": CRASHES}}.items()):
        wheel = build_skerry(world.folder, version, changes=changes)
        added = world.programs.skerry("agent", "add", str(wheel), "--profile", PROFILE)
        assert added["version"] == number + 1
        world.release("agent", number + 1)

    good = world.roll_out("agent-1")

    assert (good["state"], good["component"]) == ("committed", "agent"), good
    world.until("a report of the new version", lambda: world.device()["reported"]["agent"] == "0.7.0")
    world.until("a report of the component", lambda: world.component("agent")["reported"]["release"] == "agent-1")

    # it is tried where it reaches the server, and no stick does
    stick = ("--device", GULL, "--release", "agent-2", "--out", str(world.folder / "stick.zip"))
    with pytest.raises(Rejected, match="expected a release of a model, got one of the agent"):
        world.programs.skerry("bundle", "create", *stick)

    broken = world.roll_out("agent-2")

    assert broken["state"] == "failed"
    assert "3 ends before it was well, the last by SIGSEGV" in broken["reason"]
    world.until("the version before", lambda: world.device()["online"])
    assert world.device()["reported"]["agent"] == "0.7.0"
    assert world.component("agent")["reported"]["release"] == "agent-1"
    # what it is there for went on
    assert world.until("an answer", lambda: _answers(world)) == (200, made)
    heard = len(list(world.client.windows()))
    world.until("a window of the version before", lambda: len(list(world.client.windows())) > heard)
    numbers = sorted(each["number"] for each in world.client.windows())
    assert numbers == list(range(len(numbers)))


def _windows(world: World, *, least: int) -> list[dict[str, Any]] | None:
    """Return the windows of the device once there are enough of each model."""
    found = list(world.client.windows())
    count = Counter(each["model"] for each in found)
    return found if all(count[model] >= least for model in MODELS) else None


def _answers(world: World) -> tuple[int, str] | None:
    try:
        return world.askers["strokes"].ask()
    except OSError:
        return None
