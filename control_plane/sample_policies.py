"""Owns which inputs may leave the devices that run a model: none, unless an operator says so and offline keys sign it.

The policy of a model is written into the manifests of a release when that is staged, and beside each manifest into the
targets that are to be signed, where whoever signs can see it. What an online key signs has none: devices would not
follow it.
"""

from dataclasses import asdict, replace
from math import prod
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import events, policies
from control_plane.plane import Plane
from control_plane.refusals import Conflict
from control_plane.schema.models import Build, ModelSamples
from control_plane.schema.releases import Release
from skerry.errors import Rejected
from skerry.wire import codec
from skerry.wire.manifest import NO_SAMPLES, SAMPLES, Manifest, SamplePolicy, TensorSpec


def policy(session: Session, model: str) -> SamplePolicy:
    """Return the policy of a model: what its next release says; raises `Unknown` when there is no such model."""
    policies.check_model(session, model)
    return _policy(session, model)


def set_policy(session: Session, model: str, wanted: SamplePolicy) -> SamplePolicy:
    """Set the policy of a model for the releases that are staged from now on; what is staged or live stays as it is.

    Raises:
        Unknown: there is no such model.
        Rejected: it names no input, or allows no row or no byte of them.
        Conflict: the model's releases are signed online.
    """
    policies.check_model(session, model)
    if wanted == NO_SAMPLES:
        row = session.get(ModelSamples, model)
        if row is not None:
            session.delete(row)
        events.record(session, "samples", model, f"no inputs of {model} may leave a device from its next release on")
        return NO_SAMPLES
    if not (wanted.inputs and wanted.rows_per_window and wanted.max_bytes):
        raise Rejected(f"samples of {model}: expected rows, inputs and bytes, got {asdict(wanted)}; or allow none")
    if policies.is_automatic(session, model):
        raise Conflict(
            f"samples of {model}: expected releases that offline keys sign, got the policy automatic; "
            f"first: skerry model policy {model} manual"
        )
    session.merge(ModelSamples(model=model, **asdict(wanted) | {"inputs": list(wanted.inputs)}))
    text = f"from its next release on, devices may send {shown(wanted)} of {model}"
    events.record(session, "samples", model, text, **asdict(wanted))
    return wanted


def write(plane: Plane, session: Session, build: Build) -> None:
    """Make the manifests of a build that is about to be listed say what its model's policy is.

    Raises:
        Rejected: the build has no such inputs, or they could never be as small as the policy wants them.
    """
    wanted = NO_SAMPLES if policies.is_automatic(session, build.model) else _policy(session, build.model)
    if wanted == written(build):
        return
    second = build.report.get("second") or {}
    if second.get("manifest"):
        second = {**second, "manifest": _rewritten(plane, str(second["manifest"]), wanted)}
    build.manifest = _rewritten(plane, build.manifest, wanted)
    build.report = {**build.report, "second": second, SAMPLES: asdict(wanted)}


def written(build: Build) -> SamplePolicy:
    """Return what the manifests of a build say."""
    said = build.report.get(SAMPLES)
    return codec.from_tree(SamplePolicy, {**said, "inputs": list(said["inputs"])}) if said else NO_SAMPLES


def custom(build: Build) -> dict[str, Any]:
    """Return what stands beside the manifests of a build in the targets; empty where nothing may leave a device."""
    said = written(build)
    return {"custom": {SAMPLES: {**asdict(said), "inputs": list(said.inputs)}}} if said != NO_SAMPLES else {}


def of_release(session: Session, release: Release) -> dict[str, dict[str, Any]]:
    """Return by profile what may leave the devices that run a release; profiles that allow nothing are not in it."""
    builds = select(Build).where(Build.model == release.model, Build.version == release.version)
    found = {build.profile: written(build) for build in session.scalars(builds.order_by(Build.profile))}
    return {profile: asdict(said) for profile, said in found.items() if said != NO_SAMPLES}


def shown(said: SamplePolicy) -> str:
    """Return a policy in words."""
    return f"{said.rows_per_window} rows of a window, {', '.join(said.inputs)}, {said.max_bytes} bytes of each at most"


def _policy(session: Session, model: str) -> SamplePolicy:
    row = session.get(ModelSamples, model)
    return SamplePolicy(row.rows_per_window, tuple(row.inputs), row.max_bytes) if row is not None else NO_SAMPLES


def _rewritten(plane: Plane, sha256: str, wanted: SamplePolicy) -> str:
    manifest = codec.decode(Manifest, plane.blobs.get(sha256))
    specs = {spec.name: spec for spec in manifest.inputs}
    what = f"samples of {manifest.model} for {manifest.profile}"
    if missing := [name for name in wanted.inputs if name not in specs]:
        raise Rejected(f"{what}: expected inputs out of {', '.join(specs)}, got {', '.join(missing)[:200]}")
    least = sum(_size(specs[name]) for name in wanted.inputs)
    if least > wanted.max_bytes:
        raise Rejected(f"{what}: expected at least {least} bytes for a row of them, got {wanted.max_bytes}; allow more")
    return plane.blobs.put(codec.encode(replace(manifest, samples=wanted)))


def _size(spec: TensorSpec) -> int:
    """Return how many bytes one row of an input takes; the bits of a number are in the name of its type."""
    bits = "".join(filter(str.isdecimal, spec.dtype))
    return prod(spec.shape) * max(int(bits or 8) // 8, 1)
