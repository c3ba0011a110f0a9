"""Owns releases: what of a model version is listed, who signs that, and what follows when it is signed or revoked.

A staged release is an edit of the published targets (`control_plane.staging`) that adds all files of the passed builds
of one model version; a revocation is one that takes them away. When the root's threshold for `targets` is met it is
published, and the release is live or revoked. Should another change be published in between, its bytes change, and it
has to be signed again.

The releases of a model whose policy is `automatic` are signed by its own online key instead, at once: within the paths
and until the end that the offline keys granted.
"""

from collections.abc import Callable

from sqlalchemy import select
from sqlalchemy.orm import Session
from tuf.api.metadata import TargetFile, Targets

from control_plane import (
    approval,
    bill,
    delegated,
    events,
    image_repository,
    policies,
    provenance,
    retention,
    rollouts,
    sample_policies,
    staging,
)
from control_plane.making import MANIFEST, Making, makings_of
from control_plane.plane import Plane
from control_plane.refusals import Conflict, Unknown
from control_plane.schema.models import Build, ModelVersion
from control_plane.schema.releases import Release
from skerry.errors import Rejected
from skerry.wire.manifest import target_name
from skerry.wire.topics import check_name

STAGED_AS = "release"
REVOKED_AS = "revocation"
Writer = Callable[[Making], bytes]
DOCUMENTS: dict[str, Writer] = {bill.FILE: bill.bill_of_materials, provenance.FILE: provenance.provenance}
"""Targets that describe a build and are for people: no manifest names them, no device fetches them."""
_STAGED = "staged"


def release_name(model: str, version: int) -> str:
    """Return the name of the release of a model version."""
    return check_name(f"{model}-{version}", "release")


def stage(plane: Plane, session: Session, *, model: str, version: int) -> Release:
    """Stage the passed builds of a model version as a release; staging one again replaces what is to be signed.

    Where the model's policy is `automatic` it is live at once: after the commit call `publisher.announce_release`.

    Raises:
        Unknown: there is no such model version, or no ceremony was held.
        Conflict: the release is live or revoked already, or the policy is automatic and nobody granted that.
        Rejected: none of its builds passed the gate, or one has no such inputs as may leave devices.
    """
    row = session.get(ModelVersion, (model, version))
    if row is None:
        raise Unknown(f"release: expected a trained model version, got {model} {version}")
    name = release_name(model, version)
    release = session.get(Release, name)
    if release is not None and release.state != _STAGED:
        raise Conflict(f"release {name}: expected none yet, got one that is {release.state}; train a new version")
    builds = session.scalars(
        select(Build).where(Build.model == model, Build.version == version, Build.gate == "passed")
    ).all()
    if not builds:
        raise Rejected(
            f"release {name}: expected a build that passed its gate, got none; compile {model} {version} first"
        )

    now = plane.clock()
    files: dict[str, TargetFile] = {}
    for build in builds:
        files |= _list_build(plane, session, row, build)
    profiles = sorted(build.profile for build in builds)
    retention.check_room(plane, session, name, lengths=retention.fetched(files), model=model)
    if release is None:
        release = Release(name=name, model=model, version=version, state=_STAGED, role=Targets.type, created_at=now)
        session.add(release)
    if policies.is_automatic(session, model):
        staging.discard(session, STAGED_AS, name)
        _sign_online(plane, session, release, files)
        return release
    payload = staging.stage(session, STAGED_AS, name, staging.Edit(add=staging.listed(files)), now=now)
    retention.check_message(plane, name, len(payload))
    events.record(session, "release", name, f"{name} is staged for {', '.join(profiles)}", profiles=profiles)
    return release


def revoke(plane: Plane, session: Session, name: str) -> Release:
    """Stage the revocation of a live release: targets without its files, to be signed like a release.

    What no offline key has signed needs none to go: a staged release, and one of the policy `automatic`, are revoked at
    once. After the commit of that call `publisher.announce_revocation`.

    Raises:
        Unknown: there is no such release.
        Conflict: it is revoked already.
    """
    release = get(session, name)
    if release.state == "revoked":
        raise Conflict(f"release {name}: expected one that is not revoked, got one that is since {release.revoked_at}")
    if release.state == _STAGED:
        staging.discard(session, STAGED_AS, name)
        _is_revoked(plane, session, release)
    elif release.role != Targets.type:
        role = release.role
        listed = image_repository.automatic_targets(session, role)
        kept = {path: file for path, file in listed.items() if not path.startswith(_folder(release))}
        image_repository.publish_automatic(session, plane.signers, release.model, kept, now=plane.clock())
        _is_revoked(plane, session, release)
    else:
        staging.stage(session, REVOKED_AS, name, staging.Edit(drop=(_folder(release),)), now=plane.clock())
        events.record(session, "release", name, f"the revocation of {name} is staged: it needs signatures")
    return release


def get(session: Session, name: str) -> Release:
    """Return a release; raises `Unknown`."""
    release = session.get(Release, name)
    if release is None:
        raise Unknown(f"release: expected one of `skerry release list`, got {name!r}")
    return release


def waits_as(session: Session, release: Release) -> str:
    """Return what of a release waits for signatures: the kind of its staged change, or nothing."""
    kind = STAGED_AS if release.state == _STAGED else REVOKED_AS
    return kind if staging.exists(session, kind, release.name) else ""


