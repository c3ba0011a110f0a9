"""A device that is revoked ends disconnected and stays out, on a real Mosquitto; so does whatever tries in between."""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from agent.link.address import parse_broker
from agent.link.session import Link
from agent.link.tls import Credentials
from control_plane import crl, takeover
from control_plane.authority import load_authority
from control_plane.plane import Plane, utc_now
from control_plane.schema.devices import RevokedCertificate
from skerry.errors import Broken, Unavailable
from skerry.wire import topics
from tests.integration.agent.shore import wait_for
from tests.integration.broker.conftest import Shop
from tests.integration.broker.peers import Papers, Peer, tls

pytestmark = pytest.mark.broker
A = "watch.a"
Revoke = Callable[[Plane, str, str], str]


def test_a_revoked_device_is_disconnected_and_cannot_come_back(shop: Shop, revoke: Revoke) -> None:
    mine, others = shop.papers("a"), shop.papers("b")
    a, b = shop.come(mine), shop.come(others)

    said = revoke(shop.plane(), "a", mine.serial)

    assert said == "a: its certificates are refused, and its session has ended"
    wait_for(lambda: not a.connected, why="the live session to end")
    assert shop.come(mine).refused
    assert b.connected
    assert not shop.come(shop.papers("c")).refused
    assert not shop.come(shop.papers("a")).refused, "a new certificate for the same name is another matter"


def test_an_agent_that_reconnects_all_the_time_stays_out(shop: Shop, revoke: Revoke) -> None:
    mine = shop.papers("a")
    links = [
        Link(
            parse_broker(f"mqtts://127.0.0.1:{shop.device_port}"),
            who=A,
            will=lambda: b"gone",
            credentials=Credentials(ca=shop.server_ca, certificate=mine.certificate, key=mine.key),
        )
    ]
    over = threading.Event()
    accepted: list[float] = []

    def hammer() -> None:
        while not over.is_set():
            peer = Peer(shop.device_port, context=tls(shop.server_ca, mine), client_id=A)
            if peer.connected:
                accepted.append(time.monotonic())
            peer.close()

    for link in links:
        link.start()
    thread = threading.Thread(target=hammer)
    thread.start()
    wait_for(lambda: len(accepted) > 3, why="the hammer to be let in")

    revoke(shop.plane(), "a", mine.serial)
    done = time.monotonic()
    time.sleep(3)
    over.set()
    thread.join()

    assert not [moment for moment in accepted if moment > done + 0.1]
    assert not any(link.connected for link in links)
    for link in links:
        link.stop()


def test_the_session_and_what_was_queued_for_it_are_gone(shop: Shop, revoke: Revoke) -> None:
    mine, control = shop.papers("a"), shop.control()
    a = shop.come(mine, expiry_s=3600, clean=False)
    a.subscribe(topics.down(A, "ack"))
    a.close()
    control.say(topics.down(A, "ack"), b"for the revoked")

    revoke(shop.plane(), "a", mine.serial)

    again = shop.come(shop.papers("a"), expiry_s=3600, clean=False)
    again.subscribe(topics.down(A, "ack"))
    control.say(topics.down(A, "ack"), b"for the new one")
    wait_for(lambda: again.heard, why="what is said now")
    assert again.heard == [(topics.down(A, "ack"), b"for the new one")]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_tls_session_that_was_kept_does_not_get_in_again(shop: Shop, revoke: Revoke, version: ssl.TLSVersion) -> None:
    """A resumed session skips the certificate, and the list with it, unless the broker resumes none."""
    mine = shop.papers("a")
    context = tls(shop.server_ca, mine)
    context.minimum_version = context.maximum_version = version
    let_in, kept = _shake(shop, context)
    assert let_in
    assert kept is not None

    revoke(shop.plane(), "a", mine.serial)

    assert _shake(shop, context, kept)[0] is False


