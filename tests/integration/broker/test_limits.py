"""The generated configuration itself: what it limits, what it keeps, who may read it."""

import json
import signal
import socket
import ssl
import stat
from collections.abc import Callable

import pytest
from cryptography import x509

from control_plane import takeover
from control_plane.api.crl import get_crl
from control_plane.authority import load_authority
from control_plane.cli.program import main
from control_plane.plane import utc_now
from skerry.wire import topics
from skerry.wire.codec import MAX_BYTES
from tests.integration.agent.shore import wait_for
from tests.integration.broker.conftest import Shop
from tests.integration.broker.peers import tls

A = "watch.a"


@pytest.mark.broker
def test_an_oversize_publish_reaches_nobody(shop: Shop) -> None:
    control, a = shop.control(), shop.come(shop.papers("a"))
    control.subscribe(*topics.UP_FILTERS)

    assert a.say(topics.up(A, "outbox"), bytes(MAX_BYTES - 1024)) == 0
    a.say(topics.up(A, "outbox"), bytes(MAX_BYTES))
    wait_for(lambda: not a.connected, why="the sender to be thrown out")
    b = shop.come(shop.papers("b"))
    b.say(topics.up("watch.b", "outbox"), b"small")
    wait_for(lambda: len(control.heard) == 2, why="what is within the limit")

    assert [len(payload) for _, payload in control.heard] == [MAX_BYTES - 1024, 5]


@pytest.mark.broker
def test_no_more_connections_than_the_fleet_has(make_shop: Callable[..., Shop]) -> None:
    shop = make_shop(more=("--devices", "1"))
    open_ones = []
    try:
        for _ in range(200):
            one = socket.create_connection(("127.0.0.1", shop.device_port))
            one.settimeout(0.05)
            open_ones.append(one)
        refused = sum(_closed(one) for one in open_ones)
    finally:
        for one in open_ones:
            one.close()

    assert refused == 200 - 65


def _closed(one: socket.socket) -> bool:
    try:
        return one.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


@pytest.mark.broker
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_no_tls_before_1_2(shop: Shop, version: ssl.TLSVersion) -> None:
    context = tls(shop.server_ca, shop.papers("a"))
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version

    with (
        socket.create_connection(("127.0.0.1", shop.device_port)) as plain,
        pytest.raises((ssl.SSLError, ConnectionResetError), match=r"VERSION|reset"),
    ):
        context.wrap_socket(plain, server_hostname="127.0.0.1")


@pytest.mark.broker
def test_a_clean_stop_keeps_what_is_retained_and_whose_it_is(shop: Shop) -> None:
    control = shop.control()
    control.say(topics.down(A, "assign"), b"for A", retain=True)

    shop.stop(signal.SIGTERM)
    shop.start()
    a, b = shop.come(shop.papers("a")), shop.come(shop.papers("b"))
    b.subscribe("#")
    a.subscribe(topics.down(A, "assign"))

    wait_for(lambda: a.heard == [(topics.down(A, "assign"), b"for A")], why="what was retained")
    assert b.heard == []


def test_secrets_are_the_brokers_alone(make_shop: Callable[..., Shop]) -> None:
    shop = make_shop(start=False)

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in shop.folder.iterdir()}
    assert stat.S_IMODE(shop.folder.stat().st_mode) == 0o700
    assert {name for name, mode in modes.items() if mode & 0o077} == {"device-ca.pem", "revoked.pem", "server.pem"}
    assert shop.password not in "".join(path.read_text() for path in shop.folder.iterdir())


def test_writing_it_again_keeps_the_password_and_the_certificate(make_shop: Callable[..., Shop]) -> None:
    shop = make_shop(start=False)
    before = (shop.password, (shop.folder / "server.pem").read_bytes(), (shop.folder / "revoked.pem").read_bytes())

    assert _again(shop, "--out", str(shop.folder)) == 0

    assert before == (
        shop.password,
        (shop.folder / "server.pem").read_bytes(),
        (shop.folder / "revoked.pem").read_bytes(),
    )


def test_a_server_with_a_broker_keeps_it(make_shop: Callable[..., Shop], capsys: pytest.CaptureFixture[str]) -> None:
    shop = make_shop(start=False)
    before = shop.settings

    code = _again(shop, "--out", str(shop.folder.parent / "other"))

    assert code == 2
    assert 'set broker = "embedded"' in capsys.readouterr().err
    assert shop.settings == before


