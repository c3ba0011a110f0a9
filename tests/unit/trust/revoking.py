"""Releases revoked, and devices that run them replaced, without a network."""

from functools import partial
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import (
    grants,
    policies,
    releases,
    replacements,
    staging,
)
from control_plane.keys import sign_payload
from control_plane.plane import Plane
from control_plane.schema.devices import Device
from control_plane.schema.models import Build
from control_plane.schema.releases import Release
from control_plane.schema.work import Event
from tests.unit.trust.releasing import enrol, sign

PROFILE = "x86-64-gateway"


def revoke(plane: Plane, session: Session, keys: Path, name: str) -> Release:
    """Stage a revocation and sign it."""
    releases.revoke(plane, session, name)
    return sign(plane, session, keys, name)


def manifest(session: Session, version: int) -> str:
    """Return the digest of a version's manifest."""
    return session.scalars(select(Build.manifest).where(Build.version == version)).one()


def device(session: Session, plane: Plane, name: str = "wearer-8", *, runs: int, group: str = "default") -> Device:
    """Record a device that reports to run a version."""
    enrol(session, plane, name)
    row = session.get_one(Device, name)
    row.reported, row.group = {"manifest": manifest(session, runs)}, group
    return row


def reconcile(plane: Plane, session: Session) -> int:
    """Commit, and let the reconciler take its turns until it rests; return how many devices it dealt with."""
    session.commit()
    done = 0
    for _ in range(10):
        turn = replacements.reconcile(plane, plane.clock())
        done += turn
        if not turn:
            break
    session.expire_all()
    return done


def alarms(session: Session) -> list[str]:
    """Return the texts of alarms."""
    return list(session.scalars(select(Event.text).where(Event.kind == "alarm").order_by(Event.id)))


def grant(plane: Plane, session: Session, keys: Path) -> None:
    """Let the model gestures be signed online for 30 days, and set its policy."""
    sign_staged(plane, session, keys, grants.GRANT, grants.grant(plane, session, "gestures", days=30))
    policies.set_policy(session, "gestures", policy="automatic")


def sign_staged(plane: Plane, session: Session, keys: Path, kind: str, payload: bytes) -> None:
    """Sign what waits for the model gestures with the offline keys."""
    then = partial(grants.published, kind=kind)
    for each in sign_payload(keys, payload):
        staging.add_signature(plane, session, kind, "gestures", keyid=each["keyid"], sig=each["sig"], then=then)