def _shake(
    shop: Shop, context: ssl.SSLContext, kept: ssl.SSLSession | None = None
) -> tuple[bool, ssl.SSLSession | None]:
    """Shake hands and wait; return whether the broker stayed on the line, and the TLS session for later."""
    with socket.create_connection(("127.0.0.1", shop.device_port)) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="127.0.0.1", session=kept) as secure:
                secure.settimeout(0.5)
                with contextlib.suppress(TimeoutError):
                    return bool(secure.recv(1)), secure.session
                return True, secure.session
        except (ssl.SSLError, ConnectionResetError):
            return False, None


def test_who_shook_hands_before_and_speaks_after_is_taken_over_at_the_next_turn(shop: Shop, revoke: Revoke) -> None:
    mine, plane = shop.papers("a"), shop.plane()
    a = _half_open(shop, mine, lambda: revoke(plane, "a", mine.serial))
    assert a.connected, "this is the gap that the next turn closes; where it is none, so much the better"

    crl.keep(plane)

    wait_for(lambda: not a.connected, why="the latecomer to be thrown out")
    assert shop.come(mine).refused


def _half_open(shop: Shop, mine: Papers, meanwhile: Callable[[], object]) -> Peer:
    """Return a peer whose TLS handshake came before `meanwhile`, and its first packet after it."""

    class Waiting(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            meanwhile()

    context = tls(shop.server_ca, mine)
    context.sslsocket_class = Waiting
    return Peer(shop.device_port, context=context, client_id=A)


def test_two_lists_of_one_second_are_both_taken(shop: Shop, revoke: Revoke) -> None:
    """OpenSSL prefers the newer of two lists, to the second."""
    plane = shop.plane()
    first, second, third = (shop.papers(name) for name in ("a", "b", "c"))

    for device, each in (("a", first), ("b", second), ("c", third)):
        revoke(plane, device, each.serial)

    assert [shop.come(each).refused for each in (first, second, third)] == [True, True, True]


def test_a_restarted_broker_still_knows(shop: Shop, revoke: Revoke) -> None:
    mine, others = shop.papers("a"), shop.papers("b")
    revoke(shop.plane(), "a", mine.serial)

    shop.stop()
    shop.start()

    assert shop.come(mine).refused
    assert not shop.come(others).refused


def test_the_list_outlives_every_certificate_and_is_renewed_daily(shop: Shop, revoke: Revoke) -> None:
    mine, plane = shop.papers("a"), shop.plane()
    revoke(plane, "a", mine.serial)
    first = _list(shop)

    crl.keep(plane)
    same = _list(shop)
    late = utc_now() + timedelta(days=2)
    crl.keep(_at(plane, late))
    renewed = _list(shop)

    assert first.next_update_utc == load_authority(shop.home.ca, "device").certificate.not_valid_after_utc
    assert same == first
    assert renewed.last_update_utc == (late - crl.BACK_DATED).replace(microsecond=0)
    assert int(mine.serial, 16) in {entry.serial_number for entry in renewed}
    crl.keep(_at(plane, utc_now() + timedelta(days=40)))
    assert not list(_list(shop)), "what has ended by itself is dropped"


def test_a_list_that_is_damaged_or_gone_is_written_again(shop: Shop) -> None:
    plane = shop.plane()
    for damage in (lambda path: path.write_bytes(b"garbage"), Path.unlink):
        damage(shop.folder / crl.FILE)

        crl.keep(plane)

        assert _list(shop).is_signature_valid(load_authority(shop.home.ca, "device").key.public_key())
    assert not shop.come(shop.papers("a")).refused


def test_the_brokers_own_certificate_is_renewed_and_taken_without_a_restart(shop: Shop) -> None:
    plane = shop.plane()
    old = (shop.folder / "server.pem").read_bytes()
    a = shop.come(shop.papers("a"))

    crl.keep(_at(plane, utc_now() + timedelta(days=400)))

    new = x509.load_pem_x509_certificate((shop.folder / "server.pem").read_bytes())
    assert (shop.folder / "server.pem").read_bytes() != old
    assert a.connected
    wait_for(lambda: _shown_serial(shop) == new.serial_number, why="the new certificate to be shown")


def test_a_broker_that_is_not_told_is_named(shop: Shop, revoke: Revoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crl, "RELOAD_TIMEOUT_S", 0.5)
    mine = shop.papers("a")
    plane = _with(shop.plane(), broker_reload="true")

    with pytest.raises(Unavailable, match="expected it to take the new revocation list"):
        revoke(plane, "a", mine.serial)


def test_a_command_that_fails_is_one_line(shop: Shop, revoke: Revoke) -> None:
    plane = _with(shop.plane(), broker_reload="sh -c 'echo no such unit >&2; exit 5'")

    with pytest.raises(Broken, match="got exit 5: no such unit"):
        revoke(plane, "a", shop.papers("a").serial)


def test_a_command_makes_the_broker_read_its_files(shop: Shop, revoke: Revoke) -> None:
    assert shop.process is not None
    mine = shop.papers("a")
    plane = _with(shop.plane(), broker_reload=f"kill -HUP {shop.process.pid}")
    (shop.folder / crl.PID_FILE).unlink()

    revoke(plane, "a", mine.serial)

    assert shop.come(mine).refused


def test_the_number_of_another_process_is_left_alone(shop: Shop) -> None:
    import os

    (shop.folder / crl.PID_FILE).write_text(str(os.getpid()))

    crl._reload(shop.plane())  # SIGHUP would end this test


def test_a_broker_that_is_down_shuts_out_when_it_is_back(shop: Shop, revoke: Revoke) -> None:
    mine = shop.papers("a")
    shop.stop()

    with pytest.raises(Unavailable, match="start it"):
        revoke(shop.plane(), "a", mine.serial)
    shop.start()

    assert shop.come(mine).refused


def test_what_could_not_be_finished_is_finished_at_the_next_turn(
    shop: Shop, revoke: Revoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, plane = shop.papers("a"), shop.plane()
    a = shop.come(mine)
    with pytest.raises(Broken, match="broker_reload"):
        revoke(_with(plane, broker_reload="false"), "a", mine.serial)
    assert a.connected, "the broker has not heard of it"

    monkeypatch.setattr(crl, "FIRST_PACKET_WITHIN", timedelta())
    crl.keep(plane)

    wait_for(lambda: not a.connected, why="the session to end")
    assert shop.come(mine).refused
    monkeypatch.setattr(crl, "_reload", lambda _plane: pytest.fail("expected nothing left to do"))
    crl.keep(plane)


def test_a_revocation_that_nobody_told_the_broker_of_is_found(shop: Shop) -> None:
    mine, plane = shop.papers("a"), shop.plane()
    a = shop.come(mine)
    with plane.sessions.begin() as session:
        ends = plane.clock() + timedelta(days=9)
        session.add(RevokedCertificate(serial=mine.serial, device="a", expires=ends, revoked_at=plane.clock()))

    crl.keep(plane)

    wait_for(lambda: not a.connected, why="the session to end")
    assert shop.come(mine).refused


def test_the_key_of_a_takeover_is_nowhere_afterwards(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))

    takeover.end_session(shop.plane(), "a")

    assert list(scratch.iterdir()) == []


def _list(shop: Shop) -> x509.CertificateRevocationList:
    return x509.load_pem_x509_crl((shop.folder / crl.FILE).read_bytes())


def _shown_serial(shop: Shop) -> int:
    pem = ssl.get_server_certificate(("127.0.0.1", shop.device_port))
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


def _at(plane: Plane, moment: object) -> Plane:
    from dataclasses import replace

    return replace(plane, clock=lambda: moment)  # type: ignore[arg-type, return-value]


def _with(plane: Plane, **changes: str) -> Plane:
    from dataclasses import replace

    return replace(plane, settings=replace(plane.settings, **changes))  # type: ignore[arg-type]
