"""Decides what the broker shall retain: the chunks of releases that somebody may fetch, within what the broker allows.

A live release needs its chunks while it is the newest of its model, while a rollout of it is open or a device on its
way to it, and for a day after a device asked for them in vain. All others are cleared: whoever comes late asks, and
they are published once for all. Where the broker has no room for a release, its devices fetch it over HTTPS alone.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session
from tuf.api.metadata import TargetFile

from control_plane import bill, components, deltas, image_repository, provenance
from control_plane.builds import find_build
from control_plane.plane import Plane
from control_plane.schema.delivery import Publication, SealedArtifact
from control_plane.schema.devices import Device
from control_plane.schema.models import Build
from control_plane.schema.releases import Deployment, Release, Rollout
from control_plane.transport import Load, blob_load, excess, preset_of
from firmware_profiles.loader import list_profiles, load_profile
from skerry.errors import Rejected
from skerry.wire.manifest import sealed_length

ASKED_FOR = timedelta(days=1)
_FOR_PEOPLE = frozenset({bill.FILE, provenance.FILE})
_NOT_UNDER_WAY = ("waiting", "left-out", "committed", "failed")


@dataclass(frozen=True, slots=True)
class Room:
    """Releases that the broker holds and those that it has no room for, and the load of the former."""

    held: tuple[str, ...]
    over: tuple[str, ...]
    load: Load


def needed(session: Session, *, now: datetime, succeeded: str = "") -> list[str]:
    """Return the live releases whose chunks somebody may fetch: those on their way first, then the newest.

    `succeeded` names a model whose newest release is still to come.
    """
    newest_first = (Release.live_at.desc(), Release.version.desc())
    live = list(session.scalars(select(Release).where(Release.state == "live").order_by(*newest_first)))
    newest: dict[str, str] = {succeeded: ""} if succeeded else {}
    for release in live:
        newest.setdefault(release.model, release.name)
    urgent = _urgent(session, now)
    wanted = [release.name for release in live if release.name in urgent]
    wanted += [release.name for release in live if release.name in newest.values() and release.name not in urgent]
    return wanted


def room(plane: Plane, session: Session, *, first: str = "") -> Room:
    """Say which of the needed releases the broker has room for; `first` is one that is needed before all others."""
    preset = preset_of(plane.settings)
    names = needed(session, now=plane.clock())
    held, over, load = [], [], Load()
    for name in dict.fromkeys([*([first] if first else []), *names]):
        with_it = load + release_load(plane, session, session.get_one(Release, name))
        if excess(preset, with_it):
            over.append(name)
        else:
            held.append(name)
            load = with_it
    return Room(tuple(held), tuple(over), load)


def holds(plane: Plane, session: Session, release: Release) -> bool:
    """Say whether the broker has room for the chunks of a release."""
    preset = preset_of(plane.settings)
    if not excess(preset, release_load(plane, session, release)):
        # the quick answer, for it is asked for each device: most brokers have room for all there is
        lengths = session.scalars(select(Publication.length))
        everything = sum(map(blob_load, lengths), release_load(plane, session, release))
        if not excess(preset, everything):
            return True
    return release.name in room(plane, session).held


def check_room(plane: Plane, session: Session, name: str, *, lengths: Mapping[str, int], model: str) -> None:
    """Refuse a new release of a model that the broker has no room for beside what is needed.

    `lengths` are those of the files that devices fetch, by SHA-256.

    Raises:
        Rejected: it has none, and the settings do not send such releases over HTTPS.
    """
    if plane.settings.over_budget == "https":
        return
    preset = preset_of(plane.settings)
    own = sum((blob_load(sealed_length(length)) for length in lengths.values()), Load())
    others = [each for each in needed(session, now=plane.clock(), succeeded=model) if each != name]
    beside = sum((release_load(plane, session, session.get_one(Release, each)) for each in others), Load())
    if too_much := excess(preset, own + beside):
        raise Rejected(
            f"release {name}: expected {too_much} ({own.messages} messages, {own.bytes / 1e6:.1f} MB of it, "
            f"beside {beside.messages} of {len(others)} others) on a broker of the preset {preset.name}; end rollouts "
            'or revoke releases, or set over_budget = "https" or another broker_preset in settings.toml'
        )


def check_message(plane: Plane, release: str, length: int) -> None:
    """Refuse a release whose metadata would be longer than the broker's longest message; raises `Rejected`."""
    preset = preset_of(plane.settings)
    if length > preset.message_bytes:
        raise Rejected(
            f"release {release}: expected metadata of at most {preset.message_bytes} bytes on a broker of the preset "
            f"{preset.name}, got {length}; revoke releases that no device runs"
        )


