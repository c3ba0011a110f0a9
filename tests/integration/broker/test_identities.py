"""No device is anyone else, on a Mosquitto from Debian with the generated configuration.

Mosquitto grants every SUBSCRIBE, so what counts is what is delivered.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from skerry.wire import topics
from tests.integration.agent.shore import wait_for
from tests.integration.broker.conftest import Shop
from tests.integration.broker.peers import Papers, new_key, papers

pytestmark = pytest.mark.broker
A, B = "watch.a", "watch.b"
NOT_AUTHORISED = 0x87
GREEDY = ("#", "+/#", "skerry/#", "skerry/1/d/#", "skerry/1/d/+/down/+", topics.down(B, "assign"), "$SYS/#")


def hear_both(shop: Shop, *filters: str) -> list[tuple[str, bytes]]:
    """Let the control plane speak to B, then to A, while A listens to `filters`; return what A heard until its own."""
    control, a = shop.control(), shop.come(shop.papers("a"))
    a.subscribe(*filters, topics.down(A, "ack"))
    for topic in (topics.down(B, "assign"), topics.down(B, "ack"), topics.down(A, "ack")):
        control.say(topic, topic.encode())
    wait_for(lambda: any(topic == topics.down(A, "ack") for topic, _ in a.heard), why="what is A's own")
    return a.heard


def test_a_device_says_and_hears_what_is_its_own(shop: Shop) -> None:
    control, a = shop.control(), shop.come(shop.papers("a"))
    control.subscribe(*topics.UP_FILTERS)
    a.subscribe(topics.down(A, "assign"), topics.tuf("watch", "index"), topics.blob("ab", 0))

    assert a.say(topics.up(A, "outbox"), b"counts") == 0
    for topic in (topics.down(A, "assign"), topics.tuf("watch", "index"), topics.blob("ab", 0)):
        assert control.say(topic, topic.encode(), retain=True) == 0

    wait_for(lambda: (topics.up(A, "outbox"), b"counts") in control.heard, why="the device to be heard")
    wait_for(lambda: len(a.heard) == 3, why="all three")


def test_a_device_cannot_publish_as_another(shop: Shop) -> None:
    control, a = shop.control(), shop.come(shop.papers("a"), client_id=B, user=B)
    control.subscribe("#")

    refusals = {
        topic: a.say(topic)
        for topic in (
            topics.up(B, "reported"),
            topics.up(B, "outbox"),
            topics.down(B, "assign"),
            topics.down(A, "assign"),
            topics.tuf("watch", "index"),
            topics.blob("ab", 0),
            "anything",
        )
    }
    assert a.say(topics.up(A, "outbox")) == 0
    wait_for(lambda: control.heard, why="what is A's own")

    assert set(refusals.values()) == {NOT_AUTHORISED}
    assert [topic for topic, _ in control.heard] == [topics.up(A, "outbox")]


@pytest.mark.parametrize("filters", [(each,) for each in GREEDY] + [GREEDY], ids=lambda each: " ".join(each)[:40])
def test_a_device_is_delivered_nothing_of_anothers(shop: Shop, filters: tuple[str, ...]) -> None:
    heard = hear_both(shop, *filters)

    assert {topic for topic, _ in heard} == {topics.down(A, "ack")}


def test_nothing_that_was_retained_for_another_is_delivered(shop: Shop) -> None:
    control = shop.control()
    control.say(topics.down(B, "assign"), b"for B", retain=True)
    control.say(topics.tuf("watch", "index"), b"for all", retain=True)
    b = shop.come(shop.papers("b"))
    b.say(topics.up(B, "reported"), b"of B", retain=True)
    a = shop.come(shop.papers("a"))

    a.subscribe(*GREEDY)
    a.subscribe(topics.tuf("watch", "index"))

    wait_for(lambda: a.heard, why="the index")
    assert {topic for topic, _ in a.heard} == {topics.tuf("watch", "index")}


def test_a_shared_subscription_takes_nothing_from_another(shop: Shop) -> None:
    control, a, b = shop.control(), shop.come(shop.papers("a")), shop.come(shop.papers("b"))
    b.subscribe(topics.down(B, "ack"))
    a.subscribe(f"$share/all/{topics.down(B, 'ack')}", topics.down(A, "ack"))

    for number in range(20):
        control.say(topics.down(B, "ack"), str(number).encode())
    control.say(topics.down(A, "ack"))

    wait_for(lambda: len(b.heard) == 20 and a.heard, why="all that is B's, and what is A's")
    assert [topic for topic, _ in a.heard] == [topics.down(A, "ack")]


def test_a_device_cannot_evict_another_by_its_client_id(shop: Shop) -> None:
    b = shop.come(shop.papers("b"), client_id=B)
    control = shop.control(client_id=f"control-plane:{shop.settings.project}")
    for claimed in (B, f"control-plane:{shop.settings.project}"):
        a = shop.come(shop.papers("a"), client_id=claimed, user=claimed)
        a.subscribe(topics.down(A, "ack"))
        a.close()

    # the session of A was under A's own name: when that has ended, nobody hears
    wait_for(lambda: control.say(topics.down(A, "ack")) == 0x10, why="the session of A to end")
    assert b.say(topics.up(B, "outbox")) in (0, 0x10)
    assert b.connected
    assert control.connected


def test_a_device_that_calls_itself_anything_is_what_its_certificate_says(shop: Shop) -> None:
    control = shop.control()
    control.subscribe(*topics.UP_FILTERS)

    a = shop.come(shop.papers("a"), client_id="whoever", user="control-plane", password=shop.password)

    assert a.say(topics.down(B, "assign")) == NOT_AUTHORISED
    assert a.say(topics.up(A, "outbox")) == 0


def server_papers(shop: Shop, folder: Path) -> Papers:
    """Return the broker's own certificate, which is of the server CA."""
    return Papers(shop.folder / "server.pem", shop.folder / "server.key", "")


