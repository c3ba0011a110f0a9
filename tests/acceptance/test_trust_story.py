"""The whole of trust, by the programs alone: three holders, a Mosquitto that knows who is who, two devices, and every
key changed while they run.

One story, for its parts are tested by themselves elsewhere; what is tested here is that they hold together.
"""

import getpass
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from control_plane.plane import utc_now
from demo.__main__ import free_ports
from demo.fleet import until
from demo.programs import Programs
from skerry.client import Client
from skerry.errors import SkerryError
from skerry.wire.topics import ROOT
from tests.integration.broker.peers import Peer, papers, tls
from tests.integration.fleet.conftest import recordings

pytestmark = [pytest.mark.broker, pytest.mark.long, pytest.mark.timeout(400)]
PROFILE = "x86-64-gateway"
RECIPE = "hidden = [8]\nmax_iter = {}\nvalidation_groups = [4, 5]\n"
CERTIFICATE_LIFE_S = 40
MET_BY_TWO_OF_THREE = 2


@dataclass
class Story:
    """The programs and the folders of a run."""

    root: Path
    programs: Programs
    client: Client
    devices_port: int

    @property
    def holders(self) -> list[Path]:
        """The folders of three people, each with one key of each offline role."""
        return [self.root / name for name in ("ann", "ben", "cleo")]

    @property
    def two(self) -> list[str]:
        """What says on the command line that two of the holders sign at once."""
        return [f"--keys={folder}" for folder in self.holders[1:]]

    def skerry(self, *arguments: str) -> Any:
        """Run the operators' command line."""
        return self.programs.skerry(*arguments)

    def start_server(self) -> None:
        """Start the server; returns when it answers and has its broker."""
        self.programs.start("server", "skerry-server", "run", "--home", str(self.programs.home))
        self.until("the server", lambda: is_connected(self.client))

    def start_agent(self, device: str) -> None:
        """Start the agent of a device on the recording."""
        replay = ("--replay", str(self.root / "worn.npz"), "--rate", "100", "--window-rows", "25")
        self.programs.start(device, "skerry-agent", "run", "--state", str(self.root / device), *replay)

    def sign_by_file(self, noun: str, hand_in: str, file: Path) -> None:
        """Carry a file from holder to holder, as between machines without a network, and hand it in."""
        for folder in self.holders[:MET_BY_TWO_OF_THREE]:
            self.skerry(noun, "sign", str(file), "--keys", str(folder))
        self.skerry(noun, hand_in, str(file))

    def approve(self, release: str) -> str:
        """Have what waits of a release signed by two of the three; return the state that it has then."""
        file = self.root / f"{release}.json"
        self.skerry("release", "export", release, "--out", str(file))
        self.sign_by_file("release", "import", file)
        return str(self.client.release(release)["state"])

    def roll_out(self, release: str) -> dict[str, str]:
        """Bring a release to the fleet; return the state of each deployment by device."""
        rollout = self.client.create_rollout(release, [{"name": "all", "rest": True}])["id"]
        self.until(f"the end of the rollout of {release}", lambda: self.client.rollout(rollout)["state"] != "running")
        return {each["device"]: each["state"] for each in self.client.rollout(rollout)["deployments"]}

    def until(self, what: str, check: Callable[[], Any], timeout_s: float = 60) -> Any:
        """Wait for something; raises when it, or a program, does not stay up."""
        return until(what, check, timeout_s=timeout_s, programs=self.programs, every_s=0.1)

    def both_trust(self, repository: str, version: int) -> bool:
        """Say whether both devices have verified that root of a repository."""
        files = [self.root / device / "trust" / repository / "root.json" for device in ("porch", "attic")]
        return {json.loads(file.read_text())["signed"]["version"] for file in files} == {version}

    def is_online(self, device: str) -> bool:
        """Say whether the broker has the device."""
        return bool(self.client.device(device)["online"])

    def runs(self, device: str, release: str) -> bool:
        """Say whether the device reports that it has committed a release."""
        told = self.client.device(device)
        reported = told["reported"]
        return bool(told["online"]) and (reported["release"], reported["state"]) == (release, "committed")

    def all_run(self, release: str) -> bool:
        """Say whether both devices do."""
        return all(self.runs(device, release) for device in ("porch", "attic"))

    def certificate(self, device: str) -> x509.Certificate:
        """Return the certificate that the device has now."""
        return x509.load_pem_x509_certificate((self.root / device / "device.crt").read_bytes())

    def retained_chunks(self) -> set[str]:
        """Return the topics of the chunks that the broker retains, as any other device of the project sees them."""
        home = self.programs.home
        shown = papers(home / "ca", "watch.witness", self.root / "witness")
        peer = Peer(self.devices_port, context=tls(home / "ca" / "server-ca.pem", shown))
        try:
            # in this order: when the index is there, so is all that was retained before it
            peer.subscribe(f"{ROOT}/blob/#")
            peer.subscribe(f"{ROOT}/tuf/watch/index")
            self.until("the index", lambda: any(topic.endswith("/index") for topic, _ in peer.heard))
            return {topic for topic, _ in peer.heard if "/blob/" in topic}
        finally:
            peer.close()


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    """Found a control plane whose certificates are short-lived, behind a Mosquitto that it has configured."""
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if program is None:
        pytest.skip("expected mosquitto, got none: apt-get install mosquitto")
    port, pages, mqtt, devices, control = free_ports(5)
    home = tmp_path / "server"
    with Programs(home=home, logs=tmp_path / "logs") as programs:
        ports = ("--port", str(port), "--pages-port", str(pages), "--broker-port", str(mqtt))
        programs.run("skerry-server", "init", "--home", str(home), "--project", "watch", *ports)
        settings = home / "settings.toml"
        lines = [line for line in settings.read_text().splitlines() if not line.startswith("certificate_life_s")]
        settings.write_text("\n".join([*lines, f"certificate_life_s = {CERTIFICATE_LIFE_S}"]) + "\n")
        listen = ("--listen", f"127.0.0.1:{devices}", "--control", f"127.0.0.1:{control}")
        broker = tmp_path / "broker"
        programs.skerry("broker", "config", "mosquitto", "--out", str(broker), "--user", getpass.getuser(), *listen)
        with (
            mosquitto(program, broker / "mosquitto.conf", tmp_path / "mosquitto.log"),
            Client(f"http://127.0.0.1:{pages}", (home / "operator.token").read_text().strip()) as client,
        ):
            told = Story(tmp_path, programs, client, devices)
            told.start_server()
            try:
                yield told
            finally:
                # before the broker, so that each can say its last word
                programs.stop(*reversed(list(programs._running)))