def payload(session: Session, name: str) -> bytes:
    """Return the bytes to sign now; raises `Unknown` when nothing of the release waits for signatures."""
    return staging.payload(session, _kind(session, name), name)


def signatures(session: Session, name: str) -> tuple[list[str], int]:
    """Return the key ids that have signed what waits, and how many the root asks for."""
    return staging.signatures(session, waits_as(session, get(session, name)), name)


def add_signature(plane: Plane, session: Session, name: str, *, keyid: str, sig: str) -> Release:
    """Take one offline signature; with the threshold met, publish the metadata: the release is live, or revoked.

    A signature that comes after that changes nothing. After the commit call the publisher's `announce_release` or
    `announce_revocation`.

    Raises:
        Unknown: there is no such release.
        Forbidden: the key is not one of the root's targets keys, or the signature is not its own, of this payload:
            another change may have been published since.
    """
    release = get(session, name)
    kind = waits_as(session, release)
    if kind:
        then = published if kind == STAGED_AS else revoked
        staging.add_signature(plane, session, kind, name, keyid=keyid, sig=sig, then=then)
    return release


def approval_of(plane: Plane, session: Session, name: str) -> approval.Approval:
    """Return what waits for signatures as a file that can be signed elsewhere; raises `Unknown` when nothing waits."""
    return staging.approval_of(plane, session, _kind(session, name), name)


def published(plane: Plane, session: Session, name: str, targets: Targets) -> None:
    """Take note that a release is listed now; what `staging` calls."""
    release = get(session, name)
    release.state, release.live_at = "live", plane.clock()
    events.record(session, "release", name, f"{name} is signed and live", targets=targets.version)


def withdrawn(plane: Plane, session: Session, model: str) -> None:
    """Take note that a model's online key may sign nothing any more: what it signed is listed no more, so revoked."""
    signed = select(Release).where(Release.state == "live", Release.role == delegated.role_name(model))
    for release in session.scalars(signed):
        _is_revoked(plane, session, release)


def revoked(plane: Plane, session: Session, name: str, targets: Targets) -> None:  # noqa: ARG001 -- what `staging` hands over
    """Take note that a release is listed no more; what `staging` calls."""
    _is_revoked(plane, session, get(session, name))


def target_path(release: Release, profile: str) -> str:
    """Return the target that a device of `profile` is assigned: the manifest of its artifact."""
    return target_name(release.model, release.version, profile, MANIFEST)


def document(plane: Plane, session: Session, name: str, *, profile: str, file: str) -> bytes:
    """Return the bill of materials or the provenance of a build as it is, or is to be, signed.

    Raises:
        Unknown: there is no such release, or nothing of it for that profile, or it is listed no more.
    """
    release = get(session, name)
    path = target_name(release.model, release.version, profile, file)
    if release.state == _STAGED:
        entry = staging.get(session, STAGED_AS, name).metadata.signed.targets.get(path)
    else:
        entry = image_repository.release_targets(session, release.role).get(path)
    if entry is None:
        raise Unknown(f"release {name}: expected {file} of a profile that it was built for, got none for {profile!r}")
    return plane.blobs.get(entry.hashes["sha256"])


def _sign_online(plane: Plane, session: Session, release: Release, files: dict[str, TargetFile]) -> None:
    role = delegated.role_name(release.model)
    listed = image_repository.automatic_targets(session, role)
    image_repository.publish_automatic(session, plane.signers, release.model, listed | files, now=plane.clock())
    release.state, release.live_at, release.role = "live", plane.clock(), role
    text = f"{release.name} is signed online by {role} and live"
    events.record(session, "release", release.name, text, role=role)


def _is_revoked(plane: Plane, session: Session, release: Release) -> None:
    now = plane.clock()
    release.state, release.revoked_at = "revoked", now
    events.record(session, "release", release.name, f"{release.name} is revoked")
    rollouts.end_revoked(session, release.name, now=now)


def _kind(session: Session, name: str) -> str:
    release = get(session, name)
    kind = waits_as(session, release)
    if not kind:
        raise Unknown(f"release {name}: expected one with something to sign, got one that is {release.state}")
    return kind


def _folder(release: Release) -> str:
    return f"models/{release.model}/{release.version}/"


def _list_build(plane: Plane, session: Session, version: ModelVersion, build: Build) -> dict[str, TargetFile]:
    """Return the target entries of a build, and of the second one beside it where the gate kept two."""
    sample_policies.write(plane, session, build)
    makings = makings_of(session, version, build)
    # noted here and not when it was compiled: what is not listed cannot be assigned
    build.second = makings[1].files[MANIFEST] if len(makings) > 1 else ""
    listed: dict[str, TargetFile] = {}
    for making in makings:
        documents = {name: plane.blobs.put(write(making)) for name, write in DOCUMENTS.items()}
        for name, sha256 in {**making.files, **documents}.items():
            path = making.path(name)
            more = sample_policies.custom(build) if name == MANIFEST else {}
            listed[path] = TargetFile(len(plane.blobs.get(sha256)), {"sha256": sha256}, path, more)
    return listed