REFUSALS = {
    "listen": ("--listen", "8883"),
    "a name": ("--listen", "localhost:8883"),
    "a port": ("--listen", "0.0.0.0:70000"),
    "devices": ("--devices", "0"),
    "ports": ("--listen", "0.0.0.0:9000", "--control", "127.0.0.1:9000"),
    "user": ("--user", "no-such-user-here"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_work_is_one_line(
    make_shop: Callable[..., Shop], capsys: pytest.CaptureFixture[str], case: str
) -> None:
    shop = make_shop(start=False)
    capsys.readouterr()

    assert _again(shop, "--out", str(shop.folder), *REFUSALS[case]) in (2, 4)

    (line,) = capsys.readouterr().err.splitlines()
    assert "expected" in line


def test_off_loopback_the_control_plane_speaks_tls(make_shop: Callable[..., Shop]) -> None:
    shop = make_shop(start=False)
    _again(shop, "--out", str(shop.folder), "--control", "0.0.0.0:8884", "--host", "broker.example")

    config = (shop.folder / "mosquitto.conf").read_text()
    control = config[config.index("# the control plane\nlistener 8884 0.0.0.0") :]
    assert "certfile" in control
    assert "cafile" not in control
    assert shop.settings.public_broker_url == "mqtts://broker.example:8884"
    assert shop.settings.device_broker_url == "mqtts://broker.example:8883"


def test_emqx_gets_the_same_rules(make_shop: Callable[..., Shop]) -> None:
    """Not run on EMQX: its configuration is read as the JSON that it is, and its rules are compared."""
    shop = make_shop(start=False)
    assert main(["--home", str(shop.home.path), "broker", "config", "emqx", "--out", str(shop.folder), *_user()]) == 0

    text = (shop.folder / "emqx.conf").read_text()
    tree = json.loads(text[text.index("{") :])
    listener = tree["listeners"]["ssl"]["default"]
    assert tree["mqtt"]["peer_cert_as_username"] == tree["mqtt"]["peer_cert_as_clientid"] == "cn"
    assert listener["ssl_options"]["cacertfile"] == str(shop.folder / "device-ca.pem")
    assert listener["ssl_options"]["verify"] == "verify_peer"
    assert listener["ssl_options"]["fail_if_no_peer_cert"] is True
    assert listener["ssl_options"]["enable_crl_check"] is True
    assert tree["authorization"]["no_match"] == "deny"
    assert [name for name in ("tcp", "ws", "wss") if tree["listeners"][name]["default"]["enable"]] == []
    acl = (shop.folder / "acl.conf").read_text()
    mosquitto = (shop.folder / "acl").read_text()
    for action, verb in (("read", "subscribe"), ("write", "publish")):
        granted = [line.split()[2] for line in mosquitto.splitlines() if line.startswith(f"pattern {action}")]
        (line,) = [line for line in acl.splitlines() if line.startswith(f"{{allow, all, {verb}")]
        assert [each.replace("%u", "${username}") for each in granted] == json.loads(line[line.index("[") : -2])
    assert acl.rstrip().endswith("{deny, all}.")


def test_a_broker_that_fetches_the_list_finds_its_address_in_each_certificate(make_shop: Callable[..., Shop]) -> None:
    shop = make_shop(start=False)
    main(["--home", str(shop.home.path), "broker", "config", "emqx", "--out", str(shop.folder), *_user()])
    plane = shop.plane()
    assert plane.settings.crl_url == "http://127.0.0.1:8080/v1/crl"

    brief = takeover.make_pass(plane, A, now=utc_now())

    points = brief.certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert [each.full_name[0].value for each in points if each.full_name] == [plane.settings.crl_url]
    served = x509.load_pem_x509_crl(bytes(get_crl(plane).body))
    assert served.is_signature_valid(load_authority(shop.home.ca, "device").key.public_key())


def _again(shop: Shop, *arguments: str) -> int:
    return main(["--home", str(shop.home.path), "broker", "config", "mosquitto", *_user(), *arguments])


def _user() -> tuple[str, str]:
    import getpass

    return "--user", getpass.getuser()
