"""The address of the broker that devices are told: over WebSockets too, and never without TLS off this machine."""

import pytest

from agent.link.address import parse_broker
from control_plane.settings import Settings
from skerry.errors import Rejected

BROKER = "mqtts://broker.example:8883"


@pytest.mark.parametrize(
    "url",
    [
        "mqtts://broker.example:8883",
        "wss://broker.example/mqtt",
        "wss://[2001:db8::7]:8443/mqtt",
        "ws://127.0.0.1:9001/x",
    ],
)
def test_what_is_advertised_is_what_an_agent_understands(url: str) -> None:
    assert Settings(project="watch", broker_advertised=url, broker=BROKER).broker_advertised == url
    assert parse_broker(url).tls == url.startswith(("mqtts:", "wss:"))


@pytest.mark.parametrize(
    "url", ["ws://broker.example/mqtt", "mqtt://broker.example:1883", "wss:///mqtt", "https://broker.example/mqtt"]
)
def test_what_no_agent_would_take_is_not_advertised(url: str) -> None:
    with pytest.raises(Rejected, match="broker_advertised: expected"):
        Settings(project="watch", broker_advertised=url, broker=BROKER)


def test_the_control_plane_itself_speaks_plain_mqtt_over_tls() -> None:
    with pytest.raises(Rejected, match="broker: expected embedded"):
        Settings(project="watch", broker="wss://broker.example/mqtt")


@pytest.mark.parametrize(
    ("url", "identity"), [("wss://broker.example/mqtt", "certificate"), ("ws://127.0.0.1:9001/mqtt", "none")]
)
def test_over_websockets_with_tls_devices_are_known_by_their_certificates(url: str, identity: str) -> None:
    assert Settings(project="watch", broker=BROKER, broker_advertised=url).identity == identity
