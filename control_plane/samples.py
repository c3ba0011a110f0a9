"""Samples of inputs, taken in and handed out: stored where the signed manifest of their artifact allows them.

All others are quarantined, that is counted with the reason and not kept: what may not leave a device may not lie here
either. Who reads samples is written down before they are handed out; `control_plane.sample_retention` deletes them.
"""

import base64
import contextlib
from collections import OrderedDict
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from control_plane.builds import find_build
from control_plane.events import record
from control_plane.schema.telemetry import OutboxMark, Sample
from skerry.errors import Rejected
from skerry.wire import codec, messages
from skerry.wire.manifest import Manifest, SamplePolicy, TensorSpec
from skerry.wire.sample import Sample as Said
from skerry.wire.sample import decode_sample

if TYPE_CHECKING:
    from control_plane.plane import Plane

PAGE_ROWS = 100
"""How many samples an answer has at most: some 4 MB."""
_KEPT_POLICIES = 256
_policies: OrderedDict[str, SamplePolicy] = OrderedDict()


def take(
    plane: "Plane", session: Session, mark: OutboxMark, entry: messages.Entry, body: bytes, *, now: datetime
) -> None:
    """Store one sample or count it as quarantined; raises `Rejected` when it cannot be read."""
    said = decode_sample(body)
    reason = _reason_against(plane, session, mark.device, said)
    row = Sample(
        device=mark.device,
        epoch=mark.epoch,
        sequence=entry.sequence,
        manifest=said.manifest,
        window=said.window,
        size_bytes=said.size_bytes,
        crc=entry.crc,
        blob="" if reason else plane.blobs.put(body),
        reason=reason,
        taken_at=now,
    )
    session.add(row)
    if reason:
        text = f"{mark.device}: a sample of {said.size_bytes} bytes is quarantined and not kept: {reason}"
        record(session, "quarantine", mark.device, text, manifest=said.manifest, window=said.window, reason=reason)


def counts(session: Session) -> dict[tuple[str, str], tuple[int, int]]:
    """Return by device and epoch how many samples are stored, and how many were quarantined."""
    stored = func.count().filter(Sample.blob != "")
    query = select(Sample.device, Sample.epoch, stored, func.count()).group_by(Sample.device, Sample.epoch)
    return {(device, epoch): (kept, every - kept) for device, epoch, kept, every in session.execute(query)}


def page(
    plane: "Plane", device: str, *, manifests: Iterable[str], after: int, limit: int, by: str
) -> list[dict[str, Any]]:
    """Return stored samples of a device as JSON, with the tensors as base64: those of these manifests, by id.

    That `by` reads them is in the timeline first: what cannot be audited is not handed out.
    """
    query = select(Sample).where(Sample.device == device, Sample.blob != "", Sample.reason == "", Sample.id > after)
    query = query.where(Sample.manifest.in_(list(manifests))).order_by(Sample.id)
    found: list[dict[str, Any]] = []
    with plane.readers() as session:
        specs: dict[str, dict[str, TensorSpec]] = {}
        for row in session.scalars(query.execution_options(yield_per=PAGE_ROWS)):
            # bytes that are being deleted, or were lost, are no reason to hand out less than there is
            with contextlib.suppress(Rejected):
                body = plane.blobs.get(row.blob)
                if row.manifest not in specs:
                    specs[row.manifest] = _specs(plane, session, row.manifest)
                found.append(_tree(row, decode_sample(body), specs[row.manifest]))
            if len(found) >= min(limit, PAGE_ROWS):
                break
    if found:
        numbers = [each["id"] for each in found]
        text = f"{by} read {len(found)} samples of {device}, numbers {numbers[0]} to {numbers[-1]}"
        with plane.sessions.begin() as session:
            record(session, "samples", device, text, action="read", by=by, numbers=numbers)
    return found


def listed(session: Session, device: str, *, after: int, limit: int) -> list[dict[str, Any]]:
    """Return what is known of a device's samples without their content, by id."""
    query = select(Sample).where(Sample.device == device, Sample.id > after).order_by(Sample.id).limit(limit)
    return [
        {
            "id": row.id,
            "manifest": row.manifest,
            "window": row.window,
            "size_bytes": row.size_bytes,
            "taken_at": row.taken_at.isoformat(),
            "state": "quarantined" if not row.blob else "deleting" if row.reason else "stored",
            "reason": row.reason,
        }
        for row in session.scalars(query)
    ]


def account(session: Session, device: str) -> dict[str, int]:
    """Return how many samples of a device are stored, with their bytes, were quarantined, and are deleted by now."""
    stored, size_bytes, every = session.execute(
        select(
            func.count().filter(Sample.blob != ""),
            func.coalesce(func.sum(Sample.size_bytes).filter(Sample.blob != ""), 0),
            func.count(),
        ).where(Sample.device == device)
    ).one()
    deleted = select(func.coalesce(func.sum(OutboxMark.samples_deleted), 0)).where(OutboxMark.device == device)
    counted = {"stored": stored, "size_bytes": size_bytes, "quarantined": every - stored}
    return {**counted, "deleted": session.scalars(deleted).one()}


def _specs(plane: "Plane", session: Session, manifest: str) -> dict[str, TensorSpec]:
    known = _manifest(plane, session, manifest)
    return {spec.name: spec for spec in known.inputs} if known is not None else {}


def _tree(row: Sample, said: Said, specs: dict[str, TensorSpec]) -> dict[str, Any]:
    tensors = {}
    for name, values in said.inputs.items():
        spec = specs.get(name, TensorSpec(name, (len(values),), "uint8"))
        tensors[name] = {"dtype": spec.dtype, "shape": spec.shape, "data": base64.b64encode(values).decode()}
    return {
        "id": row.id,
        "manifest": row.manifest,
        "window": row.window,
        "prediction": said.prediction,
        "confidence": said.confidence,
        "taken_at": row.taken_at.isoformat(),
        "inputs": tensors,
    }


def _reason_against(plane: "Plane", session: Session, device: str, said: Said) -> str:
    policy = _policy(plane, session, said.manifest)
    if policy is None:
        return "its manifest is none of this project's"
    if not policy.rows_per_window:
        return "its manifest allows no samples"
    if others := sorted(said.inputs.keys() - set(policy.inputs)):
        return f"its manifest allows {', '.join(policy.inputs) or 'no input'}, got {', '.join(others)[:100]}"
    if said.size_bytes > policy.max_bytes:
        return f"its manifest allows {policy.max_bytes} bytes, got {said.size_bytes}"
    of_window = (Sample.manifest == said.manifest, Sample.device == device, Sample.window == said.window)
    stored = session.scalar(select(func.count()).where(*of_window, Sample.reason == "")) or 0
    if stored >= policy.rows_per_window:
        return f"its manifest allows {policy.rows_per_window} of a window, and those are here"
    return ""


def _policy(plane: "Plane", session: Session, manifest: str) -> SamplePolicy | None:
    # a manifest is named by its digest and never changes, so what it allows may be remembered
    if manifest not in _policies:
        known = _manifest(plane, session, manifest)
        if known is None:
            return None
        _policies[manifest] = known.samples
        if len(_policies) > _KEPT_POLICIES:
            _policies.popitem(last=False)
    return _policies.get(manifest)


def _manifest(plane: "Plane", session: Session, manifest: str) -> Manifest | None:
    build = find_build(session, manifest)
    if build is None:
        return None
    whole = build.second if build.second.startswith(manifest) else build.manifest
    try:
        return codec.decode(Manifest, plane.blobs.get(whole))
    except Rejected:
        return None
