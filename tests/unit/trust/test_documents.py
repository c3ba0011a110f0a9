"""The bill of materials and the provenance of a build, against the schemas of those who define them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf.json_format import ParseDict
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement
from sqlalchemy.orm import Session

from control_plane import image_repository, releases, retention
from control_plane.bill import bill_of_materials
from control_plane.making import Making, Part
from control_plane.plane import Plane
from control_plane.provenance import provenance
from control_plane.refusals import Unknown
from control_plane.schema.models import Build
from control_plane.toolchain import revision, toolchain
from skerry import __version__
from tests.unit.trust.releasing import release, sign, train

DATA, BUNDLE, MANIFEST, MODEL, GATE = (digit * 64 for digit in "abcde")
COMMIT = "1" * 40
MADE = Making(
    model="gestures",
    version=3,
    profile="arm64-board",
    created="2026-01-02T03:04:05Z",
    recipe={"kind": "windowed-mlp", "hidden": [64, 32], "alpha": 0.01},
    metrics={"accuracy": 0.9375, "accuracy_learnt": 1.0, "rows_learnt": 240, "accuracy_by_group": {"7": 0.9, "8": 1.0}},
    lineage={"data_sha256": "f" * 64, "python": "3.11.7", "numpy": "1.26.0", "scikit-learn": "1.5.0"},
    bundle=BUNDLE,
    parts=(Part("moves", DATA, 360),),
    files={"manifest.json": MANIFEST, "model.onnx": MODEL, "gate.json": GATE},
    report={
        "chosen": "int8",
        "candidates": [
            {"name": "float32", "accuracy": 0.94},
            {"name": "int8", "accuracy": 0.93, "size_bytes": 700, "recipe": {"precision": "int8", "onnx": "1.17.0"}},
        ],
    },
    tools={"python": "3.11.7", "skerry": "0.1.0", "revision": COMMIT, "numpy": "2.1.0", "onnx": "1.17.0"},
)
OLD = replace(MADE, tools={}, report={}, recipe={}, metrics={}, lineage={}, parts=())


@pytest.mark.parametrize("making", [MADE, OLD, replace(MADE, tools={**MADE.tools, "revision": "0.1.0"})])
def test_the_bill_is_valid_cyclonedx_1_6(making: Making) -> None:
    refused = JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill_of_materials(making).decode())

    assert refused is None, str(refused)[:500]


def test_the_bill_names_the_model_its_data_its_figures_and_the_tools_with_their_versions() -> None:
    bill = json.loads(bill_of_materials(MADE))
    model = bill["metadata"]["component"]
    card = model["modelCard"]

    assert (model["type"], model["name"], model["version"]) == ("machine-learning-model", "gestures", "3")
    assert model["hashes"] == [{"alg": "SHA-256", "content": MANIFEST}]
    files = {each["name"]: each["hashes"][0]["content"] for each in model["components"]}
    assert files == {"manifest.json": MANIFEST, "model.onnx": MODEL, "gate.json": GATE}
    (data,) = [each for each in bill["components"] if each["type"] == "data"]
    assert (data["name"], data["hashes"][0]["content"]) == ("moves", DATA)
    assert card["modelParameters"]["datasets"] == [{"ref": data["bom-ref"]}]
    figures = {
        (each["type"], each["slice"]): each["value"] for each in card["quantitativeAnalysis"]["performanceMetrics"]
    }
    assert figures["accuracy", "held out, before conversion"] == "0.9375"
    assert figures["accuracy", "arm64-board, held out"] == "0.93"
    assert figures["size_bytes", "arm64-board, held out"] == "700"
    # it was trained with one numpy and converted with another
    tools = {(each["name"], each["version"]) for each in bill["components"] if each["type"] == "library"}
    assert {("numpy", "1.26.0"), ("numpy", "2.1.0"), ("onnx", "1.17.0"), ("scikit-learn", "1.5.0")} <= tools
    depends = next(each["dependsOn"] for each in bill["dependencies"] if each["ref"] == model["bom-ref"])
    assert set(depends) == {each["bom-ref"] for each in bill["components"]}


@pytest.mark.parametrize("making", [MADE, OLD])
def test_the_provenance_is_read_by_the_bindings_of_in_toto(making: Making) -> None:
    tree = json.loads(provenance(making))

    # a field that the specification does not know is an error of ParseDict
    predicate = ParseDict(tree["predicate"], Provenance())
    subjects = [ResourceDescriptor(name=each["name"], digest=each["digest"]).pb for each in tree["subject"]]
    statement = Statement(subjects, tree["predicateType"], tree["predicate"])
    statement.validate()
    assert statement.pb.type == tree["_type"]
    assert statement.pb.predicate_type == "https://slsa.dev/provenance/v1"
    assert predicate.build_definition.build_type == "urn:skerry:compile:1"
    for each in tree["predicate"]["buildDefinition"]["resolvedDependencies"]:
        found = ResourceDescriptor(name=each["name"], uri=each.get("uri", ""), digest=each.get("digest"))
        found.validate()


def test_the_provenance_binds_every_file_and_names_data_code_and_tools() -> None:
    tree = json.loads(provenance(MADE))
    made_from = tree["predicate"]["buildDefinition"]["resolvedDependencies"]

    assert {each["name"]: each["digest"]["sha256"] for each in tree["subject"]} == {
        f"models/gestures/3/arm64-board/{name}": sha256 for name, sha256 in MADE.files.items()
    }
    assert {"name": "data/moves", "digest": {"sha256": DATA}, "annotations": {"rows": 360}} in made_from
    assert {"name": "skerry", "uri": "pkg:pypi/skerry@0.1.0", "digest": {"gitCommit": COMMIT}} in made_from
    assert {"name": "onnx", "uri": "pkg:pypi/onnx@1.17.0", "annotations": {"stage": "compiling"}} in made_from
    assert {"name": "numpy", "uri": "pkg:pypi/numpy@1.26.0", "annotations": {"stage": "training"}} in made_from
    assert tree["predicate"]["buildDefinition"]["externalParameters"]["recipe"] == MADE.recipe


def test_a_checkout_with_changes_says_so() -> None:
    tree = json.loads(provenance(replace(MADE, tools={**MADE.tools, "revision": f"{COMMIT}-dirty"})))

    (code,) = [
        each for each in tree["predicate"]["buildDefinition"]["resolvedDependencies"] if each["name"] == "skerry"
    ]
    assert code["digest"] == {"gitCommit": COMMIT}
    assert code["annotations"] == {"changed": True}


@pytest.mark.parametrize("write", [bill_of_materials, provenance])
def test_equal_builds_give_equal_bytes_and_other_ones_do_not(write: releases.Writer) -> None:
    again = replace(MADE, files=dict(reversed(MADE.files.items())), tools=dict(reversed(MADE.tools.items())))

    assert write(MADE) == write(again)
    assert write(MADE) != write(replace(MADE, files={**MADE.files, "model.onnx": "0" * 64}))


def test_outside_of_a_checkout_the_revision_is_the_version(tmp_path: Path) -> None:
    assert revision(tmp_path) == __version__
    (tmp_path / ".git").mkdir()  # no repository either
    assert revision(tmp_path) == __version__
    assert toolchain()["skerry"] == __version__
    assert {"python", "numpy", "onnx", "revision"} <= toolchain().keys()


def test_both_documents_are_targets_of_the_release_and_no_device_fetches_them(
    founded: Plane, session: Session, keys: Path
) -> None:
    path = release(founded, session, keys, 1)
    folder = path.removesuffix("manifest.json")
    listed = image_repository.targets(session).targets

    for file in ("bom.cdx.json", "provenance.intoto.json"):
        body = releases.document(founded, session, "gestures-1", profile="x86-64-gateway", file=file)
        assert listed[folder + file].hashes["sha256"] == founded.blobs.put(body)
        assert founded.blobs.put(body) not in retention.blobs(session, releases.get(session, "gestures-1"))
        with pytest.raises(Unknown, match="of a profile that it was built for"):
            releases.document(founded, session, "gestures-1", profile="no-such", file=file)
    # they speak of the very files that are listed
    tree = json.loads(
        releases.document(founded, session, "gestures-1", profile="x86-64-gateway", file="provenance.intoto.json")
    )
    assert {each["name"]: each["digest"] for each in tree["subject"]} == {
        name: listed[name].hashes for name in (folder + "manifest.json", folder + "model.onnx")
    }


def test_the_second_build_of_a_profile_has_documents_of_its_own(founded: Plane, session: Session, keys: Path) -> None:
    train(founded, session, 1)
    build = session.query(Build).one()
    other = {"manifest.json": founded.blobs.put(b"other manifest"), "model.onnx": founded.blobs.put(b"other model")}
    build.report = {
        "chosen": "int8",
        "kept": ["int8", "float32"],
        "candidates": [{"name": "int8", "agreement": 0.75}, {"name": "float32", "agreement": 0.5}],
        "second": {"manifest": other["manifest.json"], "files": {"model.onnx": other["model.onnx"]}},
    }
    releases.stage(founded, session, model="gestures", version=1)
    sign(founded, session, keys, "gestures-1")

    def document(profile: str, file: str) -> Any:
        return json.loads(releases.document(founded, session, "gestures-1", profile=profile, file=file))

    for profile, precision, agreement in (
        ("x86-64-gateway", "int8", "0.75"),
        ("x86-64-gateway.second", "float32", "0.5"),
    ):
        tree = document(profile, "provenance.intoto.json")
        listed = image_repository.targets(session).targets
        for each in tree["subject"]:
            assert each["name"].startswith(f"models/gestures/1/{profile}/")
            assert listed[each["name"]].hashes == each["digest"]
        assert tree["predicate"]["buildDefinition"]["internalParameters"]["chosen"] == precision
        (model,) = [each for each in tree["subject"] if each["name"].endswith("model.onnx")]
        assert (model["digest"]["sha256"] == other["model.onnx"]) == profile.endswith(".second")
        card = document(profile, "bom.cdx.json")["metadata"]["component"]["modelCard"]
        assert agreement in {each["value"] for each in card["quantitativeAnalysis"]["performanceMetrics"]}


def test_a_staged_release_shows_its_documents_before_anybody_signs(
    founded: Plane, session: Session, keys: Path
) -> None:
    train(founded, session, 1)
    releases.stage(founded, session, model="gestures", version=1)
    ask = {"profile": "x86-64-gateway", "file": "bom.cdx.json"}
    before = releases.document(founded, session, "gestures-1", **ask)

    sign(founded, session, keys, "gestures-1")

    assert releases.document(founded, session, "gestures-1", **ask) == before


def test_a_build_without_a_toolchain_is_released_all_the_same(founded: Plane, session: Session, keys: Path) -> None:
    train(founded, session, 1)
    build = session.query(Build).one()
    build.report = {"runtime": "onnxruntime"}

    releases.stage(founded, session, model="gestures", version=1)

    assert sign(founded, session, keys, "gestures-1").state == "live"
