"""A site as `skerry broker config mosquitto --site` writes it, unmodified: TLS and identities on both brokers."""

import getpass
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from control_plane.cli.program import main
from skerry.wire import topics
from tests.conftest import pick_port, wait_for_port
from tests.integration.agent.shore import LABELS, PROJECT, Device, Shore, wait_for
from tests.integration.broker.conftest import Shop
from tests.integration.broker.peers import Peer, tls
from tests.recordings import write_recording
from tests.relay import Relay, Shape

pytestmark = [pytest.mark.broker, pytest.mark.long]
GATEWAY = "site-1"
DEVICES = ("watch-1", "watch-2")
Output = pytest.CaptureFixture[str]


@dataclass
class Site:
    """A gateway's folder, its uplink, and its broker's process."""

    shop: Shop
    folder: Path
    uplink: Relay
    port: int = field(default_factory=pick_port)
    process: subprocess.Popen[str] | None = None
    peers: list[Peer] = field(default_factory=list)

    @property
    def state(self) -> Path:
        """The state folder of the gateway's agent, as far as the bridge reads it."""
        return self.folder.parent / "gateway-state"

    def enrol(self) -> None:
        """Have the gateway certified, or certified anew."""
        self.state.mkdir(exist_ok=True)
        shown = self.shop.papers(GATEWAY)
        (self.state / "device.crt").write_bytes(shown.certificate.read_bytes())
        (self.state / "device.key").write_bytes(shown.key.read_bytes())

    def configure(self, *devices: str) -> None:
        """Have both ends configured by the CLI, and this server's broker take its files."""
        where = ["--out", str(self.folder), "--state", str(self.state), "--user", getpass.getuser()]
        addresses = ["--listen", f"127.0.0.1:{self.port}", "--bridge-to", f"127.0.0.1:{self.uplink.port}"]
        names = ["--site", GATEWAY, "--host", "127.0.0.1", "--devices", ",".join(devices)]
        arguments = ["broker", "config", "mosquitto", *names, *where, *addresses]
        assert main(["--home", str(self.shop.home.path), *arguments]) == 0
        # a reload would take the acl, but not the queue
        self.shop.stop()
        self.shop.start()

    def start(self) -> None:
        """Start Mosquitto with nothing but the file that was written."""
        command = [self.shop.program, "-c", str(self.folder / "mosquitto.conf")]
        with (self.folder.parent / "site.log").open("a") as log:
            self.process = subprocess.Popen(command, stderr=log, text=True)
        wait_for_port(self.port)

    def come(self, device: str) -> Peer:
        """Connect as a device does."""
        self.peers.append(Peer(self.port, context=tls(self.shop.server_ca, self.shop.papers(device))))
        return self.peers[-1]

    def close(self) -> None:
        """End all of it."""
        for peer in self.peers:
            peer.close()
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)
        self.uplink.close()


@pytest.fixture
def site(shop: Shop, tmp_path: Path) -> Iterator[Site]:
    """A site with two devices, bridged and running."""
    site = Site(shop, tmp_path / "site", Relay(shop.device_port))
    site.enrol()
    site.configure(*DEVICES)
    site.start()
    yield site
    site.close()


@pytest.fixture
def central(shop: Shop, tmp_path: Path) -> Iterator[Shore]:
    """The small control plane, at this server's broker."""
    shore = Shore(shop.control_port, tmp_path, user="control-plane", password=shop.password)
    yield shore
    shore.close()


@pytest.fixture
def devices(site: Site, central: Shore, tmp_path: Path) -> Iterator[list[Device]]:
    """Whole agents with certificates, behind the site; not started."""
    recording = write_recording(tmp_path / "recording.npz", LABELS)
    devices = []
    for name in DEVICES:
        device = Device(central, name, tmp_path / name, recording)
        shown = site.shop.papers(name)
        device.certify(shown.certificate, shown.key, broker_ca=site.shop.server_ca, public_key=shown.public_key)
        device.port = site.port
        devices.append(device)
    yield devices
    for device in devices:
        device.kill()


def sealed_bytes(shore: Shore) -> int:
    """Return the length of all that was sealed."""
    return sum(len(chunk) for chunks in shore.sealed_files.values() for chunk in chunks)


