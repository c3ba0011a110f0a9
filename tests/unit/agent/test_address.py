"""Where the broker is, and the proxy on the way to it: what is understood, what is refused, what is never shown."""

import importlib.util
from typing import Any

import pytest

from agent.config import Config, read_config
from agent.link.address import Address, parse_broker
from agent.link.proxy import Proxy, parse_proxy
from skerry.errors import Rejected

GOOD = {
    "mqtts://broker.example": Address("broker.example", 8883, tls=True),
    "mqtts://broker.example:8884/": Address("broker.example", 8884, tls=True),
    "mqtts://192.0.2.7": Address("192.0.2.7", 8883, tls=True),
    "mqtts://[2001:db8::7]": Address("2001:db8::7", 8883, tls=True),
    "mqtts://[2001:db8::7]:443": Address("2001:db8::7", 443, tls=True),
    "wss://broker.example": Address("broker.example", 443, tls=True, path="/mqtt"),
    "wss://broker.example/": Address("broker.example", 443, tls=True, path="/"),
    "wss://broker.example:8443/fleet/mqtt": Address("broker.example", 8443, tls=True, path="/fleet/mqtt"),
    "wss://[2001:db8::7]/mqtt": Address("2001:db8::7", 443, tls=True, path="/mqtt"),
    "mqtt://localhost": Address("localhost", 1883, tls=False),
    "mqtt://127.0.0.1:1999": Address("127.0.0.1", 1999, tls=False),
    "mqtt://127.8.8.8": Address("127.8.8.8", 1883, tls=False),
    "mqtt://[::1]:1883": Address("::1", 1883, tls=False),
    "ws://localhost:9001/mqtt": Address("localhost", 9001, tls=False, path="/mqtt"),
    "ws://[::1]/x": Address("::1", 80, tls=False, path="/x"),
}
BAD = (
    *("", "broker.example", "tcp://broker.example:1883", "https://broker.example", "mqtts://", "mqtts://:8883"),
    *("mqtts://broker.example:0", "mqtts://broker.example:99999", "mqtts://broker.example:x", "mqtts://2001:db8::7"),
    *("mqtts://gull:salt@broker.example", "mqtts://broker.example/mqtt", "mqtts://broker.example?x", "mqtts://a b"),
    *("wss://broker.example/a b", "wss://broker.example/mqtt?x=1", "wss://broker.example/#x", "mqtts://[not]:8883"),
    *("wss://broker.example/\u00e9", "mqtts://-x", "mqtts://broker..example\x00"),
)
NOT_HERE = (
    *("mqtt://broker.example", "ws://broker.example/mqtt", "mqtt://192.0.2.7", "mqtt://0.0.0.0", "ws://[2001:db8::7]"),
    *("mqtt://localhost.example", "mqtt://127.0.0.1.example", "mqtt://[::ffff:192.0.2.7]"),
)


@pytest.mark.parametrize("url", GOOD)
def test_an_address_says_host_port_tls_and_path(url: str) -> None:
    address = parse_broker(url)

    assert address == GOOD[url]
    assert parse_broker(str(address)) == address, "what is shown can be typed in again"


@pytest.mark.parametrize("url", BAD)
def test_what_is_no_address_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(Rejected, match=r"^broker: expected [^\n]+$"):
        parse_broker(url)


@pytest.mark.parametrize("url", NOT_HERE)
def test_without_tls_the_broker_has_to_be_this_machine(url: str) -> None:
    with pytest.raises(Rejected, match="no identity off this machine"):
        parse_broker(url)


# --- the proxy


def test_a_proxy_is_shown_without_its_user_and_password() -> None:
    proxy = parse_proxy("http://gull:s%40lt%20water@[2001:db8::1]:3128")

    assert proxy == Proxy("http", "2001:db8::1", 3128, user="gull", password="s@lt water")
    assert str(proxy) == "http://[2001:db8::1]:3128"
    assert "s@lt" not in repr(proxy)
    assert parse_proxy("socks5://10.0.0.1:1080") == Proxy("socks5", "10.0.0.1", 1080)
    assert parse_proxy("") is None


@pytest.mark.parametrize(
    "text",
    [
        *("gull:salt@host:3128", "https://gull:salt@host:1", "socks4://gull:salt@host:1", "http://gull:salt@host"),
        *(
            "http://gull:salt@host:port",
            "http://gull:salt@host:1/path",
            "http://gull:salt@:1",
            "http://gull:salt@[x]:1",
        ),
        "socks5://gull:salt" + 128 * "t" + "@host:1",
    ],
)
def test_what_is_no_proxy_is_refused_without_its_password(text: str) -> None:
    with pytest.raises(Rejected, match=r"^proxy: expected [^\n]+$") as refusal:
        Config(proxy=text)

    assert "salt" not in str(refusal.value)
    assert refusal.value.__cause__ is None


def test_socks_without_pysocks_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "socks" else found(name, *more)
    )
    (tmp_path / "config.toml").write_text('proxy = "socks5://10.0.0.1:1080"\n')

    with pytest.raises(Rejected, match=r"expected PySocks for socks5://, got none; run: pip install 'skerry\[proxy\]'"):
        read_config(tmp_path, {})
    assert parse_proxy("http://10.0.0.1:3128") is not None


def test_the_password_is_not_in_what_is_printed_of_a_configuration() -> None:
    topic = "mqtt://gull:salt@127.0.0.1/rows"
    assert "salt" not in repr(Config(proxy="http://gull:salt@host:1", source=topic, sources={"lamps": topic}))


@pytest.mark.parametrize("setting", [{"keep_alive_s": 14}, {"keep_alive_s": 1201}, {"reconnect_s": 0.0}])
def test_settings_of_the_link_have_bounds(setting: dict[str, Any]) -> None:
    with pytest.raises((ValueError, Rejected), match=next(iter(setting))):
        Config(**setting)
