"""Rollouts over persistent state: made once, then brought forward by a reconciler that may be called at any time.

The decisions are the planner's (`rollout_planner`); this module reads rows into its values, does its actions in short
transactions, and publishes the assignments after each commit. Whoever dies in between loses nothing: what is
assigned is retained anew whenever the control plane connects to the broker.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import components, deltas, director, groups, publication, second_builds
from control_plane.builds import find_build
from control_plane.events import record
from control_plane.refusals import Conflict, Unknown
from control_plane.rollout_planner import (
    Action,
    Assign,
    Attempt,
    Candidate,
    Choose,
    DeviceNow,
    EndRollout,
    EndWave,
    Replace,
    Settle,
    StartWave,
    WaveRequest,
    plan,
    spread,
)
from control_plane.rollout_planner import Wave as WaveNow
from control_plane.schema.devices import Device
from control_plane.schema.models import Build
from control_plane.schema.releases import Deployment, Release, Rollout, Wave
from control_plane.sealing import NO_KEY
from skerry.wire import codec, topics
from skerry.wire.manifest import target_name
from skerry.wire.messages import Assign as AssignMessage
from skerry.wire.messages import Terms

if TYPE_CHECKING:
    from control_plane.plane import Plane

OPEN = ("running", "paused")
OFFLINE = "targets"
"""The role of a release that the offline keys signed; any other is a model's own, signed online."""
# in one transaction: assigning takes milliseconds of signing each, and devices wait for the database meanwhile
MAX_ACTIONS = 50


def create(session: Session, *, release: str, waves: Sequence[WaveRequest], now: datetime) -> Rollout:
    """Make a rollout of a live release: its waves, and a waiting deployment for each device in them.

    Devices without a build for their profile, or in another open rollout, are left out with that reason.

    Raises:
        Unknown: there is no such release.
        Conflict: it is not live.
        Rejected: the waves cannot be made, or no device is left.
    """
    row = session.get(Release, release)
    if row is None:
        raise Unknown(f"release: expected one that was made, got {release!r}")
    if row.state == "revoked":
        raise Conflict(f"release {release}: expected it to be live, got revoked; train and release a new version")
    if row.state != "live":
        raise Conflict(
            f"release {release}: expected it to be live, got {row.state}; sign it first: skerry release sign"
        )
    manifests = _manifests(session, row)
    groups = spread(waves, _candidates(session, row, manifests), seed=release)
    beside = components.beside(session, row.model)

    rollout = Rollout(release=release, state="running", created_at=now)
    session.add(rollout)
    session.flush()
    session.add_all(
        Wave(rollout=rollout.id, number=number, name=request.name, state="waiting")
        for number, request in enumerate(waves, start=1)
    )
    placed = [(number, candidate) for number, group in enumerate(groups, start=1) for candidate in group]
    session.add_all(
        Deployment(
            id=f"r{rollout.id}-{index}",
            rollout=rollout.id,
            wave=number,
            device=candidate.name,
            release=release,
            manifest=manifests.get(candidate.profile, ""),
            state="left-out" if candidate.obstacle else "waiting",
            reason=candidate.obstacle,
            component=row.model if candidate.name in beside else "",
        )
        for index, (number, candidate) in enumerate(placed, start=1)
    )
    record(
        session,
        "rollout",
        str(rollout.id),
        f"rollout {rollout.id} of {release} to {len(placed)} devices in {len(groups)} waves",
        rollout=rollout.id,
        release=release,
    )
    return rollout


def cancel(session: Session, number: int, *, now: datetime) -> Rollout:
    """End an open rollout: nothing more is assigned, what is assigned goes on; raises `Unknown` or `Conflict`."""
    rollout = session.get(Rollout, number)
    if rollout is None:
        raise Unknown(f"rollout: expected one that was made, got {number}")
    if rollout.state not in OPEN:
        raise Conflict(f"rollout {number}: expected one that runs or is paused, got {rollout.state}")
    _end(session, rollout, "the rollout was cancelled", now)
    rollout.reason = "cancelled by an operator"
    record(session, "rollout", str(number), f"rollout {number} of {rollout.release} cancelled", rollout=number)
    return rollout


