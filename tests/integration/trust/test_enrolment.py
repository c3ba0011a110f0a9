"""Devices join over HTTPS: the anchor, the claim token, the certificate."""

import hashlib
import json
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from skerry.wire.join import parse_join


@pytest.fixture(scope="module")
def csr() -> str:
    """Return a device's signing request."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def invite(server: Any, **grants: Any) -> str:
    """Return the token of a fresh join string."""
    answer = server.post("/v1/devices/invite", {"profile": "x86-64-gateway", **grants})
    return parse_join(answer["join"]).token


def enrol(server: Any, token: str, csr: str, **more: Any) -> tuple[int, Any]:
    """Claim as a device."""
    claim = {"token": token, "csr": csr, "profile": "x86-64-gateway", **more}
    answer: tuple[int, Any] = server.ask_securely("POST", "/v1/enrol", claim)
    return answer


def test_a_join_string_pins_the_anchor_and_the_anchor_the_server(shared: Any) -> None:
    join = parse_join(shared.post("/v1/devices/invite", {"profile": "x86-64-gateway"})["join"])

    _, anchor = shared.ask_securely("GET", "/v1/anchor")
    canonical = json.dumps(anchor, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert hashlib.sha256(canonical).hexdigest() == join.anchor_sha256
    assert anchor["server_ca"] == (shared.home / "ca" / "server-ca.pem").read_text()
    assert join.url == f"https://127.0.0.1:{shared.port}"


def test_a_device_gets_the_name_that_was_granted_and_a_certificate_for_it(shared: Any, csr: str) -> None:
    status, enrolled = enrol(shared, invite(shared, name="wearer-8"), csr)

    assert status == 200
    certificate = x509.load_pem_x509_certificate(enrolled["certificate"].encode())
    (name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert name.value == "watch.wearer-8"
    authority = x509.load_pem_x509_certificate((shared.home / "ca" / "device-ca.pem").read_bytes())
    certificate.verify_directly_issued_by(authority)
    assert enrolled["broker"] == f"mqtt://127.0.0.1:{shared.broker_port}"
    assert (enrolled["architecture"], enrolled["runtime"]) == ("x86_64", "onnxruntime")


def test_a_wrong_token_is_refused_in_one_line(shared: Any, csr: str) -> None:
    status, answer = enrol(shared, "wrong", csr)

    assert status == 403
    assert answer["detail"].startswith("token: expected one that this server gave out, got another")
    assert "\n" not in answer["detail"]


def test_a_token_is_good_for_one_use(shared: Any, csr: str) -> None:
    token = invite(shared)
    assert enrol(shared, token, csr)[0] == 200

    status, answer = enrol(shared, token, csr)

    assert status == 403
    assert "used up" in answer["detail"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"profile": "arm64-board"}, "expected x86-64-gateway, which this token is for"),
        ({"architecture": "riscv64"}, "architecture"),
        ({"runtimes": ["litert"]}, "install it first"),
        ({"csr": "no request"}, "certificate signing request"),
    ],
)
def test_a_refused_claim_spends_nothing(shared: Any, csr: str, more: dict[str, Any], said: str) -> None:
    token = invite(shared)

    status, answer = enrol(shared, token, **({"csr": csr} | more))

    assert status == 422
    assert said in answer["detail"]
    assert enrol(shared, token, csr)[0] == 200


def test_a_simulated_device_may_be_of_another_architecture(shared: Any, csr: str) -> None:
    assert enrol(shared, invite(shared), csr, architecture="riscv64", simulated=True)[0] == 200


def test_an_unknown_profile_is_refused_when_inviting(shared: Any) -> None:
    status, answer = shared.ask("POST", "/v1/devices/invite", {"profile": "toaster"})

    assert status == 422
    assert "x86-64-gateway" in answer["detail"]


def test_a_profile_without_an_agent_is_refused_when_inviting(shared: Any) -> None:
    assert shared.ask("POST", "/v1/devices/invite", {"profile": "cortex-m"})[0] == 422
