"""The second build of a profile on the control plane: listed by its release, found by its manifest."""

from datetime import UTC, datetime
from pathlib import Path

from alembic import command
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from agent.identity.enrol import make_key_and_request
from control_plane import enrolment, image_repository, releases, retention
from control_plane.builds import find_build
from control_plane.database import alembic_config
from control_plane.keys import sign_payload
from control_plane.plane import Plane
from control_plane.releases import DOCUMENTS
from control_plane.schema.devices import Device
from control_plane.schema.models import Build, ModelVersion
from control_plane.second_builds import contests
from skerry.wire.enrolment import EnrolRequest

PROFILE = "arm64-board"


def train(plane: Plane, session: Session, *, second: bool) -> Build:
    """Record a model version with one build, and a second one beside it."""
    first, model, golden = (plane.blobs.put(each) for each in (b"manifest", b"model", b"golden"))
    other, small = plane.blobs.put(b"other manifest"), plane.blobs.put(b"small model")
    kept = {"manifest": other, "files": {"model.tflite": small, "golden.npz": golden}} if second else {"manifest": ""}
    build = Build(
        model="gestures",
        version=1,
        profile=PROFILE,
        gate="passed",
        manifest=first,
        files={"model.tflite": model, "golden.npz": golden},
        report={"second": kept},
        built_at=plane.clock(),
    )
    session.add(ModelVersion(model="gestures", version=1, dataset="d", bundle=model, trained_at=plane.clock()))
    session.add(build)
    session.flush()
    releases.stage(plane, session, model="gestures", version=1)
    return build


def test_a_release_lists_both_builds_under_paths_of_their_own(founded: Plane, session: Session, keys: Path) -> None:
    build = train(founded, session, second=True)
    for each in sign_payload(keys, releases.payload(session, "gestures-1")):
        releases.add_signature(founded, session, "gestures-1", keyid=each["keyid"], sig=each["sig"])

    targets = image_repository.targets(session).targets.items()
    documents = {f"models/gestures/1/{PROFILE}{second}/{name}" for name in DOCUMENTS for second in ("", ".second")}
    assert documents <= {path for path, _ in targets}
    listed = {path: each.hashes["sha256"] for path, each in targets if path not in documents}
    assert listed == {
        f"models/gestures/1/{PROFILE}/manifest.json": build.manifest,
        f"models/gestures/1/{PROFILE}/model.tflite": founded.blobs.put(b"model"),
        f"models/gestures/1/{PROFILE}/golden.npz": founded.blobs.put(b"golden"),
        f"models/gestures/1/{PROFILE}.second/manifest.json": founded.blobs.put(b"other manifest"),
        f"models/gestures/1/{PROFILE}.second/model.tflite": founded.blobs.put(b"small model"),
        f"models/gestures/1/{PROFILE}.second/golden.npz": founded.blobs.put(b"golden"),
    }
    # what is listed is what the broker is given to retain
    assert set(retention.blobs(session, releases.get(session, "gestures-1"))) == set(listed.values())
    assert {name: (one.first, one.second, one.chosen) for name, one in contests(session, "gestures-1").items()} == {
        PROFILE: (build.manifest, founded.blobs.put(b"other manifest"), "")
    }


def test_a_profile_with_one_build_has_nothing_to_choose(founded: Plane, session: Session) -> None:
    build = train(founded, session, second=False)

    assert (build.second, contests(session, "gestures-1")) == ("", {})
    assert find_build(session, "") is None


def test_a_build_is_found_by_either_of_its_manifests(founded: Plane, session: Session) -> None:
    build = train(founded, session, second=True)

    for manifest in (build.manifest, build.manifest[:16], build.second, build.second[:16]):
        assert find_build(session, manifest) is build
    assert find_build(session, "%") is None


def test_enrolment_keeps_the_key_that_signatures_are_checked_with(founded: Plane, session: Session) -> None:
    private, csr = make_key_and_request()
    join, _ = enrolment.invite(founded, session, enrolment.Invitation(profile=PROFILE))
    session.flush()
    enrolled = enrolment.claim(founded, session, EnrolRequest(token=join.token, csr=csr, profile=PROFILE))

    kept = serialization.load_pem_public_key(session.get_one(Device, enrolled.device).public_key.encode())
    mine = serialization.load_pem_private_key(private, None)
    assert isinstance(mine, ec.EllipticCurvePrivateKey)
    assert kept == mine.public_key()


def test_a_database_of_the_first_schema_is_brought_forward_with_its_rows(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'old.db'}")
    config = alembic_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(
            text(
                "insert into release (name, model, version, state, payload, created_at) "
                "values ('r', 'm', 1, 'live', '', :at)"
            ),
            {"at": datetime.now(UTC).isoformat(" ")},
        )
        command.upgrade(config, "0002")
        assert connection.execute(text("select choices from release")).scalar_one() == "{}"
    engine.dispose()
