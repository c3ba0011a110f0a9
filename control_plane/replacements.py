"""Replaces revoked releases on devices: each that runs one is assigned the next older good one, by a reconciler.

A device gets one replacement for each revoked release, as a deployment that belongs to no rollout. It is told by what
it reports, so one that was away when the release was revoked gets its replacement when it is back. Devices that were
assigned the release and have not got there are called back too. Where nothing older is left the device is left as it
is, and an alarm says so: what to run instead is then a person's decision.
"""

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import and_, select
from sqlalchemy.orm import Session

from control_plane import components, director, events, groups
from control_plane.rollouts import OFFLINE
from control_plane.schema.devices import Device
from control_plane.schema.models import Build
from control_plane.schema.releases import Deployment, Release
from skerry.errors import SkerryError
from skerry.wire import codec, topics
from skerry.wire.manifest import target_name
from skerry.wire.messages import Assign, Terms

if TYPE_CHECKING:
    from control_plane.plane import Plane

# in one turn of the clock: each is a transaction of its own, for signing holds up whoever else writes
MAX_DEVICES = 50
MAX_RETRIES = 5
_NOT_UNDER_WAY = ("waiting", "left-out", "committed", "failed")


@dataclass(frozen=True, slots=True)
class Good:
    """A build for the device's profile of a live release of the model; `online` when an online key signed that.

    `second` is the build that stays beside the one that the gate chose.
    """

    release: str
    version: int
    manifest: str
    online: bool = False
    second: bool = False


def choose(good: Iterable[Good], *, running: str, revoked_version: int, refuses_online: bool) -> Good | None:
    """Return what a device is to run instead of a revoked version: what it runs if that is good, else the next older.

    `running` is the digest of the manifest that it reports. Of two builds of a release the first in `good` is taken.
    """
    allowed = [each for each in good if not (each.online and refuses_online)]
    kept = next((each for each in allowed if each.manifest == running), None)
    older = [each for each in allowed if each.version < revoked_version]
    return kept or max(older, key=lambda each: each.version, default=None)


def reconcile(plane: "Plane", now: datetime) -> int:
    """Replace revoked releases on devices that have or were assigned one; return how many were assigned another.

    Called twice with nothing new in between, the second call does nothing and returns 0.
    """
    with plane.readers() as session:
        names = set(session.scalars(select(Release.name).where(Release.state == "revoked")))
        if not names:
            return 0
        due, tried = _affected(session, names)
    # what could not be done a moment ago is not what others wait for; the clock takes all of it in turn
    first = int(now.timestamp()) % max(1, len(tried))
    done = 0
    for device, release in [*due[:MAX_DEVICES], *(tried[first:] + tried[:first])[:MAX_RETRIES]]:
        if plane.stopping.is_set():
            break
        with plane.sessions.begin() as session:
            message = _replace(plane, session, session.get_one(Device, device), session.get_one(Release, release), now)
        if message is not None:
            topic = topics.down(topics.identity(plane.settings.project, device), "assign")
            plane.outgoing.publish(topic, codec.encode(message), retain=True)
            done += 1
    return done


