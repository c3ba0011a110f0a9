"""Which brokers a server may be set up with: one without identities is on this machine and says so."""

import pytest

from control_plane.broker_config import Listener, Plan, parse_listener
from control_plane.settings import Settings
from skerry.errors import Rejected

REFUSED = {
    "a broker elsewhere without TLS": ({"broker": "mqtt://10.0.0.1:1883"}, "expected mqtts:// off this machine"),
    "devices sent elsewhere without TLS": (
        {"broker": "mqtts://10.0.0.1:8883", "broker_advertised": "mqtt://10.0.0.2:1883"},
        "expected mqtts:// off this machine",
    ),
    "the embedded broker sent elsewhere": (
        {"broker_advertised": "mqtt://10.0.0.2:1883"},
        "expected mqtts:// off this machine",
    ),
    "the embedded broker behind somebody's TLS": (
        {"broker_advertised": "mqtts://10.0.0.2:8883"},
        "knows no identities behind TLS either",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_broker_that_knows_nobody_stays_on_this_machine(case: str) -> None:
    settings, said = REFUSED[case]

    with pytest.raises(Rejected, match=said):
        Settings(project="watch", **settings)  # type: ignore[arg-type]


def test_a_password_is_not_in_a_refusal() -> None:
    with pytest.raises(Rejected) as refusal:
        Settings(project="watch", broker="mqtt://control-plane:hunter2@10.0.0.1:1883")

    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    ("broker", "advertised", "identity"),
    [
        ("embedded", "", "none"),
        ("mqtt://127.0.0.1:1883", "", "none"),
        ("mqtt://127.0.0.1:1884", "mqtts://fleet.example:8883", "certificate"),
        ("mqtts://fleet.example:8883", "", "certificate"),
    ],
)
def test_what_the_broker_knows_is_said(broker: str, advertised: str, identity: str) -> None:
    assert Settings(project="watch", broker=broker, broker_advertised=advertised).identity == identity


def test_a_listener_is_an_address_and_a_port() -> None:
    assert parse_listener("[::1]:8883", option="listen") == Listener("::1", 8883)
    assert str(Listener("::", 8883)) == "[::]:8883"
    assert Listener("127.0.0.2", 1).loopback
    assert not Listener("192.0.2.1", 1).loopback


def test_a_fleet_that_returns_at_once_finds_room(tmp_path: object) -> None:
    plan = Plan(
        project="watch",
        name="fleet.example",
        folder=tmp_path,  # type: ignore[arg-type]
        user="mosquitto",
        devices=Listener("192.0.2.1", 8883),
        control=Listener("127.0.0.1", 1884),
        fleet=10_000,
    )

    assert plan.connections == 11_000
