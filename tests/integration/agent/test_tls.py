"""TLS of a device whose clock may lie, against real servers with certificates of odd validity.

A clock that is ahead sees certificates that have ended, one that is behind some that have not begun: so here the
certificates are odd and the clock is right.
"""

import http.client
import ssl
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from agent.link.address import parse_broker
from agent.link.session import Link
from agent.link.tls import Credentials, Expired, client_context
from tests.authority import DAY, NOW, YEARS, Authority, make_authority, serving
from tests.conftest import wait_for_port
from tests.integration.agent.shore import wait_for


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """A CA of the test's own."""
    return make_authority(tmp_path / "ca")


VALIDITY = {
    # what a right clock sees as: (begins, ends, floor), and whether the device talks to it
    "good": (NOW - DAY, NOW + DAY, NOW - DAY, True),
    "not begun, for a clock in 1970 sees it so": (NOW + 9 * YEARS, NOW + 10 * YEARS, NOW - DAY, True),
    "ended, for a clock ten years ahead sees it so": (NOW - 11 * YEARS, NOW - 10 * YEARS, NOW - 10.5 * YEARS, True),
    "ended, and no floor yet": (NOW - 2 * YEARS, NOW - YEARS, datetime.fromtimestamp(0, UTC), True),
    "ended a second after the floor": (NOW - YEARS, NOW - DAY, NOW - DAY - timedelta(seconds=1), True),
    "ended at the floor": (NOW - YEARS, NOW - DAY, NOW - DAY, False),
    "ended before the floor": (NOW - YEARS, NOW - 2 * DAY, NOW - DAY, False),
    "ended before the floor, which is ahead of the clock": (NOW - YEARS, NOW + DAY, NOW + 2 * DAY, False),
}


@pytest.mark.parametrize("case", VALIDITY)
def test_validity_is_judged_by_the_floor_and_not_by_the_clock(authority: Authority, case: str) -> None:
    begins, ends, floor, talks = VALIDITY[case]
    with serving(authority.certify(begins, ends)) as (port, received):
        context = client_context(authority.pem, floor=floor.timestamp())

        assert _get(port, context) == (b"ok" if talks else b"")

    assert [each for each in received if each] == ([received[0]] if talks else []), "nothing is said to who is refused"


def _get(port: int, context: ssl.SSLContext) -> bytes:
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read()
    except Expired:
        return b""
    finally:
        connection.close()


def test_the_chain_the_name_and_the_purpose_are_verified_all_the_same(authority: Authority, tmp_path: Path) -> None:
    stranger = make_authority(tmp_path / "stranger")
    year = (NOW - DAY, NOW + YEARS)
    refused = {
        "another CA": stranger.certify(*year),
        "another host": authority.certify(*year, host="127.0.0.2"),
        "another purpose": authority.certify(*year, purpose=ExtendedKeyUsageOID.CLIENT_AUTH),
    }

    for case, files in refused.items():
        with serving(files) as (port, _), pytest.raises(ssl.SSLCertVerificationError) as refusal:
            _get(port, client_context(authority.pem))
        assert not isinstance(refusal.value, Expired), case


def test_no_protocol_before_tls_1_2(authority: Authority) -> None:
    assert client_context(authority.pem).minimum_version >= ssl.TLSVersion.TLSv1_2


def test_a_ca_that_is_none_is_refused() -> None:
    with pytest.raises(ssl.SSLError):
        client_context("garbage")


@pytest.mark.broker
@pytest.mark.parametrize("case", VALIDITY)
def test_the_link_to_the_broker_judges_likewise(
    authority: Authority, mosquitto: Any, tmp_path: Path, free_port: Callable[[], int], case: str
) -> None:
    begins, ends, floor, talks = VALIDITY[case]
    certificate, key = authority.certify(begins, ends)
    ours = authority.certify(NOW - DAY, NOW + DAY, purpose=ExtendedKeyUsageOID.CLIENT_AUTH)
    (tmp_path / "ca.pem").write_text(authority.pem)
    port, config = free_port(), tmp_path / "tls.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\ncafile {tmp_path}/ca.pem\ncertfile {certificate}\nkeyfile {key}\n"
        "require_certificate true\nallow_anonymous true\nuser root\n"
    )
    link = Link(
        parse_broker(f"mqtts://127.0.0.1:{port}"),
        who="watch.a",
        will=lambda: b"gone",
        credentials=Credentials(ca=tmp_path / "ca.pem", certificate=ours[0], key=ours[1]),
        floor=floor.timestamp,
    )
    with subprocess.Popen([mosquitto.program, "-c", str(config)], stderr=subprocess.DEVNULL) as process:
        try:
            wait_for_port(port)
            problem = link._connect_once()
            if talks:
                assert problem == ""
                wait_for(lambda: link.connected, why="a connection")
            else:
                assert problem.startswith("expected a certificate of its CA, got: a certificate that ended")
        finally:
            link._let_go()
            process.terminate()
