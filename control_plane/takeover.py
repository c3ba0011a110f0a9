"""Connects where devices do, with certificates of minutes: to end a device's session, or to see whether one is refused.

A session belongs to a client id, and the client id is the certificate's name: who connects with another certificate of
the same name takes it over (MQTT 5, 3.1.4), and a broker must close what was open. The key exists for seconds, in a
folder of this user's alone.
"""

import contextlib
import enum
import ssl
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from control_plane.authority import issue, load_authority
from control_plane.home import write_secret
from control_plane.plane import Plane
from skerry.errors import Broken, Unavailable
from skerry.wire.topics import identity

# a minute would do, but the broker's clock may differ from ours
LIFE = timedelta(minutes=5)
CONNECT_TIMEOUT_S = 5.0


class Outcome(enum.Enum):
    """What a broker said to a certificate."""

    ACCEPTED = "accepted"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Pass:
    """A certificate of minutes, loaded; `who` is its name."""

    who: str
    certificate: x509.Certificate
    context: ssl.SSLContext


def end_session(plane: Plane, device: str) -> None:
    """End the live session of a device, and what the broker keeps for it.

    Raises:
        Unavailable: the broker is not there, or refuses us.
        Broken: the broker is not of the CA in the settings.
    """
    brief = make_pass(plane, identity(plane.settings.project, device), now=plane.clock())
    if connect(plane, brief) is Outcome.REFUSED:
        raise Unavailable(
            f"broker: expected to end the session of {device} at {plane.settings.device_broker_url}, got refused; "
            "its certificates are shut out, and this is tried again for some minutes"
        )


def make_pass(plane: Plane, who: str, *, now: datetime) -> Pass:
    """Make a key and a certificate of the device CA for `who`; raises `Broken` when the broker's CA cannot be read."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    device_ca = load_authority(plane.home.ca, "device")
    issued = issue(device_ca, csr, name=who, now=now, life=LIFE, crl_url=plane.settings.crl_url)
    try:
        context = ssl.create_default_context(cafile=plane.settings.broker_ca or None)
    except OSError as error:
        raise Broken(
            f"broker_ca: expected a file of CA certificates, got {plane.settings.broker_ca}: {error}"
        ) from error
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with _as_file(issued.pem.encode() + private) as path:
        context.load_cert_chain(path)
    return Pass(who=who, certificate=x509.load_pem_x509_certificate(issued.pem.encode()), context=context)


def connect(plane: Plane, brief: Pass) -> Outcome:
    """Connect with a pass, starting clean and leaving nothing, and disconnect.

    Raises:
        Unavailable: the broker is not there, or does not answer.
        Broken: the broker is not of the CA in the settings.
    """
    url = plane.settings.device_broker_url
    parts = urlsplit(url)
    outcome: list[Outcome] = []
    answered = threading.Event()

    def connected(_client: Client, _data: object, _flags: object, reason: object, _properties: object) -> None:
        outcome.append(Outcome.REFUSED if getattr(reason, "is_failure", True) else Outcome.ACCEPTED)
        answered.set()

    def disconnected(*_: object) -> None:
        # with TLS 1.3 the refusal of a certificate comes after the handshake, as the end of the connection
        outcome.append(Outcome.REFUSED)
        answered.set()

    client = Client(CallbackAPIVersion.VERSION2, client_id=brief.who, protocol=MQTTv5, reconnect_on_failure=False)
    client.tls_set_context(brief.context)
    client.connect_timeout = CONNECT_TIMEOUT_S
    client.suppress_exceptions = True
    client.on_connect, client.on_disconnect = connected, disconnected
    at_once = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho leaves it untyped
    at_once.SessionExpiryInterval = 0
    try:
        client.connect(parts.hostname or "", parts.port or 8883, keepalive=10, clean_start=True, properties=at_once)
    except ssl.SSLCertVerificationError as error:
        raise Broken(f"broker_ca: expected the CA of {url}, got: {error.verify_message}; set broker_ca") from error
    except (ssl.SSLError, ConnectionResetError):
        return Outcome.REFUSED
    except OSError as error:
        raise Unavailable(f"broker: expected one at {url}, got: {error.strerror or error}; start it") from error
    client.loop_start()
    answered.wait(CONNECT_TIMEOUT_S)
    client.disconnect()
    client.loop_stop()
    if not outcome:
        raise Unavailable(f"broker: expected an answer from {url}, got none in {CONNECT_TIMEOUT_S:.0f} s; check it")
    return outcome[0]


@contextlib.contextmanager
def _as_file(secret: bytes) -> Iterator[Path]:
    """Hold a secret in a file for a library that reads keys from nowhere else."""
    with tempfile.TemporaryDirectory(prefix="skerry-") as folder:
        path = Path(folder) / "pass.pem"
        write_secret(path, secret)
        yield path
