"""Versions of the agent itself on the shore: wheels in, an artifact for each profile out, signed like a model's."""

import io
import json
import zipfile
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import agent_versions, director, image_repository, releases, rollouts, train_job
from control_plane.plane import Plane
from control_plane.refusals import Conflict
from control_plane.rollout_planner import WaveRequest
from control_plane.schema.devices import Device
from control_plane.schema.models import Build
from skerry.errors import Rejected
from skerry.wire import codec
from skerry.wire.manifest import Manifest
from tests.unit.trust.releasing import enrol, sign
from tests.wheels import wheel

PROFILE = "x86-64-gateway"


def packed(*wheels: str, **files: bytes) -> bytes:
    """Return a zip file of small wheels, by their names, and of other files."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in wheels:
            package, version = name.split("-")[:2]
            archive.writestr(name, wheel(package, version, {f"{package.lower()}/__init__.py": f"V = {version!r}\n"}))
        for name, body in files.items():
            archive.writestr(name.replace("__", "."), body)
    return data.getvalue()


SKERRY = "skerry-0.2.0-py3-none-any.whl"
RUNTIME = "onnxruntime-1.30.0-cp313-cp313-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl"


def test_wheels_become_an_artifact_that_is_released_and_assigned_to_the_agent(
    founded: Plane, session: Session, keys: Path
) -> None:
    enrol(session, founded)
    session.get_one(Device, "wearer-8").reported = {"components": {}}

    row = agent_versions.add(founded, session, upload=packed(SKERRY, RUNTIME), profiles=[PROFILE])
    releases.stage(founded, session, model="agent", version=row.version)
    assert sign(founded, session, keys, "agent-1").state == "live"
    rollouts.create(session, release="agent-1", waves=[WaveRequest("all", rest=True)], now=founded.clock())
    session.commit()
    rollouts.reconcile(founded, founded.clock())

    build = session.scalars(select(Build).where(Build.model == "agent")).one()
    manifest = codec.decode(Manifest, founded.blobs.get(build.manifest))
    assert (manifest.runtime, manifest.model_file) == ("python", "skerry.whl")
    assert [entry.name for entry in manifest.files] == ["onnxruntime.whl", "skerry.whl"]
    assert manifest.lineage == {"onnxruntime": "1.30.0", "skerry": "0.2.0"}
    path = f"models/agent/1/{PROFILE}/manifest.json"
    assert image_repository.target(session, path).hashes["sha256"] == build.manifest
    terms, target = director.terms_of(session, "wearer-8", "agent")
    assert (terms.component, target.path, terms.release) == ("agent", path, "agent-1")
    bill = json.loads(releases.document(founded, session, "agent-1", profile=PROFILE, file="bom.cdx.json"))
    assert bill["metadata"]["component"]["name"] == "agent"


def test_more_profiles_get_wheels_of_their_own_until_the_release(founded: Plane, session: Session) -> None:
    agent_versions.add(founded, session, upload=packed(SKERRY), profiles=[PROFILE])
    row = agent_versions.add(founded, session, upload=packed(SKERRY), profiles=["raspberry-pi-5"], version=1)
    assert row.version == 1
    assert agent_versions.add(founded, session, upload=packed(SKERRY), profiles=[PROFILE]).version == 2

    releases.stage(founded, session, model="agent", version=1)
    with pytest.raises(Conflict, match="not released"):
        agent_versions.add(founded, session, upload=packed(SKERRY), profiles=[PROFILE], version=1)


@pytest.mark.parametrize(
    ("upload", "reason"),
    [
        (b"no zip", "expected a zip file"),
        (packed(), "expected 1 to"),
        (packed(RUNTIME), "expected a wheel of skerry"),
        (packed(SKERRY, "Skerry-0.3.0-py3-none-any.whl"), "one twice"),
        (packed(SKERRY, readme__txt=b"x"), "expected wheels such as"),
        (packed(**{"skerry-1-py3-none-any__whl": b"no zip"}), "expected a wheel, got"),
    ],
)
def test_what_is_no_set_of_wheels_is_refused(founded: Plane, session: Session, upload: bytes, reason: str) -> None:
    with pytest.raises(Rejected, match=reason):
        agent_versions.add(founded, session, upload=upload, profiles=[PROFILE])


def test_a_microcontroller_has_no_agent_and_no_model_has_its_name(founded: Plane, session: Session) -> None:
    from firmware_profiles.loader import list_profiles, load_profile

    mcu = next(name for name in list_profiles() if not load_profile(name).agent)
    with pytest.raises(Rejected, match="microcontroller"):
        agent_versions.add(founded, session, upload=packed(SKERRY), profiles=[mcu])
    with pytest.raises(Rejected, match="expected another name than agent"):
        train_job.ask(session, model="agent", dataset="d", recipe={}, now=founded.clock())
