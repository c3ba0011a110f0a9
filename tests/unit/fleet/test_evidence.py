"""What canaries say of two builds: kept when the device's own key vouches for it, and told in any other case."""

import base64
import json
import zlib
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import select

from control_plane import evidence
from control_plane.ingest import handle
from control_plane.plane import Plane
from control_plane.schema.devices import Device
from control_plane.schema.releases import Deployment, Release, Rollout
from control_plane.schema.telemetry import Gap
from control_plane.schema.work import Event
from skerry.wire import codec, messages, topics
from skerry.wire.evidence import BuildRun, Evidence, Race, SignedEvidence, signed_bytes

KEY, STRANGER = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
SAID = Evidence(
    device="gull",
    deployment="r1-1",
    release="moves-1",
    assigned=BuildRun("a" * 64, "passed", latency_p50_us=90, peak_rss_bytes=1 << 20),
    other=BuildRun("b" * 64, "passed", latency_p50_us=30, peak_rss_bytes=1 << 20),
    races=(Race(assigned_us=(90.0, 91.0), other_us=(30.0, 31.0)),),
    runtime="litert 2.1.0",
    architecture="aarch64",
)


@pytest.fixture
def asked(plane: Plane) -> Plane:
    """Return a control plane that has asked gull to measure two builds."""
    with plane.sessions.begin() as session:
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        pem = KEY.public_key().public_bytes(serialization.Encoding.PEM, form).decode()
        session.get_one(Device, "gull").public_key = pem
        now = plane.clock()
        session.add(Release(name="moves-1", model="moves", version=1, state="live", created_at=now))
        session.add(Rollout(id=1, release="moves-1", state="running", created_at=now))
        session.flush()
        for number, measures in ((1, "b" * 64), (2, "")):
            session.add(
                Deployment(
                    id=f"r1-{number}",
                    rollout=1,
                    wave=1,
                    device="gull",
                    release="moves-1",
                    manifest="a" * 64,
                    state="staged",
                    measures=measures,
                )
            )
    return plane


def signed(said: Evidence, key: ec.EllipticCurvePrivateKey = KEY) -> SignedEvidence:
    """Return evidence as a device signs it."""
    text = codec.encode(said).decode()
    signature = key.sign(signed_bytes(text), ec.ECDSA(hashes.SHA256()))
    return SignedEvidence(text=text, signature=base64.b64encode(signature).decode())


def say(plane: Plane, body: bytes, *, sequence: int = 1) -> None:
    """Let gull say it."""
    entry = messages.Entry(
        sequence=sequence, kind="evidence", event_time=1.0, crc=zlib.crc32(body), body=base64.b64encode(body).decode()
    )
    payload = codec.encode(messages.Outbox(epoch="e1", entries=(entry,)))
    (reply,) = handle(plane, topics.up(topics.identity("watch", "gull"), "outbox"), payload)
    # whatever it is worth, it was heard
    assert codec.decode(messages.Ack, reply.payload).up_to == sequence


def kept(plane: Plane, deployment: str = "r1-1") -> Evidence | None:
    """Return what was kept of a deployment."""
    with plane.readers() as session:
        return evidence.read(session.get_one(Deployment, deployment))


def told(plane: Plane, kind: str) -> list[str]:
    """Return the texts of the events of a kind."""
    with plane.readers() as session:
        return list(session.scalars(select(Event.text).where(Event.kind == kind)))


def test_evidence_is_kept_as_it_was_signed_and_the_first_one_stays(asked: Plane) -> None:
    first = signed(SAID)
    say(asked, codec.encode(first))
    say(asked, codec.encode(signed(replace(SAID, races=(), not_run="a restart"))), sequence=2)

    assert kept(asked) == SAID
    with asked.readers() as session:
        row = session.get_one(Deployment, "r1-1").evidence
    KEY.public_key().verify(base64.b64decode(row["signature"]), signed_bytes(row["text"]), ec.ECDSA(hashes.SHA256()))
    assert told(asked, "evidence") == ["gull: both builds of moves-1 are measured: timed in 1 races"]


REFUSED = {
    "another's signature": (signed(SAID, STRANGER), "by the device's own key, got another"),
    "no signature": (replace(signed(SAID), signature=""), "got none"),
    "no base64": (replace(signed(SAID), signature="!"), "got another"),
    "other words under the signature": (
        replace(signed(SAID), text=codec.encode(replace(SAID, not_run="nothing")).decode()),
        "got another",
    ),
    "another device": (signed(replace(SAID, device="auk")), "expected a deployment of gull"),
    "another deployment": (signed(replace(SAID, deployment="r9-9")), "expected a deployment of gull"),
    "a deployment that measures nothing": (signed(replace(SAID, deployment="r1-2")), "expected the two builds"),
    "other builds": (signed(replace(SAID, other=BuildRun("c" * 64, "passed"))), "expected the two builds"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_evidence_that_is_not_vouched_for_is_left_out_and_told(asked: Plane, case: str) -> None:
    forged, words = REFUSED[case]
    say(asked, codec.encode(forged))

    assert kept(asked) is None
    assert kept(asked, "r1-2") is None
    (text,) = told(asked, "refused")
    assert words in text


def test_a_signature_for_another_purpose_is_none_of_evidence(asked: Plane) -> None:
    text = codec.encode(SAID).decode()
    bare = KEY.sign(text.encode(), ec.ECDSA(hashes.SHA256()))
    say(asked, codec.encode(SignedEvidence(text=text, signature=base64.b64encode(bare).decode())))
    assert kept(asked) is None


def test_a_device_whose_key_is_not_known_is_told_to_enrol_again(asked: Plane) -> None:
    with asked.sessions.begin() as session:
        session.get_one(Device, "gull").public_key = ""
    say(asked, codec.encode(signed(SAID)))
    assert "enrol it again" in told(asked, "refused")[0]


@pytest.mark.parametrize(
    "changed",
    [
        {"races": [{"assigned_us": [0.0], "other_us": [1.0]}]},
        {"races": [{"assigned_us": [1.0, 2.0], "other_us": [1.0]}]},
        {"races": [{"assigned_us": [], "other_us": []}]},
        {"races": [{"assigned_us": [1.0], "other_us": [1.0]}] * 9},
        {"assigned": {"manifest": "a" * 64, "golden": "surely"}},
        {"races": 7},
    ],
)
def test_figures_that_cannot_be_are_left_out_even_when_they_are_signed(
    asked: Plane, changed: dict[str, object]
) -> None:
    text = json.dumps(json.loads(codec.encode(SAID)) | changed)
    signature = KEY.sign(signed_bytes(text), ec.ECDSA(hashes.SHA256()))
    say(asked, codec.encode(SignedEvidence(text=text, signature=base64.b64encode(signature).decode())))
    assert kept(asked) is None
    assert len(told(asked, "refused")) == 1


def test_a_body_that_cannot_be_read_is_a_gap_like_any_other(asked: Plane) -> None:
    say(asked, b"{")
    with asked.readers() as session:
        assert [gap.kind for gap in session.scalars(select(Gap))] == ["evidence"]
