"""Links to try: a last will that counts, and what is waited for and said."""

from pathlib import Path

from agent.link.session import Link
from agent.link.tls import Credentials
from skerry.wire import topics
from tests.conftest import Mosquitto
from tests.integration.agent.shore import wait_for

WHO = "watch.gull"
NONE = Credentials(ca=Path("none"), certificate=Path("none"), key=Path("none"))


class Attempts:
    """A last will that counts how often it was asked for."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> bytes:
        self.made += 1
        return b"gone"


def connected(link: Link, number: int = 1) -> None:
    """Wait for a connection, the `number`th."""
    wait_for(lambda: link.connected and link.connections >= number, why=f"connection {number}")


def say(broker: Mosquitto, payload: bytes) -> None:
    """Say something to the device, not retained."""
    from paho.mqtt import publish

    publish.single(topics.down(WHO, "ack"), payload, qos=1, hostname="127.0.0.1", port=broker.port)
