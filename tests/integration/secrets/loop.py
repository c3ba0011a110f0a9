"""The product's whole loop on a Mosquitto with identities, run once and watched.

Every program is told to say as much as it can. A thread looks at the arguments and the environment of all that were
started, as any process list would, until the end.
"""

import getpass
import os
import secrets
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from demo.__main__ import free_ports
from demo.fleet import until
from demo.programs import Programs
from skerry.client import Client
from tests.integration.fleet.conftest import recordings

PROFILE = "x86-64-gateway"
RECIPE = "hidden = [8]\nmax_iter = 60\nvalidation_groups = [4, 5]\n"
MARK = "SKERRY_TESTS_LOOP"
PASSPHRASE = "SKERRY_KEY_PASSPHRASE"


@dataclass
class Seen:
    """What a process list showed of one process."""

    arguments: bytes
    environment: dict[bytes, bytes]


@dataclass
class Loop:
    """The folders of a run, and what became known of it."""

    root: Path
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    passphrase: str = field(default_factory=lambda: secrets.token_hex(16))
    join: str = ""
    deployment: dict[str, Any] = field(default_factory=dict)
    revoked: dict[str, Any] = field(default_factory=dict)
    offline_after: bool = False
    processes: dict[bytes, Seen] = field(default_factory=dict)
    _ended: threading.Event = field(default_factory=threading.Event)

    @property
    def home(self) -> Path:
        """The server's."""
        return self.root / "server"

    @property
    def broker(self) -> Path:
        """What `skerry broker config` wrote."""
        return self.root / "broker"

    @property
    def state(self) -> Path:
        """The device's."""
        return self.root / "device"

    @property
    def offline_keys(self) -> Path:
        """The holders' folder."""
        return self.root / "keys"

    @property
    def logs(self) -> Path:
        """What the programs that stay said."""
        return self.root / "logs"

    def __enter__(self) -> Self:
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watcher.join()

    def _watch(self) -> None:
        wanted, ours = f"{MARK}={self.mark}".encode(), Path("/proc/self/cmdline").read_bytes()
        while not self._ended.wait(0.02):
            for folder in Path("/proc").iterdir():
                if not folder.name.isdigit():
                    continue
                try:
                    environment = (folder / "environ").read_bytes()
                    arguments = (folder / "cmdline").read_bytes()
                except OSError:
                    continue
                # a process that has just been forked still shows what we are
                if wanted in environment and arguments not in (b"", ours):
                    pairs = dict(each.partition(b"=")[::2] for each in environment.split(b"\0") if each)
                    self.processes[folder.name.encode() + arguments] = Seen(arguments, pairs)


def run_loop(loop: Loop) -> None:
    """Found, train, release, enrol, update, revoke; everything on this machine, over identities."""
    port, pages, mqtt, devices, control = free_ports(5)
    os.environ[MARK] = loop.mark
    program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
    with Programs(home=loop.home, logs=loop.logs) as programs:
        ports = ("--port", str(port), "--pages-port", str(pages), "--broker-port", str(mqtt))
        programs.run("skerry-server", "init", "--home", str(loop.home), "--project", "watch", *ports)
        listen = ("--listen", f"127.0.0.1:{devices}", "--control", f"127.0.0.1:{control}")
        programs.skerry(
            *("broker", "config", "mosquitto", "--out", str(loop.broker), "--user", getpass.getuser()), *listen
        )
        with (
            (loop.logs / "mosquitto.log").open("wb") as log,
            subprocess.Popen([program, "-v", "-c", str(loop.broker / "mosquitto.conf")], stderr=log) as mosquitto,
        ):
            try:
                _live(loop, programs, f"http://127.0.0.1:{pages}")
            finally:
                programs.stop(*reversed(list(programs._running)))
                mosquitto.terminate()


def _live(loop: Loop, programs: Programs, pages: str) -> None:
    programs.start("server", "skerry-server", "--verbose", "run", "--home", str(loop.home))
    token = (loop.home / "operator.token").read_text().strip()
    with Client(pages, token) as client:
        until("the server", lambda: _connected(client), timeout_s=40, programs=programs)
        os.environ[PASSPHRASE] = loop.passphrase
        try:
            programs.skerry("keys", "init", "--out", str(loop.offline_keys), "--keys", "1", "--threshold", "1")
            _release(loop, programs)
        finally:
            del os.environ[PASSPHRASE]
        _enrol(loop, programs)
        replay = ("--replay", str(loop.root / "worn.npz"), "--rate", "100", "--event-step", "60", "--window-rows", "25")
        programs.start("agent", "skerry-agent", "run", "-v", "--state", str(loop.state), *replay)
        rollout = programs.skerry("rollout", "create", "moves-1", "--wave=all=rest")["id"]
        done = programs.skerry("rollout", "wait", str(rollout), "--timeout", "60")
        (loop.deployment,) = done["deployments"]
        until("a window", lambda: list(client.windows()), timeout_s=40, programs=programs)

        loop.revoked = programs.skerry("device", "revoke", "wearer")
        said = loop.logs / "agent.log"
        until("the agent to be shut out", lambda: "trying again" in said.read_text(), timeout_s=20, programs=programs)
        loop.offline_after = not client.device("wearer")["online"]


def _connected(client: Client) -> bool:
    try:
        return bool(client.health()["broker"]["connected"])
    except Exception:  # noqa: BLE001 -- it is starting
        return False


def _release(loop: Loop, programs: Programs) -> None:
    (loop.root / "data.npz").write_bytes(recordings(groups=6, rows=60, seed=1))
    (loop.root / "worn.npz").write_bytes(recordings(groups=2, rows=60, seed=2))
    (loop.root / "recipe.toml").write_text(RECIPE)
    programs.skerry("data", "add", "moves", str(loop.root / "data.npz"))
    programs.skerry("model", "train", "moves", "--data", "moves", "--recipe", str(loop.root / "recipe.toml"))
    programs.skerry("model", "compile", "moves", "1", f"--profile={PROFILE}")
    programs.skerry("release", "create", "moves", "1")
    programs.skerry("release", "sign", "moves-1", "--keys", str(loop.offline_keys))


def _enrol(loop: Loop, programs: Programs) -> None:
    """Invite and claim; the join string goes from one to the other by stdin."""
    loop.join = programs.skerry("device", "invite", "--profile", PROFILE, "--name", "wearer")["join"]
    agent = str(Path(sys.executable).parent / "skerry-agent")
    command = [agent, "init", "-", "--profile", PROFILE, "--state", str(loop.state), "-v"]
    done = subprocess.run(command, input=loop.join + "\n", capture_output=True, text=True, timeout=60, check=False)
    (loop.logs / "init.log").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stderr