def _affected(session: Session, revoked: Collection[str]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return (device, revoked release) where a replacement is due: for the first time, and where one could not be made.

    Devices are asked for by what they report, so that each is looked at once however many releases are revoked.
    """
    made = {name: release for release, build in _builds(session, revoked) for name in _manifests(build)}
    found = [
        (device, made[manifest])
        for reported, running in components.reporting(Device.name)
        for manifest, device in session.execute(running.where(Device.state == "enrolled", reported.in_(made)))
    ]

    under_way = (
        select(Deployment.device, Deployment.release)
        .join(Device, Device.name == Deployment.device)
        .where(Device.state == "enrolled", Deployment.release.in_(revoked), Deployment.state.not_in(_NOT_UNDER_WAY))
    )
    found += [(device, release) for device, release in session.execute(under_way)]

    replacements = select(Deployment.device, Deployment.replaces, Deployment.state)
    states = {
        (device, release): state
        for device, release, state in session.execute(replacements.where(Deployment.replaces.in_(revoked)))
    }
    due = sorted(set(found))
    return [each for each in due if each not in states], [each for each in due if states.get(each) == "waiting"]


def _builds(session: Session, revoked: Collection[str]) -> list[tuple[str, Build]]:
    builds = select(Release.name, Build).join(
        Build, and_(Build.model == Release.model, Build.version == Release.version)
    )
    return [(name, build) for name, build in session.execute(builds.where(Release.name.in_(revoked)))]


def _manifests(build: Build) -> list[str]:
    """The manifests of a build: of the artifact, and of the second one that may stay beside it."""
    return [name for name in (build.manifest, build.second) if name]


def _replace(plane: "Plane", session: Session, device: Device, revoked: Release, now: datetime) -> Assign | None:
    for stopped in session.scalars(
        select(Deployment).where(
            Deployment.device == device.name,
            Deployment.release == revoked.name,
            Deployment.state.not_in(_NOT_UNDER_WAY),
        )
    ):
        stopped.state, stopped.reason, stopped.ended_at = "failed", "the release was revoked", now

    component = components.component_for(session, device.name, revoked.model)
    running = components.running(session, device, component)
    refuses = groups.rule(session, device.group).refuse_automatic
    found = choose(
        _good(session, revoked.model, device.profile),
        running=running,
        revoked_version=revoked.version,
        refuses_online=refuses,
    )
    deployment = _deployment(session, device, revoked)
    deployment.component = component
    if found is None:
        deployment.state, deployment.ended_at = "left-out", now
        deployment.reason = f"no older release of {revoked.model} is good"
        text = f"{device.name} has {revoked.name}, which is revoked, and there is no older good release for it"
        events.record(session, "alarm", device.name, text, release=revoked.name)
        return None

    deployment.release, deployment.manifest = found.release, found.manifest
    try:
        with session.begin_nested():
            message = _assign(plane, session, device, deployment, revoked.model, found)
    except SkerryError as error:
        # tried again at the next turn, and told once
        if deployment.reason != str(error):
            deployment.reason = str(error)
            events.record(
                session, "alarm", device.name, f"{device.name} keeps {revoked.name}, which is revoked: {error}"
            )
        return None
    deployment.assigned_at, deployment.reason = now, f"{revoked.name} was revoked"
    deployment.state = "assigned"
    if found.manifest == running:
        deployment.state, deployment.ended_at = "committed", now
    text = f"{device.name}: {revoked.name} was revoked, {found.release} is assigned instead"
    events.record(
        session, "deployment", device.name, text, deployment=deployment.id, release=found.release, replaces=revoked.name
    )
    return message


def _assign(
    plane: "Plane", session: Session, device: Device, deployment: Deployment, model: str, found: Good
) -> Assign:
    # the director fills in the counter and the time
    terms = Terms(
        device=device.name,
        counter=0,
        issued="",
        deployment=deployment.id,
        release=found.release,
        rollback=True,
        component=deployment.component,
    )
    target = target_name(model, found.version, device.profile, "manifest.json", second=found.second)
    return director.assign(plane, session, device=device.name, terms=terms, target=target)


def _deployment(session: Session, device: Device, revoked: Release) -> Deployment:
    """The one deployment that replaces a release on a device: its name is made of both, so there is never a second."""
    name = "x" + hashlib.sha256(f"{device.name}/{revoked.name}".encode()).hexdigest()[:24]
    deployment = session.get(Deployment, name)
    if deployment is None:
        deployment = Deployment(
            id=name,
            device=device.name,
            release=revoked.name,
            replaces=revoked.name,
            manifest="",
            state="waiting",
            reason="",
        )
        session.add(deployment)
    return deployment


def _good(session: Session, model: str, profile: str) -> list[Good]:
    live = (
        select(Release, Build)
        .join(Build, and_(Build.model == Release.model, Build.version == Release.version))
        .where(Release.model == model, Release.state == "live", Build.profile == profile, Build.manifest != "")
    )
    return [
        Good(release.name, release.version, manifest, online=release.role != OFFLINE, second=manifest == build.second)
        for release, build in session.execute(live)
        # the one that the first devices chose before the other
        for manifest in sorted(_manifests(build), key=lambda each: each != _chosen(release, build))
    ]


def _chosen(release: Release, build: Build) -> str:
    return str(release.choices.get(build.profile, {}).get("manifest") or build.manifest)
