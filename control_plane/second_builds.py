"""The second build of a profile, in rows: which two there are, the choice between them, and who gets the chosen one.

When that happens is the planner's to say (`rollout_planner`), and which it is `build_choice`'s. A choice is made once
for a release and a profile, by all evidence that there is then, whichever rollout it comes from.
"""

from dataclasses import asdict
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import build_choice, evidence
from control_plane.events import record
from control_plane.rollout_planner import Contest
from control_plane.schema.devices import Device
from control_plane.schema.models import Build
from control_plane.schema.releases import Deployment, Release, Rollout


def contests(session: Session, release: str) -> dict[str, Contest]:
    """Return by profile the two builds that a release lists, and which of them was chosen."""
    named = select(Release.model, Release.version, Release.choices).where(Release.name == release)
    model, version, choices = session.execute(named).one()
    builds = select(Build.profile, Build.manifest, Build.second)
    builds = builds.where(Build.model == model, Build.version == version, Build.second != "")
    return {
        profile: Contest(first=first, second=second, chosen=str(choices.get(profile, {}).get("manifest", "")))
        for profile, first, second in session.execute(builds)
    }


def choose(session: Session, rollout: Rollout, profile: str, *, now: datetime) -> None:
    """Let the evidence choose the build of a profile, record that, and give it to whoever still waits."""
    release = session.get_one(Release, rollout.release)
    contest = contests(session, release.name)[profile]
    asked = select(Deployment).join(Device, Device.name == Deployment.device)
    asked = asked.where(Deployment.release == release.name, Device.profile == profile)
    witnesses = [
        build_choice.Witness(
            device=one.device,
            evidence=evidence.read(one),
            failed=(one.reason or "no reason given") if one.state == "failed" else "",
        )
        for one in session.scalars(asked.where(Deployment.measures != "").order_by(Deployment.id))
    ]
    choice = build_choice.choose(witnesses)

    manifest = contest.second if choice.second else contest.first
    made = {name: value for name, value in asdict(choice).items() if name != "second"}
    made |= {"build": "second" if choice.second else "first", "manifest": manifest}
    release.choices = {**release.choices, profile: {**made, "rollout": rollout.id, "at": now.isoformat()}}
    for deployment in session.scalars(asked.where(Deployment.state == "waiting")):
        deployment.manifest = manifest
    text = f"{release.name} for {profile}: {choice.reason}"
    record(session, "choice", release.name, text, profile=profile, rollout=rollout.id, **made)


def replace(session: Session, deployment: Deployment) -> None:
    """Make the attempt that brings a device the chosen build in place of the one that lost."""
    profile = session.get_one(Device, deployment.device).profile
    session.add(
        Deployment(
            id=f"{deployment.id}-chosen",
            rollout=deployment.rollout,
            wave=deployment.wave,
            device=deployment.device,
            release=deployment.release,
            manifest=contests(session, deployment.release)[profile].chosen,
            state="waiting",
            component=deployment.component,
        )
    )
