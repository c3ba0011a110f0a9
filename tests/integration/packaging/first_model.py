"""A first model on a packaged agent: a control plane with Mosquitto, an enrolment, a rollout, a commit."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo import watch
from demo.__main__ import found_control_plane
from demo.programs import Programs
from tests.conftest import Mosquitto
from tests.integration.packaging.conftest import Machine

PROGRAM = "/usr/bin/skerry-agent"
STATE = "/var/lib/skerry-agent"


def lacks_an_enrolment(board: Machine) -> None:
    """Expect a program that starts, and a doctor who says what an empty state folder lacks."""
    assert board.run(PROGRAM, "--version").stdout.startswith("skerry-agent 0.")
    told = board.run(PROGRAM, "doctor", "--state", STATE, check=False)
    assert told.returncode == 2, told.stderr
    assert "run skerry-agent init first" in told.stdout


@contextmanager
def committed(
    board: Machine, mosquitto: Mosquitto, folder: Path, *, profile: str, start: tuple[str, ...], config: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """Enrol the machine, let `start` (an agent's `run`) commit a first model, and yield while it goes on running."""
    with Programs(home=folder / "server", logs=folder / "logs") as programs:
        found_control_plane(programs, folder / "keys", broker_url=mosquitto.url)
        windows = watch.load()
        watch.write(folder / "data.npz", windows, windows.where(wearers=watch.TRAIN_WEARERS, wrist="right"))
        watch.write(board.root / "tmp/worn.npz", windows, windows.where(wearers=(8,), wrist="right"))
        (board.root / "tmp/worn.npz").chmod(0o644)
        programs.skerry("data", "add", "watch", str(folder / "data.npz"))
        recipe = Path(watch.__file__).with_name("recipe.toml")
        programs.skerry("model", "train", "watch", "--data", "watch", "--recipe", str(recipe))
        programs.skerry("model", "compile", "watch", "1", f"--profile={profile}")
        programs.skerry("release", "create", "watch", "1")
        programs.skerry("release", "sign", "watch-1", "--keys", str(folder / "keys"))

        join = programs.skerry("device", "invite", "--profile", profile, "--name", "board")["join"]
        told = board.run(PROGRAM, "init", join, "--profile", profile, "--state", STATE)
        assert told.stdout.startswith("enrolled as ")
        (board.root / STATE[1:] / "config.toml").write_text(config)
        run = (*start, "--replay", "/tmp/worn.npz", "--rate", "20", "--event-step", "60")
        with (folder / "agent.log").open("wb") as log:
            agent = subprocess.Popen([*board.enter, *run], stderr=log, stdout=log)
        try:
            rollout = programs.skerry("rollout", "create", "watch-1", "--wave=all=rest")["id"]
            wait = ("--home", str(programs.home), "--json", "rollout", "wait", str(rollout), "--timeout", "300")
            done = json.loads(programs.run("skerry", *wait, timeout_s=320))
            # one of two: where the board measures both builds, the one that it found faster follows as a second
            assert {(each["device"], each["state"]) for each in done["deployments"]} == {("board", "committed")}
            yield agent
        finally:
            agent.terminate()
            try:
                agent.wait(60)
            finally:
                agent.kill()
                print((folder / "agent.log").read_text()[-4000:])


def is_well(board: Machine) -> None:
    """Expect a doctor who looks while the agent runs to find it and its model."""
    told = board.run(PROGRAM, "doctor", "--state", STATE, check=False)
    assert "ok    model" in told.stdout, told.stdout
    assert "the agent runs and answers on" in told.stdout
