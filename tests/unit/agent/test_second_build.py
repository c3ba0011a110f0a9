"""Measuring two builds on a device: who may ask for it, that it is tried once, and that it is signed."""

import hashlib
import json
from base64 import b64decode
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from agent.deployment.lifecycle import Grant
from agent.deployment.second_build import Bench, Build, measure_both
from agent.identity.enrol import make_key_and_request
from agent.identity.folder import Identity
from agent.identity.signature import sign
from agent.trust.assignment import ask_child
from agent.trust.metadata import Bounds, HeldMetadata
from agent.trust.question import DIRECTOR, IMAGE, Held, Question, Verdict
from skerry.errors import Broken, Rejected
from skerry.wire import codec
from skerry.wire.enrolment import Anchor
from skerry.wire.evidence import Evidence, signed_bytes
from skerry.wire.manifest import Manifest, other_build, target_name
from skerry.wire.messages import Content, Terms
from tests.integration.agent.shore import make_artifact
from tests.tuf_repository import TufRepository, now

PATH = target_name("strokes", 1, "gateway", "manifest.json")
OTHER = target_name("strokes", 1, "gateway", "manifest.json", second=True)
SHA256 = hashlib.sha256(b"other manifest").hexdigest()


def test_the_two_builds_of_a_profile_name_each_other() -> None:
    assert (other_build(PATH), other_build(OTHER)) == (OTHER, PATH)
    assert PATH.count("/") == OTHER.count("/")
    assert [other_build(path) for path in ("", "manifest.json", "a/b/c/d/e/f")] == ["", "", ""]


def ask(folder: Path, *, listed: tuple[str, ...] = (PATH, OTHER), held: tuple[Held, ...] = (), **terms: Any) -> Verdict:
    """Return the verdict on an assignment whose image repository lists these paths."""
    data = {PATH: b"manifest", OTHER: b"other manifest"}
    image, director = TufRepository(), TufRepository()
    for path in listed:
        image.add(path, data.get(path, b"else"))
    issued = now().strftime("%Y-%m-%dT%H:%M:%SZ")
    given = Terms(device="watch-1", counter=1, issued=issued, deployment="d1", release="strokes-1", **terms)
    director.add(PATH, data[PATH], custom=asdict(given))
    for repository in (image, director):
        repository.publish()
    anchor = Anchor(project="watch", image_root=image.root.decode(), director_root=director.root.decode(), server_ca="")
    question = Question(
        anchor=anchor, device="watch-1", folder=str(folder / "trust"), clock=now().timestamp(), held=held
    )
    files = {(IMAGE, name): data for name, data in image.files.items()}
    files |= {(DIRECTOR, name): data for name, data in director.files.items()}
    return ask_child(question, HeldMetadata(files), bounds=Bounds()).of("")


def test_a_build_to_measure_is_trusted_when_both_repositories_mean_it(tmp_path: Path) -> None:
    verdict = ask(tmp_path, measure=OTHER, measure_sha256=SHA256)

    assert verdict.ok, verdict
    assert (verdict.measure_sha256, verdict.measure_length) == (SHA256, len(b"other manifest"))


def test_an_assignment_without_one_measures_nothing(tmp_path: Path) -> None:
    verdict = ask(tmp_path, measure_sha256=SHA256)

    assert (verdict.ok, verdict.measure_sha256, verdict.measure_length) == (True, "", 0)


def test_a_device_that_runs_the_second_build_is_not_told_that_it_was_revoked(tmp_path: Path) -> None:
    # a slot does not know which of the two its manifest is
    held = (Held(path=PATH, sha256=SHA256),)

    assert ask(tmp_path, held=held).listed == (SHA256,)
    assert ask(tmp_path / "revoked", held=held, listed=(PATH,)).revoked == (SHA256,)


ELSEWHERE = target_name("strokes", 2, "gateway", "manifest.json", second=True)


@pytest.mark.parametrize(
    ("listed", "terms", "words"),
    [
        ((PATH,), {"measure": OTHER, "measure_sha256": SHA256}, "expected models/strokes/1/gateway.second"),
        ((PATH, OTHER), {"measure": OTHER, "measure_sha256": "0" * 64}, "agree on its SHA-256"),
        ((PATH, OTHER), {"measure": OTHER}, "agree on its SHA-256"),
        ((PATH, ELSEWHERE), {"measure": ELSEWHERE, "measure_sha256": SHA256}, "the other build beside"),
        ((PATH,), {"measure": PATH, "measure_sha256": SHA256}, "the other build beside"),
        ((PATH,), {"measure": "x", "measure_sha256": SHA256}, "the other build beside"),
    ],
)
def test_a_build_to_measure_that_they_do_not_agree_on_refuses_the_assignment(
    tmp_path: Path, listed: tuple[str, ...], terms: dict[str, Any], words: str
) -> None:
    verdict = ask(tmp_path, listed=listed, **terms)

    assert (verdict.ok, verdict.later, verdict.measure_sha256) == (False, False, "")
    assert words in verdict.reason
    # there is a deployment to tell of the refusal
    assert verdict.terms is not None