def end_revoked(session: Session, release: str, *, now: datetime) -> None:
    """End the open rollouts of a release that has just been revoked; `replacements` sees to what was assigned."""
    for rollout in session.scalars(select(Rollout).where(Rollout.release == release, Rollout.state.in_(OPEN))):
        _end(session, rollout, "the release was revoked", now)
        text = f"rollout {rollout.id} of {release} ended: the release was revoked"
        record(session, "rollout", str(rollout.id), text, rollout=rollout.id, release=release)


def _end(session: Session, rollout: Rollout, reason: str, now: datetime) -> None:
    waiting = select(Deployment).where(Deployment.rollout == rollout.id, Deployment.state == "waiting")
    for deployment in session.scalars(waiting):
        _settle(deployment, "left-out", reason, now)
    rollout.state, rollout.reason, rollout.ended_at = "cancelled", reason, now


def reconcile(plane: "Plane", now: datetime, *, at_once: int = 0) -> int:
    """Bring every running rollout as far as it can go now; return the number of actions done.

    A rollout waits while deltas of its release are being made, but for the one numbered `at_once`.

    Called twice with nothing new in between, the second call does nothing and returns 0.
    """
    with plane.readers() as session:
        running = session.execute(
            select(Rollout.id, Rollout.release).where(Rollout.state == "running").order_by(Rollout.id)
        )
        due = [
            (number, release)
            for number, release in running
            if (number == at_once or not deltas.awaited(session, release, now=now)) and _plan(session, number)
        ]
    done = 0
    for number, release in due:
        # before any assignment names them: chunks of deltas that have just been made, or of a release cleared before
        publication.publish_release(plane, release)
        while (advanced := _advance(plane, number, now)) and not plane.stopping.is_set():
            done += advanced
    return done


def _advance(plane: "Plane", number: int, now: datetime) -> int:
    """Do the next actions of a rollout and publish what they assign; return their number, 0 when there is none."""
    messages: list[tuple[str, AssignMessage]] = []
    with plane.sessions.begin() as session:
        actions = _plan(session, number)[:MAX_ACTIONS]
        for action in actions:
            messages += _do(plane, session, number, action, now)
    for device, message in messages:
        topic = topics.down(topics.identity(plane.settings.project, device), "assign")
        plane.outgoing.publish(topic, codec.encode(message), retain=True)
    return len(actions)


def _plan(session: Session, number: int) -> tuple[Action, ...]:
    rollout = session.get_one(Rollout, number)
    waves = session.scalars(select(Wave).where(Wave.rollout == number).order_by(Wave.number))
    deployments = list(
        session.scalars(select(Deployment).where(Deployment.rollout == number).order_by(Deployment.wave, Deployment.id))
    )
    named = select(Device).where(Device.name.in_([one.device for one in deployments]))
    devices = {device.name: device for device in session.scalars(named)}
    of = {one.device: one.component for one in deployments}
    return plan(
        rollout.state,
        [WaveNow(number=wave.number, state=wave.state) for wave in waves],
        [
            Attempt(
                id=one.id,
                wave=one.wave,
                device=one.device,
                manifest=one.manifest,
                state=one.state,
                reason=one.reason,
                profile=devices[one.device].profile,
                measures=one.measures != "",
            )
            for one in deployments
        ],
        {
            device.name: DeviceNow(
                manifest=components.running(session, device, of[device.name]), enrolled=device.state == "enrolled"
            )
            for device in devices.values()
        },
        second_builds.contests(session, rollout.release),
    )