def test_whole_agents_behind_a_site_commit_and_the_uplink_carries_one_copy(
    site: Site, central: Shore, devices: list[Device]
) -> None:
    central.release(1, layers=4)
    for device in devices:
        device.start()

    ends = [central.ends(device.name, central.assign(device.name, 1)).state for device in devices]

    assert ends == ["committed", "committed"]
    assert sealed_bytes(central) > 3_000_000
    # beside the chunks: metadata, assignments, acknowledgements, and what TLS adds
    assert site.uplink.down_bytes < 1.03 * sealed_bytes(central) + 100_000
    wait_for(lambda: all(central.windows(each.name) for each in devices), why="windows of both")


def test_an_uplink_that_breaks_in_the_middle_costs_a_copy_and_no_deployment(
    site: Site, central: Shore, devices: list[Device]
) -> None:
    site.uplink.shape = Shape(rate_bytes_s=4_000_000)
    for device in devices:
        device.start()
    wait_for(lambda: all(each in central.reported for each in DEVICES), why="both to be heard")
    before = site.uplink.down_bytes
    central.release(1, layers=4)
    deployments = [central.assign(device.name, 1) for device in devices]
    wait_for(lambda: site.uplink.down_bytes > before + sealed_bytes(central) // 2, why="half of it")

    site.uplink.cut()
    site.enrol()  # its agent got the next certificate meanwhile
    for each in (GATEWAY, *DEVICES):
        central.reported.pop(each, None)
    site.uplink.mend()

    ends = [central.ends(device.name, each).state for device, each in zip(devices, deployments, strict=True)]
    assert ends == ["committed", "committed"]
    wait_for(lambda: all(each in central.reported for each in DEVICES), why="what they said meanwhile")
    assert site.uplink.down_bytes - before < 2.06 * sealed_bytes(central) + 200_000


def test_a_gateway_carries_for_the_devices_of_its_site_and_for_nobody_else(site: Site, shop: Shop) -> None:
    control, own, other = shop.control(), site.come(DEVICES[0]), site.come("stranger")
    control.subscribe(*topics.UP_FILTERS)
    own.subscribe(topics.down(f"{PROJECT}.{DEVICES[0]}", "ack"))
    other.subscribe(topics.down(f"{PROJECT}.stranger", "ack"), topics.down(f"{PROJECT}.{DEVICES[0]}", "ack"))

    other.say(topics.up(f"{PROJECT}.stranger", "outbox"))
    own.say(topics.up(f"{PROJECT}.{DEVICES[0]}", "outbox"), b"counts")
    own.say(topics.up(f"{PROJECT}.{DEVICES[1]}", "outbox"), b"not its own")
    wait_for(lambda: control.heard, why="the device to be heard through the bridge")
    for name in ("stranger", DEVICES[0]):
        control.say(topics.down(f"{PROJECT}.{name}", "ack"), name.encode())
    wait_for(lambda: own.heard, why="the device to hear through the bridge")

    assert control.heard == [(topics.up(f"{PROJECT}.{DEVICES[0]}", "outbox"), b"counts")]
    assert own.heard == [(topics.down(f"{PROJECT}.{DEVICES[0]}", "ack"), DEVICES[0].encode())]
    assert other.heard == []

    # its agent renews the certificate that the bridge shows, and is a device of the site like the others
    gateway = site.come(GATEWAY)
    gateway.subscribe(topics.down(f"{PROJECT}.{GATEWAY}", "ack"))
    gateway.say(topics.up(f"{PROJECT}.{GATEWAY}", "outbox"), b"its own")
    control.say(topics.down(f"{PROJECT}.{GATEWAY}", "ack"))
    wait_for(lambda: gateway.heard and len(control.heard) == 2, why="the gateway itself to hear and be heard")


def test_a_whole_fleets_chunks_pass_the_queue_of_this_servers_broker(shop: Shop, tmp_path: Path) -> None:
    chunks, size = 1600, 16 * 1024
    control = shop.control()
    for number in range(chunks):
        control.client.publish(topics.blob("ab", number), bytes(size), qos=1, retain=True)
    wait_for(lambda: len(control.answered) >= chunks, why="all of it to be retained")
    site = Site(shop, tmp_path / "site", Relay(shop.device_port, Shape(rate_bytes_s=10_000_000)))
    try:
        site.enrol()
        site.configure(*DEVICES)
        site.start()

        wait_for(lambda: site.uplink.down_bytes > chunks * size, why="the bridge to bring all of it")
    finally:
        site.close()


def test_a_broker_that_is_configured_anew_knows_its_sites_until_they_are_forgotten(
    shop: Shop, site: Site, capsys: Output
) -> None:
    home = ("--home", str(shop.home.path))
    listen = ("--listen", f"127.0.0.1:{shop.device_port}", "--control", f"127.0.0.1:{shop.control_port}")
    acl, conf = shop.folder / "acl", shop.folder / "mosquitto.conf"
    with_site, config = acl.read_text(), conf.read_text()
    assert f"user {PROJECT}.{GATEWAY}\n" in with_site
    assert "max_queued_messages 1000\n" not in config

    again = ("broker", "config", "mosquitto", "--out", str(shop.folder), "--user", getpass.getuser(), *listen)
    assert main([*home, *again]) == 0
    assert (acl.read_text(), conf.read_text()) == (with_site, config)
    assert main([*home, "broker", "config", "mosquitto", "--site", GATEWAY, "--forget"]) == 0

    assert GATEWAY not in acl.read_text()
    assert "max_queued_messages 1000\n" in conf.read_text()
    assert "start the broker of" in capsys.readouterr().out


REFUSED = {
    "no name for the gateway": (("--host", ""), "--host: expected what the site's devices call the gateway"),
    "no devices": (("--devices", ""), "expected 1 to 1000 names"),
    "a device that cannot be one": (("--devices", "a,b/#"), "devices: expected 1 to 63 of a-z"),
    "a device twice": (("--devices", "a,b,a"), "expected each name once"),
    "the gateway behind itself": (("--devices", f"a,{GATEWAY}"), "expected each name once"),
    "a site that cannot be one": (("--site", "Site 1"), "site: expected 1 to 63 of a-z"),
    "an uplink without a port": (("--bridge-to", "broker.example.org"), "bridge-to: expected HOST:PORT"),
    "an uplink with a line of its own": (("--bridge-to", "a\nlistener 1:1"), "bridge-to: expected HOST:PORT"),
    "an uplink by IPv6": (("--bridge-to", "[::1]:8883"), "a name or an IPv4 address"),
    "a port that is none": (("--bridge-to", "a:99999"), "expected a port from 1 to 65535"),
    "a relative path on the gateway": (("--state", "here"), "--state: expected an absolute path"),
    "a path with a line of its own": (("--installed-in", "/a\nb"), "expected a path without quotes"),
    "a user that is a line": (("--user", "a\nb"), "user: expected a user of the gateway"),
    "a listener for the control plane": (("--control", "127.0.0.1:1"), "--control: expected none with --site"),
    "another broker": (("emqx",), "expected mosquitto at a site"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_site_that_cannot_be_is_refused_in_one_line(
    make_shop: Callable[..., Shop], tmp_path: Path, capsys: Output, case: str
) -> None:
    options, said = REFUSED[case]
    shop = make_shop(start=False)
    before = (shop.folder / "acl").read_text()
    usual = {"--site": GATEWAY, "--host": "127.0.0.1", "--devices": "a,b", "--out": str(tmp_path / "site")}
    broker = options[0] if options == ("emqx",) else "mosquitto"
    given = {**usual, **({} if options == ("emqx",) else {options[0]: options[1]})}
    arguments = [part for pair in given.items() for part in pair]

    assert main(["--home", str(shop.home.path), "broker", "config", broker, *arguments]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "site").exists()
    assert (shop.folder / "acl").read_text() == before


def test_a_device_is_at_one_site(make_shop: Callable[..., Shop], tmp_path: Path, capsys: Output) -> None:
    shop = make_shop(start=False)

    def configure(site: str, devices: str) -> int:
        where = ("--host", "127.0.0.1", "--out", str(tmp_path / site))
        names = ("--site", site, "--devices", devices)
        return main(["--home", str(shop.home.path), "broker", "config", "mosquitto", *names, *where])

    assert configure("site-1", "a,b") == 0
    assert configure("site-2", "b,c") == 2
    assert "got b, which site-1 has" in capsys.readouterr().err
    assert configure("site-1", "a") == 0
    assert configure("site-2", "b,c") == 0