def manifests_of(session: Session, release: Release, *, fetched: bool = False) -> list[str]:
    """Return the manifests of the artifacts of a release: of all, or of those that an agent can fetch."""
    builds = select(Build.profile, Build.manifest, Build.second).where(
        Build.model == release.model, Build.version == release.version, Build.manifest != ""
    )
    rows = [row for row in session.execute(builds.order_by(Build.profile)) if not fetched or _has_agent(row.profile)]
    return [manifest for row in rows for manifest in (row.manifest, row.second) if manifest]


# read once: profiles change with the program alone; a microcontroller's firmware brings its model along
@functools.cache
def _has_agent(profile: str) -> bool:
    return profile not in list_profiles() or load_profile(profile).agent


def blobs(session: Session, release: Release) -> dict[str, int]:
    """Return the files of a live release that devices fetch, as listed: SHA-256 to length."""
    folder = f"models/{release.model}/{release.version}/"
    listed = image_repository.release_targets(session, release.role)
    return fetched({path: target for path, target in listed.items() if path.startswith(folder)})


def fetched(files: Mapping[str, TargetFile]) -> dict[str, int]:
    """Return what devices fetch of the targets of a release: SHA-256 to length."""
    return {
        target.hashes["sha256"]: target.length
        for path, target in files.items()
        if path.rpartition("/")[2] not in _FOR_PEOPLE
    }


def sources(session: Session) -> set[str]:
    """Return the SHA-256 of the files that enrolled devices have, as far as they said so."""
    queries = [query.where(Device.state == "enrolled").distinct() for _, query in components.reporting()]
    manifests = {str(manifest) for query in queries for manifest in session.scalars(query) if manifest}
    found = [(find_build(session, manifest), manifest) for manifest in sorted(manifests)]
    return {sha256 for build, manifest in found if build for sha256 in deltas.files_of(build, manifest).values()}


def release_load(plane: Plane, session: Session, release: Release) -> Load:
    """Return what a release lays on a broker, without its deltas: those come where there is room."""
    total = Load()
    seen: set[str] = set()
    for manifest in manifests_of(session, release, fetched=True):
        sealed = session.get(SealedArtifact, manifest)
        if sealed is not None:
            for sha256 in set(sealed.files.values()) - seen:
                total += blob_load(_size(plane, sha256))
            seen |= set(sealed.files.values())
            continue
        build = find_build(session, manifest)
        files = {**deltas.files_of(build, manifest), "": manifest} if build is not None else {}
        for sha256 in files.values():
            total += blob_load(sealed_length(_size(plane, sha256)))
    return total


def _size(plane: Plane, sha256: str) -> int:
    # one that is lost cannot be published either
    return plane.blobs.size(sha256) if plane.blobs.exists(sha256) else 0


def _urgent(session: Session, now: datetime) -> set[str]:
    open_rollouts = select(Rollout.release).where(Rollout.state.in_(("running", "paused")))
    under_way = select(Deployment.release).where(Deployment.state.not_in(_NOT_UNDER_WAY))
    asked = select(Publication.release).where(Publication.asked_at > now - ASKED_FOR)
    return {name for query in (open_rollouts, under_way, asked) for name in session.scalars(query.distinct())}
