"""A device that runs a good model, and a shore whose every word can be forged: over MQTT and over HTTPS.

The device is the real one (runner, effects, link, engine, slots, the process that judges); its broker is Mosquitto and
its server speaks TLS. The repositories are `TufRepository`s: an attack bends what they serve.
"""

import datetime
import ipaddress
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.config import Config
from agent.deployment.effects import DeviceEffects
from agent.deployment.lifecycle import Event, Good, Grant, Kind, Phase, State
from agent.deployment.runner import Runner, Saved
from agent.identity.folder import StateFolder
from agent.inference.engine import Engine
from agent.inference.trial import Decision
from agent.link.address import parse_broker
from agent.link.session import Link
from agent.telling.outbox import OutboxFile
from skerry.delivery.slots import Slots
from skerry.wire import codec, topics
from skerry.wire.enrolment import Anchor
from skerry.wire.manifest import target_name
from skerry.wire.messages import Assign, DeploymentEvent, Index, Terms
from tests.integration.agent.shore import MODEL, PROFILE, PROJECT, Device, Shore, wait_for
from tests.tuf_repository import TufRepository, now

FIRST = "d1"
TOKEN = "a token that only this device has"
TIMEOUT_S = 1.0


class Sea(Shore):
    """A shore whose TUF metadata is the test's affair: it seals and serves chunks, and hears."""

    def publish_image(self) -> None:
        """Say nothing: `World.publish` does."""

    def take(self, version: int, files: dict[str, bytes]) -> None:
        """Publish the chunks of an artifact that was made before."""
        self.artifacts[version] = files
        self.sealed[version, False] = {name: self.chunks(data) for name, data in files.items()}


class Server:
    """An HTTPS server for both repositories' metadata, with a certificate of a CA of its own."""

    def __init__(self, folder: Path, serve: Callable[[str, str], bytes | None]) -> None:
        self.ca, leaf = make_certificates(folder)
        self.drips = False
        self.endless = False
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, serve))
        self._server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(leaf)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(server: Server, serve: Callable[[str, str], bytes | None]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.asked.append(self.path)
            kind, _, name = self.path.removeprefix("/v1/tuf/").rpartition("/")
            repository = kind.partition("/")[0]
            if repository == "director" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._say(401, b"")
                return
            data = serve(repository, name)
            self._say(404 if data is None else 200, data or b"")

        def _say(self, status: int, data: bytes) -> None:
            self.send_response(status)
            bent = server.endless or server.drips
            self.send_header("Content-Length", str(len(data) if not bent else 1 << 40))
            self.end_headers()
            try:
                while server.endless:
                    self.wfile.write(b"\0" * 65536)
                for start in range(len(data)) if server.drips else ():
                    self.wfile.write(data[start : start + 1])
                    time.sleep(0.1)
                self.wfile.write(data)
            except OSError:
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler


def make_certificates(folder: Path) -> tuple[str, Path]:
    """Return a CA (PEM) and a file with a key and a certificate of it for 127.0.0.1."""
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    end = begin + datetime.timedelta(days=30)
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name, name = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in ("test CA", "server"))

    def built(subject: x509.Name, public: ec.EllipticCurvePublicKey, *, ca: bool) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(ca_name).public_key(public)
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(begin).not_valid_after(end)
        return builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)

    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    subject_key = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    authority = built(ca_name, ca_key.public_key(), ca=True).add_extension(usage, critical=True)
    authority_pem = authority.add_extension(subject_key, critical=False).sign(ca_key, hashes.SHA256())
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    leaf = built(name, key.public_key(), ca=False).add_extension(address, critical=False)
    leaf_pem = leaf.add_extension(issuer, critical=False).sign(ca_key, hashes.SHA256())
    path = folder / "server.pem"
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, form, plain) + leaf_pem.public_bytes(serialization.Encoding.PEM)
    )
    return authority_pem.public_bytes(serialization.Encoding.PEM).decode(), path


