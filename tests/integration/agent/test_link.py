"""The link to the broker: identities over TLS, outages, last wills, and what happens when nobody is there."""

import ipaddress
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion

from agent.link.address import parse_broker
from agent.link.session import Link
from agent.link.tls import Credentials
from skerry.errors import Unavailable
from skerry.wire import codec, topics
from skerry.wire.messages import Reported
from tests.integration.agent.shore import Device, Shore, wait_for
from tests.relay import Relay

WHO = "watch.watch-1"
WILL = codec.encode(
    Reported(version=9, online=False, state="idle", agent="0", profile="gateway", runtime="r", architecture="x86_64")
)
NONE = Credentials(ca=Path("none"), certificate=Path("none"), key=Path("none"))


@pytest.fixture
def make_link() -> Iterator[Callable[..., Link]]:
    """Return a function that starts a link; all are stopped at the end."""
    links: list[Link] = []

    def make(url: str, credentials: Credentials = NONE) -> Link:
        link = Link(parse_broker(url), who=WHO, will=lambda: WILL, credentials=credentials, reconnect_s=0.3)
        link.start()
        links.append(link)
        return link

    yield make
    for link in links:
        link.stop()


def test_a_link_makes_another_connection_when_it_is_told_to(shore: Shore, make_link: Callable[..., Link]) -> None:
    link = make_link(f"mqtt://127.0.0.1:{shore.port}")
    wait_for(lambda: link.connected, why="a connection")

    link.reconnect()

    wait_for(lambda: link.connections == 2 and link.connected, why="another connection")


def test_only_what_was_asked_for_is_fetched_and_what_is_missing_stays_missing(
    shore: Shore, make_link: Callable[..., Link]
) -> None:
    shore.say("skerry/1/blob/aa/0", b"zero")
    shore.say("skerry/1/blob/aa/1", b"one")
    link = make_link(f"mqtt://127.0.0.1:{shore.port}")
    wait_for(lambda: link.connected, why="a connection")

    found = link.fetch_retained(["skerry/1/blob/aa/1", "skerry/1/blob/aa/7"], timeout_s=0.5)

    assert found == {"skerry/1/blob/aa/1": b"one"}
    assert link.fetch_retained(["skerry/1/blob/aa/0"], timeout_s=5) == {"skerry/1/blob/aa/0": b"zero"}


def test_a_lost_connection_is_noticed_and_made_again(
    shore: Shore, relay: Relay, make_link: Callable[..., Link]
) -> None:
    link = make_link(f"mqtt://127.0.0.1:{relay.port}")
    wait_for(lambda: link.connected, why="a connection")

    relay.cut()
    wait_for(lambda: not link.connected, why="the loss to be noticed")
    with pytest.raises(Unavailable, match="expected a connection"):
        link.publish("reported", b"{}")
    with pytest.raises(Unavailable, match="expected a connection"):
        link.fetch_retained(["skerry/1/blob/aa/0"], timeout_s=1)
    relay.mend()

    wait_for(lambda: link.connected and link.connections == 2, why="another connection")


def test_what_was_not_settled_is_heard_again(shore: Shore, relay: Relay, make_link: Callable[..., Link]) -> None:
    link = make_link(f"mqtt://127.0.0.1:{relay.port}")
    wait_for(lambda: link.connected, why="a connection")
    shore.say(topics.down(WHO, "assign"), b"assignment")
    assert link.heard.get(timeout=5).payload == b"assignment"

    relay.cut()
    wait_for(lambda: not link.connected, why="the loss to be noticed")
    relay.mend()

    again = link.heard.get(timeout=20)
    assert (again.name, again.payload) == ("assign", b"assignment")


def test_a_queue_that_is_full_drops_and_counts(shore: Shore, make_link: Callable[..., Link]) -> None:
    link = make_link(f"mqtt://127.0.0.1:{shore.port}")
    wait_for(lambda: link.connected, why="a connection")

    for _ in range(70):
        shore.say(topics.down(WHO, "ack"), b"{}")

    wait_for(lambda: link.dropped >= 6, why="drops to be counted")
    assert link.connected


