"""Owns releases: staging the next targets metadata, collecting offline signatures over it, publishing it.

A staged release is unsigned targets metadata that lists what is published now plus all files of the passed builds of
one model version. Operators sign its canonical bytes offline; when the root's threshold for `targets` is met it is
published and the release is live. Should another release be published in between, this one is staged again.
"""

from securesystemslib.exceptions import Error as KeyLibraryError
from securesystemslib.signer import Signature
from sqlalchemy import select
from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata, TargetFile, Targets
from tuf.api.serialization.json import CanonicalJSONSerializer

from control_plane import events, image_repository, tuf_rows
from control_plane.keys import TARGETS_LIFE
from control_plane.plane import Plane
from control_plane.refusals import Conflict, Forbidden, Unknown
from control_plane.schema import Build, ModelVersion, Release
from skerry.errors import Rejected
from skerry.wire.manifest import target_name
from skerry.wire.topics import check_name

MANIFEST = "manifest.json"
_STAGED = "staged"


def release_name(model: str, version: int) -> str:
    """Return the name of the release of a model version."""
    return check_name(f"{model}-{version}", "release")


def stage(plane: Plane, session: Session, *, model: str, version: int) -> Release:
    """Stage the passed builds of a model version as a release; staging one again replaces its payload.

    Raises:
        Unknown: there is no such model version, or no ceremony was held.
        Conflict: the release is live or revoked already.
        Rejected: none of its builds passed the gate.
    """
    if session.get(ModelVersion, (model, version)) is None:
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
    published = image_repository.targets(session)
    listed = dict(published.targets)
    for build in builds:
        listed |= _list_build(plane, build)
    targets = Targets(version=published.version + 1, expires=tuf_rows.from_now(now, TARGETS_LIFE), targets=listed)
    payload = _stage(session, name, targets)

    if release is None:
        release = Release(name=name, model=model, version=version, state=_STAGED, payload=payload, created_at=now)
        session.add(release)
    else:
        release.payload = payload
    profiles = sorted(build.profile for build in builds)
    events.record(session, "release", name, f"{name} is staged for {', '.join(profiles)}", profiles=profiles)
    return release


def get(session: Session, name: str) -> Release:
    """Return a release; raises `Unknown`."""
    release = session.get(Release, name)
    if release is None:
        raise Unknown(f"release: expected one of `skerry release list`, got {name!r}")
    return release


def signatures(session: Session, name: str) -> tuple[list[str], int]:
    """Return the key ids that have signed a release so far, and how many the root asks for."""
    threshold = image_repository.root(session).roles[Targets.type].threshold
    if not tuf_rows.exists(session, _repository(name), Targets.type):
        return [], threshold
    return list(_staged(session, name).signatures), threshold


def add_signature(plane: Plane, session: Session, name: str, *, keyid: str, sig: str) -> Release:
    """Take one offline signature; with the threshold met, publish the metadata: the release is live.

    A signature that comes after that changes nothing. After the commit call `publisher.announce_release`.

    Raises:
        Unknown: there is no such release.
        Forbidden: the key is not one of the root's targets keys, or the signature is not its own.
        Conflict: another release was published since this one was staged.
    """
    release = get(session, name)
    _check_signature(image_repository.root(session).roles[Targets.type].keyids, session, release, keyid=keyid, sig=sig)
    if release.state != _STAGED:
        return release

    staged = _staged(session, name)
    staged.signatures[keyid] = Signature(keyid, sig)
    tuf_rows.write(session, _repository(name), Targets.type, staged.to_bytes())
    root = image_repository.root(session)
    if not root.get_verification_result(Targets.type, staged.signed_bytes, staged.signatures):
        threshold = root.roles[Targets.type].threshold
        signed = len(staged.signatures)
        events.record(session, "release", name, f"{name} has {signed} of {threshold} signatures", signatures=signed)
        return release

    now = plane.clock()
    image_repository.publish_targets(session, plane.signers, staged, now=now)
    tuf_rows.delete(session, _repository(name), Targets.type)
    release.state = "live"
    release.live_at = now
    events.record(session, "release", name, f"{name} is signed and live", targets=staged.signed.version)
    return release


def target_path(release: Release, profile: str) -> str:
    """Return the target that a device of `profile` is assigned: the manifest of its artifact."""
    return target_name(release.model, release.version, profile, MANIFEST)


def blobs(session: Session, release: Release) -> dict[str, int]:
    """Return the files of a live release as listed: SHA-256 to length."""
    prefix = f"models/{release.model}/{release.version}/"
    listed = image_repository.targets(session).targets.values()
    return {target.hashes["sha256"]: target.length for target in listed if target.path.startswith(prefix)}


def _list_build(plane: Plane, build: Build) -> dict[str, TargetFile]:
    """Return the target entries of a build, and of the second one beside it where the gate kept two."""
    second = build.report.get("second") or {}
    # noted here and not when it was compiled: what is not listed cannot be assigned
    build.second = str(second.get("manifest", ""))
    kept = [(False, build.manifest, build.files)]
    if build.second:
        kept.append((True, build.second, second["files"]))
    listed = {}
    for is_second, manifest, files in kept:
        for name, sha256 in {**files, MANIFEST: manifest}.items():
            path = target_name(build.model, build.version, build.profile, name, second=is_second)
            listed[path] = TargetFile(len(plane.blobs.get(sha256)), {"sha256": sha256}, path)
    return listed


def _stage(session: Session, name: str, targets: Targets) -> bytes:
    payload = CanonicalJSONSerializer().serialize(targets)
    tuf_rows.write(session, _repository(name), Targets.type, Metadata(targets).to_bytes())
    return payload


def _staged(session: Session, name: str) -> Metadata[Targets]:
    return tuf_rows.read_as(Targets, session, _repository(name), Targets.type)


def _check_signature(allowed: list[str], session: Session, release: Release, *, keyid: str, sig: str) -> None:
    if keyid not in allowed:
        raise Forbidden(f"release {release.name}: expected a targets key of the root, got {keyid!r:.80}")
    key = image_repository.root(session).get_key(keyid)
    try:
        key.verify_signature(Signature(keyid, sig), release.payload)
    except (KeyLibraryError, ValueError) as error:
        raise Forbidden(
            f"release {release.name}: expected a signature of its payload by {keyid[:8]}, got another; "
            "fetch the payload again and sign that"
        ) from error


def _repository(name: str) -> str:
    return f"staged/{name}"