class World:
    """One device on version 1, two honest repositories that know versions 1 to 3, and the road between them."""

    def __init__(
        self, sea: Sea, folder: Path, made: dict[int, dict[str, bytes]], *, road: str, recording: Path
    ) -> None:
        self.sea, self.road, self.name = sea, road, "watch-1"
        self.image, self.director = TufRepository(), TufRepository()
        self.server = Server(folder, self._serve)
        for version, files in made.items():
            sea.take(version, files)
            self.image.add(self.path(version), files["manifest.json"])
        self.image.publish()
        self.device = Device(sea, self.name, folder / self.name, recording)
        self.state = StateFolder(self.device.folder)
        self.anchor_with(road)
        self.announced: list[DeploymentEvent] = []
        self.deployments = 1
        self._parts: list[Any] = []
        self._index_root: int | None = None

    def anchor_with(self, road: str) -> None:
        """Let the device trust both first roots and the server's CA, run version 1, and fetch metadata by `road`."""
        image, director = self.image.root.decode(), self.director.root.decode()
        anchor = Anchor(PROJECT, image_root=image, director_root=director, server_ca=self.server.ca)
        self.state.anchor_file.write_bytes(codec.encode(anchor))
        identity = replace(self.state.identity(), server=self.server.url)
        self.state.identity_file.write_bytes(codec.encode(identity))
        config = self.device.folder / "config.toml"
        config.write_text(config.read_text() + f'metadata = "{road}"\n')

        slots = Slots(self.state.slots)
        slots.stage(self.sea.artifacts[1], release="strokes-1", deployment=FIRST)
        slots.activate()
        slots.commit()
        good = Good(manifest=self.digest(1), release="strokes-1", deployment=FIRST)
        grant = Grant(deployment=FIRST, release="strokes-1", path=self.path(1), manifest=self.digest(1))
        state = State(phase=Phase.COMMITTED.value, grant=grant, good=good)
        self.state.lifecycle_file.write_bytes(codec.encode(Saved(state=state)))

    def path(self, version: int) -> str:
        """Return the target path of a version's manifest."""
        return target_name(MODEL, version, PROFILE, "manifest.json")

    def digest(self, version: int) -> str:
        """Return the SHA-256 of a version's manifest."""
        import hashlib

        return hashlib.sha256(self.sea.artifacts[version]["manifest.json"]).hexdigest()

    # --- the shore

    def assign(
        self, version: int, *, deployment: str = "", path: str = "", data: bytes | None = None, **terms: Any
    ) -> str:
        """Let the director sign an assignment, of which nothing is said yet; returns its deployment."""
        if not deployment:
            self.deployments += 1
            deployment = f"d{self.deployments}"
        given: dict[str, Any] = {
            "device": self.name,
            "counter": self.director.targets_version + 1,
            "issued": now().strftime("%Y-%m-%dT%H:%M:%SZ"),
            "deployment": deployment,
            "release": f"{MODEL}-{version}",
            "grace_s": 0,
            "content": self.sea.content(self.name, version),
        }
        self.director.targets.clear()
        manifest = self.sea.artifacts[version]["manifest.json"] if data is None else data
        self.director.add(path or self.path(version), manifest, custom=asdict(Terms(**(given | terms))))
        self.director.publish()
        return deployment

    def publish(self, *, retained: bool = True) -> None:
        """Serve the image repository as it is: on the broker too, where that is the road."""
        if self.road == "https" or not retained:
            return
        newest = max(int(name.partition(".")[0]) for name in self.image.files if name.endswith(".root.json"))
        timestamp, snapshot, targets = (
            getattr(self.image, f"{role}_version") for role in ("timestamp", "snapshot", "targets")
        )
        index = Index(root=newest, timestamp=timestamp, snapshot=snapshot, targets=targets)
        for name, data in {**self.image.files, "index.json": codec.encode(index)}.items():
            self.sea.say(topics.tuf(PROJECT, name.removesuffix(".json")), data)

    def assignment(self) -> bytes:
        """Return the assignment as the director's metadata stands, with its later roots."""
        roots = {name: data for name, data in self.director.files.items() if name.endswith(".root.json")}
        metadata = self.director.newest() | {name.removesuffix(".json"): data for name, data in roots.items()}
        return codec.encode(Assign(metadata={name: data.decode() for name, data in metadata.items()}))

    def _serve(self, repository: str, name: str) -> bytes | None:
        return (self.director if repository == "director" else self.image).files.get(name)

    # --- the device

    def wake(self) -> "World":
        """Start the device's parts in this process; it runs version 1 and has trusted an honest renewal of it."""
        config = Config(fetch_timeout_s=TIMEOUT_S, retry_s=0.02, retry_most_s=0.05, metadata=self.road)
        self.outbox = OutboxFile(self.state.outbox_file, quota_bytes=config.quota_bytes)
        self.engine = Engine(config=config, source=None, outbox=self.outbox, on_decision=self._trial_ended)
        identity = self.state.identity()
        self.link = Link(
            parse_broker(identity.broker),
            who=identity.who,
            will=lambda: b"{}",
            credentials=self.state.credentials,
            reconnect_s=0.3,
        )
        self.slots = Slots(self.state.slots)
        self.effects = DeviceEffects(
            folder=self.state, identity=identity, config=config, link=self.link, engine=self.engine, slots=self.slots
        )
        self.effects.token = lambda: TOKEN
        self.runner = Runner(self.state.lifecycle_file, announce=self.announced.append, retry_s=0.02, retry_most_s=0.05)
        self.engine.start()
        self.link.start()
        wait_for(lambda: self.link.connected, why="the device to connect")
        assert self.effects.run_last_good() is None
        self.runner.wake_up(self.effects)
        self.renew()
        return self

    def close(self) -> None:
        """End everything."""
        if hasattr(self, "link"):
            self.link.stop()
            self.engine.stop()
            self.effects.close()
            self.outbox.close()
        self.device.kill()
        self.server.close()

    def hear(self) -> None:
        """Let the device hear of the assignment as it stands."""
        self.effects.offer(self.assignment())
        self.runner.nudge()

    def renew(self) -> None:
        """Let the device trust both repositories as they stand, by a renewal of the deployment that it runs."""
        grant = self.runner.state.grant
        assert grant is not None
        self.assign(1, deployment=grant.deployment)
        self.publish()
        self.hear()
        self.drive(lambda: not self.effects.pending(), why="an honest renewal to be taken")
        assert self.effects.problem == "", self.effects.problem

    def drive(self, until: Callable[[], bool], *, why: str, timeout_s: float = 25.0) -> None:
        """Let the runner work until something holds."""
        deadline = time.monotonic() + timeout_s
        while not until():
            assert time.monotonic() < deadline, f"expected {why} within {timeout_s} s, got: {self.report()}"
            if not self.runner.turn(self.effects):
                time.sleep(0.01)

    def report(self) -> str:
        """Return what the twin would say is wrong, as the daemon finds it."""
        return self.effects.problem or self.runner.state.reason

    def phase_of(self, deployment: str) -> str:
        """Return the last phase that was announced of a deployment."""
        return next((each.state for each in reversed(self.announced) if each.deployment == deployment), "")

    def running(self) -> str:
        """Return the digest of what the engine runs."""
        return self.engine.running.digest if self.engine.running else ""

    def _trial_ended(self, _manifest: str, decision: Decision) -> None:
        kind = Kind.PASSED if decision.passed else Kind.REFUSED
        self.runner.tell(Event(kind, grant=self.runner.state.grant, reason=decision.reason))
