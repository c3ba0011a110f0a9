"""A device that measures both builds of its profile, on a real broker, and signs what it found."""

import hashlib
from base64 import b64decode

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from skerry.wire import codec, topics
from skerry.wire.evidence import Evidence, SignedEvidence, signed_bytes
from tests.integration.agent.shore import Device, Shore, wait_for

BROKERS = pytest.mark.parametrize(
    "broker_port", ["embedded", pytest.param("mosquitto", marks=pytest.mark.broker)], indirect=True
)
SLOW, FAST = {"layers": 6}, {"layers": 0}


@pytest.fixture
def key(device: Device) -> ec.EllipticCurvePublicKey:
    """Return the public half of the device's key."""
    loaded = serialization.load_pem_private_key((device.folder / "device.key").read_bytes(), None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    return loaded.public_key()


def heard(shore: Shore, device: Device) -> list[SignedEvidence]:
    """Return what the device said of two builds."""
    return [codec.decode(SignedEvidence, body) for body in shore.bodies(device.name, "evidence")]


def said(shore: Shore, device: Device) -> Evidence:
    """Return the one evidence of the device."""
    (signed,) = wait_for(lambda: heard(shore, device), why="evidence")
    return codec.decode(Evidence, signed.text.encode())


@BROKERS
def test_both_builds_are_measured_signed_and_the_other_one_is_deleted(
    shore: Shore, device: Device, key: ec.EllipticCurvePublicKey
) -> None:
    shore.release(1, **SLOW, second=FAST)
    deployment = shore.assign(device.name, 1, measure=True)
    device.start()

    end = shore.ends(device.name, deployment, timeout_s=60)

    assert end.state == "committed", end
    evidence = said(shore, device)
    assert (evidence.assigned.golden, evidence.other.golden) == ("passed", "passed")
    digests = [hashlib.sha256(each[1]["manifest.json"]).hexdigest() for each in (shore.artifacts, shore.seconds)]
    assert [evidence.assigned.manifest, evidence.other.manifest] == digests
    assert (evidence.device, evidence.deployment) == (device.name, deployment)
    assert evidence.runtime.startswith("onnxruntime ")
    assert min(evidence.assigned.peak_rss_bytes, evidence.other.peak_rss_bytes) > 1 << 20
    assert len(evidence.races) == 4
    # six layers of 512 by 512 against none
    assert all(sum(race.assigned_us) > 3 * sum(race.other_us) for race in evidence.races)
    (signed,) = heard(shore, device)
    key.verify(b64decode(signed.signature), signed_bytes(signed.text), ec.ECDSA(hashes.SHA256()))
    wait_for(lambda: not (device.folder / "other").exists(), why="the other build to be deleted")


def test_a_missing_blob_of_the_other_build_stops_nothing_and_is_said(
    shore: Shore, device: Device, key: ec.EllipticCurvePublicKey
) -> None:
    shore.release(1, second=FAST | {"wrong_golden": True})
    shore.say(topics.blob(shore.sealed[1, True]["golden.npz"], 0), b"")
    deployment = shore.assign(device.name, 1, measure=True)
    device.start()

    assert shore.ends(device.name, deployment, timeout_s=60).state == "committed"
    evidence = said(shore, device)
    assert (evidence.assigned.golden, evidence.other.golden, evidence.races) == ("passed", "not run", ())
    assert "golden.npz" in evidence.not_run


def test_a_build_that_fails_its_golden_vectors_says_so_of_itself_and_of_the_other(
    shore: Shore, device: Device, key: ec.EllipticCurvePublicKey
) -> None:
    shore.release(1, wrong_golden=True, second=FAST)
    deployment = shore.assign(device.name, 1, measure=True)
    device.start()

    assert shore.ends(device.name, deployment, timeout_s=60).state == "failed"
    evidence = said(shore, device)
    assert (evidence.assigned.golden, evidence.other.golden) == ("failed", "passed")
    assert "golden replay" in evidence.assigned.reason


def test_another_build_that_is_not_listed_is_refused_with_the_reason(shore: Shore, device: Device) -> None:
    shore.release(1, second=FAST)
    deployment = shore.assign(device.name, 1, measure=True, measure_sha256="0" * 64)
    device.start()

    end = shore.ends(device.name, deployment)

    assert end.state == "failed"
    assert "agree on its SHA-256" in end.reason
