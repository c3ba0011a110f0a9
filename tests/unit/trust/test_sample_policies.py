"""Which inputs may leave devices: written into what the offline keys sign, shown to them, and never signed online."""

from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import approval, image_repository, policies, releases, sample_policies, staging
from control_plane.plane import Plane
from control_plane.refusals import Conflict, Unknown
from control_plane.schema.models import Build, ModelVersion
from skerry.errors import Rejected
from skerry.wire import codec
from skerry.wire.manifest import NO_SAMPLES, Manifest, SamplePolicy, TensorSpec
from tests.manifests import make_manifest
from tests.unit.trust.releasing import sign

POLICY = SamplePolicy(rows_per_window=2, inputs=("x",), max_bytes=64)
PROFILE = "x86-64-gateway"


@pytest.fixture
def build(founded: Plane, session: Session) -> Build:
    """A build of two forms, whose model takes 4 numbers of 4 bytes."""
    inputs = (TensorSpec("x", (1, 4), "float32"), TensorSpec("y", (1, 2), "int8"))
    first, second = (
        founded.blobs.put(
            codec.encode(make_manifest({"m": b""}, model="watch", profile=PROFILE, inputs=inputs, created=each))
        )
        for each in ("1", "2")
    )
    session.add(ModelVersion(model="watch", version=1, dataset="d", bundle=first, trained_at=founded.clock()))
    made = Build(
        model="watch",
        version=1,
        profile=PROFILE,
        gate="passed",
        manifest=first,
        files={},
        report={"second": {"manifest": second, "files": {}}},
        built_at=founded.clock(),
    )
    session.add(made)
    session.flush()
    return made


def manifests(plane: Plane, build: Build) -> list[Manifest]:
    return [
        codec.decode(Manifest, plane.blobs.get(each)) for each in (build.manifest, build.report["second"]["manifest"])
    ]


def test_a_release_says_what_the_policy_was_when_it_was_staged(
    founded: Plane, session: Session, keys: Path, build: Build
) -> None:
    before = manifests(founded, build)
    assert sample_policies.policy(session, "watch") == NO_SAMPLES
    assert sample_policies.set_policy(session, "watch", POLICY) == POLICY
    assert manifests(founded, build) == before

    releases.stage(founded, session, model="watch", version=1)

    # nothing else of it is another
    assert manifests(founded, build) == [replace(each, samples=POLICY) for each in before]
    # who signs can see it, on the very line of what is signed
    shown = approval.show(staging.approval_of(founded, session, "release", "watch-1")).lines
    seen = [line for line in shown if '"rows_per_window": 2' in line and '"inputs": ["x"]' in line]
    assert len(seen) == 2
    assert all("manifest.json" in line for line in seen)

    release = sign(founded, session, keys, "watch-1")
    listed = image_repository.targets(session).targets[releases.target_path(release, PROFILE)]
    assert codec.from_tree(SamplePolicy, (listed.custom or {})["samples"]) == POLICY
    assert listed.hashes == {"sha256": build.manifest}
    assert sample_policies.of_release(session, release)[PROFILE]["max_bytes"] == 64


def test_a_release_without_a_policy_is_what_it_was(founded: Plane, session: Session, build: Build) -> None:
    before = build.manifest
    releases.stage(founded, session, model="watch", version=1)
    staged = staging.get(session, "release", "watch-1").metadata.signed.targets
    assert (build.manifest, [each.custom for each in staged.values() if each.custom]) == (before, [])


def test_a_policy_that_is_taken_back_goes_out_of_what_is_staged_again(
    founded: Plane, session: Session, build: Build
) -> None:
    before = build.manifest
    sample_policies.set_policy(session, "watch", POLICY)
    releases.stage(founded, session, model="watch", version=1)
    assert build.manifest != before

    sample_policies.set_policy(session, "watch", NO_SAMPLES)
    releases.stage(founded, session, model="watch", version=1)

    assert (build.manifest, sample_policies.custom(build)) == (before, {})


def test_what_is_signed_online_has_no_policy_whichever_was_first(session: Session, build: Build) -> None:
    assert build.model == "watch"
    sample_policies.set_policy(session, "watch", POLICY)
    with pytest.raises(Conflict, match="skerry model samples watch --none"):
        policies.set_policy(session, "watch", policy="automatic")
    sample_policies.set_policy(session, "watch", NO_SAMPLES)
    policies.set_policy(session, "watch", policy="automatic")
    with pytest.raises(Conflict, match="skerry model policy watch manual"):
        sample_policies.set_policy(session, "watch", POLICY)


@pytest.mark.parametrize(
    ("wanted", "match"),
    [
        (SamplePolicy(1, ("z",), 64), "expected inputs out of x, y, got z"),
        (SamplePolicy(1, ("x", "y"), 17), "expected at least 18 bytes for a row of them, got 17"),
    ],
)
def test_a_policy_that_no_row_could_follow_is_no_release(
    founded: Plane, session: Session, build: Build, wanted: SamplePolicy, match: str
) -> None:
    sample_policies.set_policy(session, build.model, wanted)
    with pytest.raises(Rejected, match=match):
        releases.stage(founded, session, model="watch", version=1)


@pytest.mark.parametrize("wanted", [SamplePolicy(0, ("x",), 64), SamplePolicy(1, (), 64), SamplePolicy(1, ("x",), 0)])
def test_half_a_policy_is_refused(session: Session, build: Build, wanted: SamplePolicy) -> None:
    with pytest.raises(Rejected, match="expected rows, inputs and bytes"):
        sample_policies.set_policy(session, build.model, wanted)


def test_a_model_that_is_not_there_has_no_policy(session: Session) -> None:
    with pytest.raises(Unknown):
        sample_policies.set_policy(session, "watch", POLICY)
    assert session.scalars(select(Build)).all() == []