def test_a_broker_that_is_not_there_is_one_clear_line_and_waited_for(
    device: Device, free_port: Callable[[], int]
) -> None:
    device.port = free_port()
    device.start()

    said = wait_for(lambda: device.log.exists() and "expected it to answer" in device.log.read_text(), why="a line")

    assert said
    line = next(line for line in device.log.read_text().splitlines() if "expected it to answer" in line)
    assert f"mqtt://127.0.0.1:{device.port}" in line
    assert "check that it runs" in line
    assert device.stop() == 0
    assert "Traceback" not in device.log.read_text()


def test_a_runtime_that_is_missing_is_one_line(device: Device) -> None:
    path = device.folder / "identity.json"
    path.write_text(path.read_text().replace("onnxruntime", "tflite-nano"))
    command = [sys.executable, "-m", "agent", "run", "--state", str(device.folder)]

    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    assert done.returncode == 4
    assert done.stderr.splitlines()[-1].startswith("skerry-agent: runtime: expected one of")


# --- TLS


class Authority:
    """A certificate authority for one test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._certify("ca", self._key.public_key(), ca=True)
        self.path = self._write("ca.crt", self.certificate)

    def issue(self, name: str) -> Credentials:
        """Return files with a key and a certificate for `name`, valid for 127.0.0.1."""
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (self._folder / f"{name}.key").write_bytes(private)
        certificate = self._write(f"{name}.crt", self._certify(name, key.public_key(), ca=False))
        return Credentials(ca=self.path, certificate=certificate, key=self._folder / f"{name}.key")

    def _write(self, name: str, certificate: x509.Certificate) -> Path:
        path = self._folder / name
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return path

    def _certify(self, name: str, public: Any, *, ca: bool) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = subject if ca else self.certificate.subject
        now = datetime.now(UTC)
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .sign(self._key, hashes.SHA256())
        )


@pytest.mark.broker
def test_a_device_is_known_by_its_certificate_alone(
    mosquitto: Any, tmp_path: Path, free_port: Callable[[], int], make_link: Callable[..., Link]
) -> None:
    authority, port = Authority(tmp_path), free_port()
    server, us = authority.issue("broker"), authority.issue(WHO)
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    forged = Authority(stranger).issue(WHO)
    acl = tmp_path / "acl"
    acl.write_text("pattern readwrite skerry/1/d/%u/#\n")
    config = tmp_path / "tls.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\ncafile {authority.path}\ncertfile {server.certificate}\nkeyfile {server.key}\n"
        f"require_certificate true\nuse_identity_as_username true\nacl_file {acl}\nuser root\n"
    )
    with subprocess.Popen([mosquitto.program, "-c", str(config)], stderr=subprocess.DEVNULL) as process:
        try:
            refused = make_link(
                f"mqtts://127.0.0.1:{port}", Credentials(authority.path, forged.certificate, forged.key)
            )
            link = make_link(f"mqtts://127.0.0.1:{port}", us)
            wait_for(lambda: link.connected, why="a connection over TLS")
            link.publish("reported", WILL, retain=True)

            assert _retained(link, topics.up(WHO, "reported")) == WILL
            assert refused.connections == 0
        finally:
            process.terminate()


def _retained(link: Link, topic: str) -> bytes:
    return wait_for(lambda: link.fetch_retained([topic], timeout_s=1).get(topic, b""), why=f"a message on {topic}")


def test_the_last_will_is_heard_when_the_plug_is_pulled(
    shore: Shore, relay: Relay, make_link: Callable[..., Link]
) -> None:
    heard: list[bytes] = []
    listener = Client(CallbackAPIVersion.VERSION2, client_id="listener", protocol=MQTTv5)
    listener.on_message = lambda _client, _data, message: heard.append(bytes(message.payload))
    listener.connect("127.0.0.1", shore.port)
    listener.loop_start()
    listener.subscribe(topics.up(WHO, "reported"), 1)
    link = make_link(f"mqtt://127.0.0.1:{relay.port}")
    wait_for(lambda: link.connected, why="a connection")

    relay.cut()

    wait_for(lambda: WILL in heard, why="the will")
    listener.disconnect()
    listener.loop_stop()