def _do(
    plane: "Plane", session: Session, number: int, action: Action, now: datetime
) -> list[tuple[str, AssignMessage]]:
    match action:
        case StartWave(wave):
            row = session.get_one(Wave, (number, wave))
            row.state, row.started_at = "running", now
            record(session, "wave", str(number), f"rollout {number}: wave {row.name} starts", rollout=number, wave=wave)
        case EndWave(wave, state):
            row = session.get_one(Wave, (number, wave))
            row.state, row.ended_at = state, now
            row.started_at = row.started_at or now
            record(
                session, "wave", str(number), f"rollout {number}: wave {row.name} {state}", rollout=number, wave=wave
            )
        case Assign(attempt, measure):
            deployment = session.get_one(Deployment, attempt)
            deployment.state, deployment.assigned_at = "assigned", now
            return [(deployment.device, _assign(plane, session, deployment, measure=measure))]
        case Choose(profile):
            second_builds.choose(session, session.get_one(Rollout, number), profile, now=now)
        case Replace(attempt):
            second_builds.replace(session, session.get_one(Deployment, attempt))
        case Settle(attempt, state, reason):
            _settle(session.get_one(Deployment, attempt), state, reason, now)
        case EndRollout(state, reason):
            rollout = session.get_one(Rollout, number)
            rollout.state, rollout.reason = state, reason
            rollout.ended_at = now if state == "done" else None
            text = f"rollout {number} of {rollout.release} {state}" + (f": {reason}" if reason else "")
            record(session, "rollout", str(number), text, rollout=number, release=rollout.release)
    return []


def _assign(plane: "Plane", session: Session, deployment: Deployment, *, measure: bool) -> AssignMessage:
    release = session.get_one(Release, deployment.release)
    device = session.get_one(Device, deployment.device)
    contest = second_builds.contests(session, release.name).get(device.profile)
    is_second = contest is not None and deployment.manifest == contest.second
    target, other = (
        target_name(release.model, release.version, device.profile, "manifest.json", second=second)
        for second in (is_second, not is_second)
    )
    if measure and contest is not None:
        deployment.measures = contest.first if is_second else contest.second
    # the director fills in the counter and the time
    terms = Terms(
        device=device.name,
        counter=0,
        issued="",
        deployment=deployment.id,
        release=release.name,
        rollback=_is_older(session, release, components.running(session, device, deployment.component)),
        measure=other if deployment.measures else "",
        measure_sha256=deployment.measures,
        component=deployment.component,
    )
    message = director.assign(plane, session, device=device.name, terms=terms, target=target)
    record(
        session,
        "deployment",
        device.name,
        f"{device.name}: {release.name} assigned",
        deployment=deployment.id,
        rollout=deployment.rollout,
        release=release.name,
        state="assigned",
        component=deployment.component,
    )
    return message


def _is_older(session: Session, release: Release, manifest: str) -> bool:
    running = find_build(session, manifest)
    return running is not None and running.model == release.model and running.version > release.version


def _settle(deployment: Deployment, state: str, reason: str, now: datetime) -> None:
    deployment.state, deployment.reason, deployment.ended_at = state, reason, now


def _manifests(session: Session, release: Release) -> dict[str, str]:
    builds = select(Build).where(Build.model == release.model, Build.version == release.version, Build.manifest != "")
    chosen = {profile: contest.chosen for profile, contest in second_builds.contests(session, release.name).items()}
    return {build.profile: chosen.get(build.profile) or build.manifest for build in session.scalars(builds)}


def _candidates(session: Session, release: Release, manifests: dict[str, str]) -> list[Candidate]:
    busy = select(Deployment).join(Rollout, Rollout.id == Deployment.rollout)
    busy = busy.where(Rollout.state.in_(OPEN), Deployment.state != "left-out")
    in_rollout = {(one.device, one.component): one.rollout for one in session.scalars(busy)}
    beside = components.beside(session, release.model)
    devices = session.scalars(select(Device).where(Device.state == "enrolled").order_by(Device.name))
    refusing = groups.refusing_automatic(session) if release.role != OFFLINE else frozenset[str]()
    found = []
    for device in devices:
        component = release.model if device.name in beside else ""
        obstacle = _obstacle(device, manifests, in_rollout.get((device.name, component)), refusing)
        if component and not obstacle and components.is_too_old(device, component):
            obstacle = components.TOO_OLD
        found.append(Candidate(device.name, device.profile, obstacle))
    return found


def _obstacle(device: Device, manifests: dict[str, str], rollout: int | None, refusing: Collection[str]) -> str:
    if device.profile not in manifests:
        return f"the release has no passed build for profile {device.profile}"
    if device.group in refusing:
        return "its group refuses releases that were signed online"
    if not device.public_key:
        return NO_KEY
    if rollout is not None:
        return f"it is in rollout {rollout}, which is not over"
    return ""
