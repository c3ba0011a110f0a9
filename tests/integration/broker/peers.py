"""Who speaks to the broker in these tests: devices and strangers, each a paho client that remembers what it heard."""

import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from paho.mqtt.client import Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from control_plane.authority import issue, load_authority
from control_plane.home import write_secret
from control_plane.plane import utc_now
from tests.integration.agent.shore import wait_for


@dataclass(frozen=True)
class Papers:
    """A certificate and key in files, and the certificate's serial number in hex."""

    certificate: Path
    key: Path
    serial: str

    @property
    def public_key(self) -> str:
        """The public half of the key, as PEM."""
        certificate = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return certificate.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


def new_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Make a key, and keep it in a file."""
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_secret(path, private)
    return key


def papers(ca: Path, who: str, folder: Path, *, authority: str = "device") -> Papers:
    """Have the CA in the folder `ca` certify `who`."""
    folder.mkdir(parents=True, exist_ok=True)
    key = new_key(folder / "key.pem")
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    issued = issue(load_authority(ca, authority), csr, name=who, now=utc_now())
    (folder / "certificate.pem").write_text(issued.pem)
    return Papers(folder / "certificate.pem", folder / "key.pem", issued.serial)


def tls(ca: Path, shown: Papers | None) -> ssl.SSLContext:
    """Return TLS that trusts `ca` and shows these papers, if any."""
    context = ssl.create_default_context(cafile=str(ca))
    if shown is not None:
        context.load_cert_chain(shown.certificate, shown.key)
    return context


class Peer:
    """One connection, which is not made again by itself; `heard` are (topic, payload)."""

    def __init__(
        self,
        port: int,
        *,
        context: ssl.SSLContext | None,
        client_id: str = "someone",
        user: str = "",
        password: str | None = None,
        expiry_s: int = 0,
        clean: bool = True,
    ) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.refused = False
        self.answered: list[int] = []
        self._connected = threading.Event()
        self._settled = threading.Event()
        self._subscribed = threading.Event()
        self.client = Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTv5, reconnect_on_failure=False
        )
        self.client.suppress_exceptions = True
        if user:
            self.client.username_pw_set(user, password)
        if context is not None:
            self.client.tls_set_context(context)
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = self._on_disconnect
        self.client.on_message = self._on_message
        self.client.on_subscribe = lambda *_: self._subscribed.set()
        self.client.on_publish = lambda _c, _d, _mid, reason, _p: self.answered.append(reason.value)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho leaves it untyped
        properties.SessionExpiryInterval = expiry_s
        try:
            self.client.connect("127.0.0.1", port, keepalive=30, clean_start=clean, properties=properties)
        except (ssl.SSLError, ConnectionResetError):
            self.refused = True
            return
        self.client.loop_start()
        assert self._settled.wait(10), "expected the broker to answer"
        self.refused = not self._connected.is_set()

    @property
    def connected(self) -> bool:
        """Whether the broker has let us in and the connection is up."""
        return self._connected.is_set()

    def subscribe(self, *filters: str) -> None:
        """Subscribe; returns when the broker has answered."""
        self._subscribed.clear()
        self.client.subscribe([(each, 1) for each in filters])
        assert self._subscribed.wait(10)

    def say(self, topic: str, payload: bytes = b"said", *, retain: bool = False) -> int:
        """Publish with QoS 1 and return the broker's reason code: 0, or 16 where nobody hears it, or a refusal."""
        self.answered.clear()
        self.client.publish(topic, payload, qos=1, retain=retain)
        wait_for(lambda: self.answered or not self.connected, why="an answer to a publish")
        return self.answered[0] if self.answered else -1

    def close(self) -> None:
        """Disconnect."""
        self.client.disconnect()
        self.client.loop_stop()

    def _on_connect(self, _client: Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if not reason.is_failure:
            self._connected.set()
        self._settled.set()

    def _on_disconnect(self, *_: Any) -> None:
        self._connected.clear()
        self._settled.set()

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        self.heard.append((message.topic, bytes(message.payload)))