@contextmanager
def mosquitto(program: str, config: Path, log: Path) -> Iterator[None]:
    """Run a broker while the body runs."""
    with log.open("wb") as file, subprocess.Popen([program, "-c", str(config)], stderr=file) as process:
        try:
            yield
        finally:
            process.terminate()


def is_connected(client: Client) -> bool:
    """Say whether the server is up, and its broker."""
    try:
        return bool(client.health()["broker"]["connected"])
    except SkerryError:
        return False


def test_a_fleet_lives_through_every_change_of_trust(story: Story) -> None:
    skerry, client = story.skerry, story.client
    skerry("keys", "init", *(f"--out={folder}" for folder in story.holders), "--keys", "3", "--threshold", "2")
    (story.root / "data.npz").write_bytes(recordings(groups=6, rows=60, seed=1))
    (story.root / "worn.npz").write_bytes(recordings(groups=2, rows=60, seed=2))
    skerry("data", "add", "moves", str(story.root / "data.npz"))
    for version in (1, 2, 3):
        (story.root / "recipe.toml").write_text(RECIPE.format(58 + version))
        skerry("model", "train", "moves", "--data", "moves", "--recipe", str(story.root / "recipe.toml"))
        skerry("model", "compile", "moves", str(version), f"--profile={PROFILE}")

    # two devices enrol, one in a group that takes nothing that was signed online alone
    skerry("group", "set", "wary", "--refuse-automatic")
    for device, group in (("porch", "default"), ("attic", "wary")):
        join = skerry("device", "invite", "--profile", PROFILE, "--name", device, "--group", group)["join"]
        state = str(story.root / device)
        story.programs.run("skerry-agent", "init", join, "--profile", PROFILE, "--state", state)
        story.start_agent(device)
    first = {device: story.certificate(device) for device in ("porch", "attic")}

    # a release that two of three holders signed reaches both, and so does the next one
    retained: list[set[str]] = []
    for release in ("moves-1", "moves-2"):
        skerry("release", "create", "moves", release[-1])
        assert story.approve(release) == "live"
        assert story.roll_out(release) == {"porch": "committed", "attic": "committed"}
        retained.append(story.retained_chunks())
    second = retained[1] - retained[0]
    assert second

    # the second is revoked: what it published goes from the broker, and both go back to the first
    skerry("release", "revoke", "moves-2")
    assert story.approve("moves-2") == "revoked"
    story.until("both to be back on the first", lambda: story.all_run("moves-1"))
    story.until("the broker to have lost the second", lambda: not story.retained_chunks() & second)

    # every key changes hands while the agents run: by file, then with the folders at once
    file = story.root / "timestamp.json"
    skerry("keys", "rotate", "timestamp", "--file", str(file))
    story.sign_by_file("keys", "submit", file)
    skerry("keys", "rotate", "director", *story.two)
    skerry("keys", "rotate", "snapshot", *story.two)
    new = [story.root / f"new-{folder.name}" for folder in story.holders]
    skerry("keys", "rotate", "root", *(f"--out={folder}" for folder in new), *story.two)
    for repository, version in (("director", 3), ("image", 4)):
        story.until("both to follow the new roots", partial(story.both_trust, repository, version))

    # the server and an agent end and start again, and nobody has lost anything
    story.programs.stop("server", "attic")
    story.start_server()
    story.start_agent("attic")
    story.until("both to be there again", lambda: story.all_run("moves-1"))

    # the old root keys are worth nothing now, and the holders lend the server a key of one model's own
    with pytest.raises(SkerryError, match="expected"):
        skerry("keys", "rotate", "timestamp", *story.two)
    skerry("keys", "grant", "moves", *story.two)
    skerry("model", "policy", "moves", "automatic")
    skerry("release", "create", "moves", "3")
    assert client.release("moves-3")["role"] == "automatic-moves"
    assert story.roll_out("moves-3") == {"porch": "committed"}
    assert story.runs("attic", "moves-1")

    # meanwhile their certificates have ended, and others have taken their place on the same TLS
    end = max(certificate.not_valid_after_utc for certificate in first.values())
    story.until("the first certificates to end", lambda: utc_now() > end, timeout_s=CERTIFICATE_LIFE_S)
    for device, before in first.items():
        story.until(f"{device} to be online", partial(story.is_online, device))
        assert story.certificate(device).serial_number != before.serial_number

    # one device is revoked, and its session ends
    assert "its session has ended" in skerry("device", "revoke", "porch")["done"]
    assert not client.device("porch")["online"]
    said = story.programs.logs / "porch.log"
    story.until("the agent to be shut out", lambda: "expected" in said.read_text().rsplit("connected to", 1)[1])
    assert not client.device("porch")["online"]

    # the other is told to wipe itself, and does
    skerry("device", "decommission", "attic")
    assert story.programs.wait_for("attic") == 0
    del story.programs._running["attic"]
    assert list((story.root / "attic").iterdir()) == []
    story.until("its farewell", lambda: client.device("attic")["state"] == "decommissioned")
