"""What canary devices say of two builds, taken in: verified by the device's own key, kept as it was signed.

What cannot be verified is told in the timeline and counts for nothing. The first that holds stays: a device that lost
power in between says it again, and by then without having measured.
"""

from base64 import b64decode

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy.orm import Session

from control_plane.events import record
from control_plane.schema.devices import Device
from control_plane.schema.releases import Deployment
from skerry.errors import Rejected
from skerry.wire import codec
from skerry.wire.evidence import Evidence, SignedEvidence, signed_bytes

MAX_BYTES = 64 * 1024


def take(session: Session, device: str, body: bytes) -> None:
    """Keep the evidence in an outbox entry with the deployment that it is of; raises `Rejected` when it cannot be read.

    One that is forged, unsigned or of something that the device was not asked about is left out, with an event.
    """
    signed = codec.decode(SignedEvidence, body, limit=MAX_BYTES)
    try:
        said = _verified(session.get_one(Device, device), signed)
        deployment = _asked(session, said, device)
    except Rejected as refusal:
        record(session, "refused", device, f"{device}: evidence of two builds left out: {refusal}")
        return
    if deployment.evidence:
        return
    deployment.evidence = {"text": signed.text, "signature": signed.signature}
    what = f"not timed: {said.not_run}" if said.not_run else f"timed in {len(said.races)} races"
    text = f"{device}: both builds of {deployment.release} are measured: {what}"
    record(session, "evidence", device, text, deployment=deployment.id, release=deployment.release)


def read(deployment: Deployment) -> Evidence | None:
    """Return what was kept with a deployment; it was verified when it was taken in."""
    return codec.decode(Evidence, deployment.evidence["text"].encode()) if deployment.evidence else None


def _verified(device: Device, signed: SignedEvidence) -> Evidence:
    """Return what was said once the device's signature holds; nothing in it is read before that."""
    if not device.public_key:
        raise Rejected("expected a device whose public key is known, got none; enrol it again")
    key = serialization.load_pem_public_key(device.public_key.encode())
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Rejected(f"expected a device with an EC key, got {type(key).__name__}; enrol it again")
    try:
        key.verify(b64decode(signed.signature, validate=True), signed_bytes(signed.text), ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, UnsupportedAlgorithm, ValueError) as error:
        got = "another" if signed.signature else "none"
        raise Rejected(f"expected a signature by the device's own key, got {got}") from error
    return codec.decode(Evidence, signed.text.encode())


def _asked(session: Session, said: Evidence, device: str) -> Deployment:
    deployment = session.get(Deployment, said.deployment)
    if said.device != device or deployment is None or deployment.device != device:
        raise Rejected(f"expected a deployment of {device}, got {said.deployment!r:.80} of {said.device!r:.80}")
    asked = (deployment.manifest, deployment.measures)
    if not deployment.measures or (said.assigned.manifest, said.other.manifest) != asked:
        raise Rejected(f"expected the two builds that {said.deployment} names, got others")
    return deployment