# --- signatures


def test_a_signature_is_the_devices_own_and_over_these_very_bytes(tmp_path: Path) -> None:
    private, _ = make_key_and_request()
    file = tmp_path / "device.key"
    file.write_bytes(private)

    signature = b64decode(sign(file, b"what was measured"))

    key = serialization.load_pem_private_key(private, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    key.public_key().verify(signature, b"what was measured", ec.ECDSA(hashes.SHA256()))
    with pytest.raises(InvalidSignature):
        key.public_key().verify(signature, b"something else", ec.ECDSA(hashes.SHA256()))


def test_a_key_that_cannot_sign_is_this_machines_trouble(tmp_path: Path) -> None:
    other = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for name, data in (("empty", b""), ("other", other)):
        (tmp_path / name).write_bytes(data)
    for name in ("empty", "other", "missing"):
        with pytest.raises(Broken, match="expected one by"):
            sign(tmp_path / name, b"data")


# --- one try


class Silence:
    """A broker that retains nothing."""

    def __init__(self) -> None:
        self.asked = 0

    def fetch_retained(self, wanted: Any, *, timeout_s: float) -> dict[str, bytes]:
        assert wanted
        assert timeout_s > 0
        self.asked += 1
        return {}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A bench on a broker without an answer, of a device that can sign."""
    (tmp_path / "key").write_bytes(make_key_and_request()[0])
    return Bench(
        folder=tmp_path / "other",
        link=Silence(),
        identity=Identity("watch", "watch-1", "gateway", "onnxruntime", "x86_64", "mqtt://h", "https://h", True),
        key=tmp_path / "key",
        timeout_s=0.01,
        room_bytes=0,
        interrupted=lambda: False,
    )


def measure(bench: Bench, folder: Path, deployment: str) -> Evidence:
    """Measure, and return what was said."""
    manifest = codec.decode(Manifest, make_artifact(folder, version=1)["manifest.json"])
    grant = Grant(
        deployment=deployment,
        release="strokes-1",
        manifest="a" * 64,
        measure=OTHER,
        measure_length=9,
        measure_sha256=SHA256,
        measure_content=Content(key="", files={"manifest.json": SHA256}),
    )
    signed = measure_both(bench, grant, Build(manifest, folder / "none", b""), Rejected("golden replay: no"))
    key = serialization.load_pem_private_key(bench.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    key.public_key().verify(b64decode(signed.signature), signed_bytes(signed.text), ec.ECDSA(hashes.SHA256()))
    assert json.loads(signed.text)["v"] == 1
    return codec.decode(Evidence, signed.text.encode())


def test_what_cannot_be_fetched_is_said_and_nothing_is_left(bench: Bench, tmp_path: Path) -> None:
    evidence = measure(bench, tmp_path, "d1")

    assert "got no answer" in evidence.not_run
    assert (evidence.assigned.golden, evidence.other.golden, evidence.races) == ("failed", "not run", ())
    assert (evidence.device, evidence.deployment, evidence.simulated) == ("watch-1", "d1", True)
    assert not (bench.folder / "files").exists()


def test_a_device_that_cannot_sign_says_so_without_a_signature(bench: Bench, tmp_path: Path) -> None:
    bench.key.unlink()
    manifest = codec.decode(Manifest, make_artifact(tmp_path, version=1)["manifest.json"])
    grant = Grant(deployment="d1", release="strokes-1", manifest="a" * 64, measure=OTHER, measure_sha256=SHA256)

    assert measure_both(bench, grant, Build(manifest, tmp_path / "none", b""), Rejected("no")).signature == ""


def test_a_device_that_restarted_meanwhile_does_not_try_again_in_that_deployment(bench: Bench, tmp_path: Path) -> None:
    measure(bench, tmp_path, "d1")
    asked = bench.link.asked  # type: ignore[attr-defined] # it is the one above

    assert "got a restart meanwhile" in measure(bench, tmp_path, "d1").not_run
    assert bench.link.asked == asked  # type: ignore[attr-defined]
    assert "got no answer" in measure(bench, tmp_path, "d2").not_run
