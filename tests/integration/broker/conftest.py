"""A Mosquitto from Debian with the configuration that `skerry broker config` writes, unmodified."""

import getpass
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from control_plane import crl
from control_plane.authority import make_authorities
from control_plane.cli.program import main
from control_plane.database import open_database, readers, sessions
from control_plane.home import Home, create_home, finish_home
from control_plane.link import Outgoing
from control_plane.plane import Plane
from control_plane.schema.devices import RevokedCertificate
from control_plane.settings import Settings, load_settings, save_settings
from control_plane.store import Blobs
from tests.conftest import pick_port, wait_for_port
from tests.integration.broker.peers import Papers, Peer, papers, tls

PROJECT = "watch"


@dataclass
class Shop:
    """A home folder, its broker's folder, and the broker's process."""

    home: Home
    folder: Path
    program: str
    device_port: int
    control_port: int
    process: subprocess.Popen[str] | None = None
    peers: list[Peer] = field(default_factory=list)

    @property
    def settings(self) -> Settings:
        """The server's settings as they are now."""
        return load_settings(self.home.path)

    @property
    def server_ca(self) -> Path:
        """The CA of the broker's own certificate."""
        return self.home.ca / "server-ca.pem"

    @property
    def password(self) -> str:
        """The control plane's."""
        return urlsplit(self.settings.broker).password or ""

    def start(self) -> None:
        """Start Mosquitto with nothing but the file that was written."""
        command = [self.program, "-c", str(self.folder / "mosquitto.conf")]
        with (self.folder.parent / "mosquitto.log").open("a") as log:
            self.process = subprocess.Popen(command, stderr=log, text=True)
        wait_for_port(self.control_port)

    def stop(self, by: int = signal.SIGTERM) -> None:
        """Stop it."""
        if self.process is not None:
            self.process.send_signal(by)
            self.process.wait(10)
            self.process = None

    @property
    def log(self) -> str:
        """What Mosquitto said."""
        return (self.folder.parent / "mosquitto.log").read_text()

    def papers(self, device: str, *, project: str = PROJECT) -> Papers:
        """Have the device CA certify a device."""
        who = f"{project}.{device}"
        return papers(self.home.ca, who, self.folder.parent / "papers" / f"{who}-{len(self.peers)}")

    def come(self, shown: Papers | None, **options: Any) -> Peer:
        """Connect where devices do, showing these papers."""
        peer = Peer(self.device_port, context=tls(self.server_ca, shown), **options)
        self.peers.append(peer)
        return peer

    def control(self, **options: Any) -> Peer:
        """Connect as the control plane."""
        given = {"context": None, "user": "control-plane", "password": self.password, "client_id": "tests", **options}
        peer = Peer(self.control_port, **given)
        self.peers.append(peer)
        return peer

    def plane(self) -> Plane:
        """Return what `control_plane.crl` needs of a plane."""
        engine = open_database(self.home)
        return Plane(
            settings=self.settings,
            home=self.home,
            sessions=sessions(engine),
            readers=readers(engine),
            blobs=Blobs(self.home.blobs),
            signers=None,  # type: ignore[arg-type] # nothing is signed here
            outgoing=Outgoing(),
        )


@pytest.fixture
def make_shop(tmp_path: Path) -> Iterator[Callable[..., Shop]]:
    """Return a function that makes a home folder, configures a broker for it by the CLI, and starts it."""
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if program is None:
        pytest.skip("expected mosquitto, got none: apt-get install mosquitto")
    shops: list[Shop] = []

    def make(*, project: str = PROJECT, start: bool = True, more: tuple[str, ...] = ()) -> Shop:
        root = tmp_path / f"{project}-{len(shops)}"
        home = create_home(root / "home")
        save_settings(Settings(project=project), home.path)
        make_authorities(home.ca, project)
        finish_home(home)
        shop = Shop(home, root / "broker", program, pick_port(), pick_port())
        listen = ["--listen", f"127.0.0.1:{shop.device_port}", "--control", f"127.0.0.1:{shop.control_port}"]
        arguments = ["broker", "config", "mosquitto", "--out", str(shop.folder), "--user", getpass.getuser()]
        assert main(["--home", str(home.path), *arguments, *listen, *more]) == 0
        if start:
            shop.start()
        shops.append(shop)
        return shop

    yield make
    for shop in shops:
        for peer in shop.peers:
            peer.close()
        shop.stop()


@pytest.fixture
def shop(make_shop: Callable[..., Shop]) -> Shop:
    """A broker of the test's own."""
    return make_shop()


@pytest.fixture
def revoke() -> Callable[..., str]:
    """Return a function that revokes a certificate as the server does."""

    def now(plane: Plane, device: str, serial: str) -> str:
        from datetime import timedelta

        with plane.sessions.begin() as session:
            moment = plane.clock()
            session.add(
                RevokedCertificate(serial=serial, device=device, expires=moment + timedelta(days=30), revoked_at=moment)
            )
        return crl.revoke_now(plane, device)

    return now
