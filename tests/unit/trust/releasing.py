"""Versions trained and released, devices recorded, and both repositories seen as a device sees them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata
from tuf.ngclient import Updater

from control_plane import image_repository, releases, tuf_rows
from control_plane.keys import sign_payload
from control_plane.plane import Plane
from control_plane.schema.models import Build, ModelVersion
from control_plane.schema.releases import Release
from skerry.wire.messages import Assign, Terms
from tests.device_rows import enrolled

Look = Callable[..., Updater]


def train(plane: Plane, session: Session, version: int, *, gate: str = "passed", name: str = "gestures") -> str:
    """Record a model version with one build; return the SHA-256 of its manifest."""
    now = plane.clock()
    other = b"" if name == "gestures" else b" of " + name.encode()
    manifest = plane.blobs.put(b"manifest %d" % version + other)
    model = plane.blobs.put(b"model %d" % version + other)
    session.add(ModelVersion(model=name, version=version, dataset="d", bundle=model, trained_at=now))
    session.add(
        Build(
            model=name,
            version=version,
            profile="x86-64-gateway",
            gate=gate,
            manifest=manifest,
            files={"model.onnx": model},
            built_at=now,
        )
    )
    session.flush()
    return manifest


def sign(plane: Plane, session: Session, keys: Path, name: str) -> Release:
    """Sign a staged release with as many keys as the threshold asks for."""
    for each in sign_payload(keys, releases.payload(session, name)):
        releases.add_signature(plane, session, name, keyid=each["keyid"], sig=each["sig"])
    return releases.get(session, name)


def release(plane: Plane, session: Session, keys: Path, version: int, *, name: str = "gestures") -> str:
    """Train, stage and sign a version; return its target."""
    train(plane, session, version, name=name)
    releases.stage(plane, session, model=name, version=version)
    return releases.target_path(sign(plane, session, keys, f"{name}-{version}"), "x86-64-gateway")


def image(device: Look, session: Session, name: str = "image") -> Updater:
    """Return a device's view of the image repository as published now."""
    files = image_repository.files(session)
    return device(name, files["1.root"], files)


def directed(device: Look, session: Session, assign: Assign, name: str = "director") -> Updater:
    """Return a device's view of an assignment."""
    texts = {role: text.encode() for role, text in assign.metadata.items()}
    version = Metadata.from_bytes(texts["targets"]).signed.version
    files = texts | {f"{version}.{role}": texts[role] for role in ("snapshot", "targets")}
    return device(name, tuf_rows.read(session, "director", "1.root"), files)


def enrol(session: Session, plane: Plane, name: str = "wearer-8") -> None:
    """Record a device."""
    session.add(enrolled(name, plane.clock()))
    session.flush()


def terms(**more: Any) -> Terms:
    """Return terms as a rollout gives them."""
    return Terms(device="", counter=0, issued="", deployment="d1", release="gestures-1", **more)
