"""The doctor on the way to the broker and to the server, with each obstacle made for real."""

import email.utils
import json
import re
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from agent.trust.floor import advance
from tests.conftest import Mosquitto
from tests.integration.agent.ailing import (
    Authority,
    Patient,
    broker_says,
    one,
    server_context,
    serving,
    web_says,
)


def broker_with(
    patient: Patient,
    answer: Callable[[socket.socket], None],
    tmp_path: Path,
    *,
    tls: bool = True,
    ends_days: float = 10,
) -> tuple[str, int, str]:
    """Return what is said of a broker that answers so."""
    context = server_context(patient.authority, tmp_path, asks=True, ends_days=ends_days) if tls else None
    with serving(answer, context=context) as port:
        patient.configure(f'broker = "mqtts://127.0.0.1:{port}"\n')
        return one(patient, "broker")


def test_a_name_without_an_address_and_a_port_without_a_listener(
    patient: Patient, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    patient.configure('broker = "mqtts://no-such-host.invalid:8883"\n')
    level, status, said = one(patient, "broker")
    assert (level, status) == ("fail", 3)
    assert "expected no-such-host.invalid to have an address" in said
    patient.configure(f'broker = "mqtts://127.0.0.1:{free_port()}"\n')
    level, status, said = one(patient, "broker")
    assert (level, status) == ("fail", 3)
    assert "Connection refused" in said


def test_a_captive_portal_is_known_by_its_http(patient: Patient, tmp_path: Path) -> None:
    level, status, said = broker_with(patient, web_says(302), tmp_path, tls=False)
    assert (level, status) == ("fail", 3)
    assert "a captive portal" in said
    # and one behind a certificate of ours, which is a wrong port
    assert "got a web server" in broker_with(patient, web_says(400), tmp_path)[2]


def test_a_broker_of_another_ca_is_not_ours(patient: Patient, tmp_path: Path) -> None:
    with serving(broker_says(0), context=server_context(Authority(), tmp_path)) as port:
        patient.configure(f'broker = "mqtts://127.0.0.1:{port}"\n')
        level, status, said = one(patient, "broker")
    assert (level, status) == ("fail", 2)
    assert "expected a certificate of the pinned CA" in said


def test_a_broker_whose_certificate_ended_by_the_floor_is_refused(patient: Patient, tmp_path: Path) -> None:
    advance(patient.folder.trust, time.time())
    level, _, said = broker_with(patient, broker_says(0), tmp_path, ends_days=-1)
    assert level == "fail"
    assert "a certificate that ended" in said


@pytest.mark.parametrize(("code", "said"), [(0x87, "Not authorized"), (0x8A, "Banned"), (0x88, "Server unavailable")])
def test_a_refusal_is_said_in_the_brokers_words(patient: Patient, tmp_path: Path, code: int, said: str) -> None:
    level, status, line = broker_with(patient, broker_says(code), tmp_path)
    assert (level, status) == ("fail", 2)
    assert said in line


def test_a_broker_that_takes_no_certificate_of_ours_is_said(patient: Patient, tmp_path: Path) -> None:
    strange = Authority()
    context = server_context(patient.authority, tmp_path)
    context.verify_mode = context.verify_mode.CERT_REQUIRED
    context.load_verify_locations(cadata=strange.pem)
    with serving(broker_says(0), context=context) as port:
        patient.configure(f'broker = "mqtts://127.0.0.1:{port}"\n')
        for running in (False, True):
            with ExitStack() as stack:
                if running:
                    stack.enter_context(patient.folder.lock())
                level, status, said = one(patient, "broker")
            assert (level, status) == ("fail", 2), said
            # the alert itself, or the end that follows it
            assert re.search("ALERT_UNKNOWN_CA|EOF|reset|closed", said), said


@pytest.mark.broker
def test_a_real_broker_lets_us_in_over_tcp_and_websockets(
    patient: Patient, make_mosquitto: Callable[..., Mosquitto], free_port: Callable[[], int]
) -> None:
    port = free_port()
    real = make_mosquitto(f"listener {port} 127.0.0.1", "protocol websockets", "allow_anonymous true")
    for url in (real.url, f"ws://127.0.0.1:{port}/mqtt"):
        patient.configure(f'broker = "{url}"\n')
        assert one(patient, "broker") == ("ok", 0, f"{url} lets us in")
    # its other port speaks MQTT alone
    patient.configure(f'broker = "ws://127.0.0.1:{real.port}/mqtt"\n')
    assert "to open a WebSocket" in one(patient, "broker")[2]


def test_the_way_leads_through_the_proxy(patient: Patient, free_port: Callable[[], int]) -> None:
    patient.configure(f'proxy = "http://127.0.0.1:{free_port()}"\n')
    for name in ("broker", "server"):
        level, status, said = one(patient, name)
        assert (level, status) == ("fail", 3)
        assert said.startswith("proxy http://127.0.0.1")


@pytest.mark.parametrize("status", [200, 503])
def test_a_server_is_reached_or_says_what_it_has(patient: Patient, tmp_path: Path, status: int) -> None:
    with serving(web_says(status), context=server_context(patient.authority, tmp_path)) as port:
        rename_server(patient, f"https://127.0.0.1:{port}")
        level, code, said = one(patient, "server")
    assert (level, code) == (("ok", 0) if status == 200 else ("fail", 3))
    assert said.startswith("https://127.0.0.1" if status == 200 else "expected the server at")


def test_the_servers_clock_is_held_against_ours(patient: Patient, tmp_path: Path) -> None:
    date = email.utils.formatdate(time.time() - 3600, usegmt=True)
    with serving(web_says(date=date), context=server_context(patient.authority, tmp_path)) as port:
        rename_server(patient, f"https://127.0.0.1:{port}")
        level, _, said = one(patient, "server")
    assert level == "warn"
    assert "our clock is 3600 s ahead of its" in said or "our clock is 3601 s ahead of its" in said


def test_an_offline_device_has_no_server(patient: Patient) -> None:
    rename_server(patient, "")
    assert one(patient, "server")[2] == "none: this device installs from bundles"


def rename_server(patient: Patient, url: str) -> None:
    """Say in the identity where the server is."""
    tree = json.loads(patient.folder.identity_file.read_bytes())
    patient.folder.identity_file.write_text(json.dumps({**tree, "server": url}))