def papers_of_the_server_ca(shop: Shop, folder: Path) -> Papers:
    """Return a device's certificate, but of the server CA."""
    return papers(shop.home.ca, A, folder, authority="server")


def self_signed(shop: Shop, folder: Path) -> Papers:
    """Return a certificate that a device has signed itself."""
    from control_plane.authority import make_authorities

    (folder / "ca").mkdir()
    make_authorities(folder / "ca", "watch")
    return papers(folder / "ca", A, folder)


def of_a_device(shop: Shop, folder: Path) -> Papers:
    """Return a certificate that another device has signed with its own, as if it were a CA."""
    (folder / "ca").mkdir()
    a = shop.papers("a")
    shutil.copy(a.certificate, folder / "ca" / "device-ca.pem")
    shutil.copy(a.key, folder / "ca" / "device-ca.key")
    forged = papers(folder / "ca", B, folder)
    forged.certificate.write_text(forged.certificate.read_text() + a.certificate.read_text())
    return forged


STRANGERS = {
    "nothing": lambda _shop, _folder: None,
    "the broker's own certificate": server_papers,
    "a certificate of the server's CA": papers_of_the_server_ca,
    "a self-signed CA's certificate": self_signed,
    "a certificate signed by a device": of_a_device,
}


@pytest.mark.parametrize("shown", STRANGERS)
def test_a_stranger_is_refused(shop: Shop, tmp_path: Path, shown: str) -> None:
    folder = tmp_path / "stranger"
    folder.mkdir()

    assert shop.come(STRANGERS[shown](shop, folder), client_id=A, user=A).refused
    assert not shop.come(shop.papers("a")).refused, "the broker lets devices in"


def test_a_device_of_another_project_is_refused(make_shop: Callable[..., Shop]) -> None:
    ours, theirs = make_shop(), make_shop(project="clock")

    assert ours.come(theirs.papers("a", project="clock")).refused
    assert ours.come(theirs.papers("a", project="watch")).refused, "whatever name its CA gave it"


def test_the_control_planes_listener_wants_its_password(shop: Shop) -> None:
    assert shop.control(user="", password=None).refused
    assert shop.control(password="wrong").refused
    assert shop.control(user="watch.a").refused
    assert not shop.control().refused


def test_the_control_plane_may_say_what_is_its_and_nothing_else(shop: Shop) -> None:
    control = shop.control()

    assert control.say(topics.up(A, "outbox")) == NOT_AUTHORISED
    assert control.say("skerry/1/tuf/clock/index") == NOT_AUTHORISED
    assert control.say("anything") == NOT_AUTHORISED
    assert control.say(topics.down(A, "ack")) == 0x10


def test_a_key_without_its_certificate_is_nothing(shop: Shop, tmp_path: Path) -> None:
    import ssl

    new_key(tmp_path / "key.pem")

    with pytest.raises(ssl.SSLError, match="KEY_VALUES_MISMATCH"):
        shop.come(Papers(shop.papers("b").certificate, tmp_path / "key.pem", ""))
