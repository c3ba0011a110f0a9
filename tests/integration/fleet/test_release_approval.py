"""Releases signed and revoked by the command line, against a real server and a real build."""

import json
import os
from pathlib import Path

import pytest

from control_plane import replacements
from control_plane.cli.program import main
from control_plane.key_files import KeyList, read_keys, write_keys
from control_plane.schema.devices import Device
from control_plane.schema.models import Build
from skerry.wire import codec
from skerry.wire.manifest import Manifest
from tests.integration.fleet.conftest import Coast, recordings

Output = pytest.CaptureFixture[str]
RECIPE = {"hidden": [8], "max_iter": 60, "validation_groups": [4, 5]}
PROFILE = "x86-64-gateway"

pytestmark = pytest.mark.long


def build(coast: Coast, version: int) -> None:
    """Train and compile the next version, for a gateway."""
    coast.ask("POST", "/v1/datasets/moves/parts", content=recordings(groups=6, rows=40, seed=version))
    coast.job(coast.ask("POST", "/v1/models/moves/train", json={"dataset": "moves", "recipe": RECIPE}))
    job = coast.ask("POST", f"/v1/models/moves/versions/{version}/compile", json={"profiles": [PROFILE]})
    assert coast.job(job)["state"] == "done"


@pytest.fixture
def built(coast: Coast, monkeypatch: pytest.MonkeyPatch) -> Coast:
    """Return a control plane with version 1 built for a gateway; the command line finds it by the environment."""
    build(coast, 1)
    monkeypatch.delenv("SKERRY_HOME", raising=False)
    monkeypatch.setenv("SKERRY_URL", str(coast.client.base_url))
    monkeypatch.setenv("SKERRY_TOKEN", coast.plane.home.operator_token())
    return coast


def state(coast: Coast, name: str) -> str:
    """Return the state of a release."""
    return str(coast.ask("GET", f"/v1/releases/{name}")["state"])


def refusal(capsys: Output) -> str:
    """Return the one line of a refusal."""
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_file_goes_out_is_signed_without_server_or_settings_and_comes_back(
    built: Coast, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["release", "create", "moves", "1"]) == 0
    file = tmp_path / "moves-1.json"
    assert main(["release", "export", "moves-1", "--out", str(file)]) == 0
    assert f"models/moves/1/{PROFILE}/manifest.json" in capsys.readouterr().out
    assert main(["release", "import", str(file)]) == 2
    assert "expected signatures, got none" in refusal(capsys)

    with monkeypatch.context() as offline:
        for name in ("SKERRY_URL", "SKERRY_TOKEN"):
            offline.delenv(name)
        offline.setenv("HOME", str(tmp_path / "nobody"))
        assert main(["release", "show", str(file)]) == 0
        assert main(["release", "sign", str(file), "--keys", str(built.keys)]) == 0
    said = capsys.readouterr().out
    digest = built.ask("GET", "/v1/models/moves/versions/1")["builds"][0]["manifest"]
    assert f"+ models/moves/1/{PROFILE}/manifest.json" in said
    assert digest in said
    assert "1 of 1 signatures" in said
    assert state(built, "moves-1") == "staged"

    assert main(["release", "import", str(file)]) == 0
    assert "moves-1: live" in capsys.readouterr().out
    assert state(built, "moves-1") == "live"
    assert main(["release", "import", str(file)]) == 2
    assert "but it is live" in refusal(capsys)


def test_a_file_that_another_release_overtook_is_not_handed_in(built: Coast, tmp_path: Path, capsys: Output) -> None:
    file = tmp_path / "moves-1.json"
    build(built, 2)
    for version in ("1", "2"):
        assert main(["release", "create", "moves", version]) == 0
    assert main(["release", "export", "moves-1", "--out", str(file)]) == 0
    assert main(["release", "sign", str(file), "--keys", str(built.keys)]) == 0
    assert main(["release", "sign", "moves-2", "--keys", str(built.keys)]) == 0
    capsys.readouterr()

    assert main(["release", "import", str(file)]) == 2
    assert "export and sign it again" in refusal(capsys)
    assert state(built, "moves-1") == "staged"


def test_what_cannot_be_signed_or_read_is_one_line(built: Coast, tmp_path: Path, capsys: Output) -> None:
    assert main(["release", "create", "moves", "1"]) == 0
    file = tmp_path / "moves-1.json"
    assert main(["release", "export", "moves-1", "--out", str(file)]) == 0
    tree = json.loads(file.read_bytes())
    capsys.readouterr()

    def refused(path: Path, *, code: int = 2, keys: Path = built.keys) -> str:
        assert main(["release", "sign", str(path), "--keys", str(keys)]) == code
        return refusal(capsys)

    forged = tmp_path / "forged.json"
    for changed, says in (
        ({"payload": "e30="}, "expected TUF targets metadata"),
        ({"payload": "%%"}, "in base64"),
        ({"keyids": ["0" * 64]}, "expected"),
        ({"format": "other"}, "skerry-approval-1"),
        ({"threshold": "2"}, "expected int"),
    ):
        forged.write_text(json.dumps(tree | changed))
        assert says in refused(forged)
    forged.write_bytes(os.urandom(64))
    assert "expected a file of `skerry release export`" in refused(forged)
    assert "got none" in refused(tmp_path / "missing.json")
    assert "no keys.json" in refused(file, code=4, keys=tmp_path)
    # what was refused is not written to
    assert json.loads(file.read_bytes()) == tree
    assert main(["release", "export", "moves-9", "--out", str(file)]) == 2
    assert "skerry release list" in refusal(capsys)
    assert main(["release", "export", "moves-1", "--out", str(tmp_path / "no" / "where.json")]) == 4
    assert "expected to write" in refusal(capsys)


def test_a_holder_without_a_root_key_sees_everything_and_is_told_why(
    built: Coast, tmp_path: Path, capsys: Output
) -> None:
    held = read_keys(built.keys)
    folder = tmp_path / "holder"
    folder.mkdir()
    (mine,) = held.of("targets")
    name = mine.uri.partition(":")[2]
    (folder / name).write_bytes((built.keys / name).read_bytes())
    write_keys(folder, KeyList((mine,), threshold=1))
    assert main(["release", "create", "moves", "1"]) == 0
    capsys.readouterr()

    assert main(["release", "sign", "moves-1", "--keys", str(folder)]) == 0

    said = capsys.readouterr().out
    assert "could not be checked with the root keys at hand" in said
    assert "+ models/moves/1/" in said


def test_a_revocation_is_signed_clears_the_broker_and_sends_devices_back(built: Coast, capsys: Output) -> None:
    build(built, 2)
    for version in (1, 2):
        built.release("moves", version)
    built.enrol("gull", PROFILE)
    manifests = {}
    with built.plane.sessions.begin() as session:
        for row in session.query(Build):
            manifests[row.version] = row.manifest
        session.get_one(Device, "gull").reported = {"manifest": manifests[2]}
    published = {topic for topic, payload, _ in built.said.messages if "/blob/" in topic and payload}
    before = len(built.said.messages)

    assert main(["release", "revoke", "moves-2"]) == 0
    assert "its revocation has 0 of 1 signatures" in capsys.readouterr().out
    assert state(built, "moves-2") == "live"
    assert main(["release", "sign", "moves-2", "--keys", str(built.keys)]) == 0

    said = capsys.readouterr().out
    assert f"- models/moves/2/{PROFILE}/manifest.json" in said
    assert "moves-2: revoked" in said
    cleared = {topic for topic, payload, retain in built.said.messages[before:] if "/blob/" in topic and not payload}
    of_the_first = {row["release"]: row["files"] for row in built.ask("GET", "/v1/publications")}
    assert cleared & published
    assert set(of_the_first) == {"moves-1"}
    assert published - cleared
    assert main(["rollout", "create", "moves-2", "--wave", "all=rest"]) == 2
    assert "got revoked" in refusal(capsys)

    assert replacements.reconcile(built.plane, built.plane.clock()) == 1
    assert replacements.reconcile(built.plane, built.plane.clock()) == 0
    topic, payload, retain = built.said.messages[-1]
    assert topic.endswith("/watch.gull/down/assign")
    assert retain
    told = json.loads(json.loads(payload)["metadata"]["targets"])["signed"]["targets"]
    (entry,) = told.values()
    assert (entry["custom"]["release"], entry["custom"]["rollback"]) == ("moves-1", True)
    assert entry["hashes"]["sha256"] == manifests[1]
    (deployment,) = built.ask("GET", "/v1/devices/gull")["deployments"]
    assert (deployment["release"], deployment["rollout"], deployment["state"]) == ("moves-1", None, "assigned")


def test_the_manifest_binds_the_gate_report_and_the_documents_say_how_it_was_made(built: Coast, capsys: Output) -> None:
    built.release("moves", 1)
    (made_of,) = built.ask("GET", "/v1/models/moves/versions/1")["builds"]
    manifest = codec.decode(Manifest, built.plane.blobs.get(made_of["manifest"]), limit=1 << 20)
    gate = manifest.file(manifest.gate_file)
    assert gate.sha256 == made_of["files"][manifest.gate_file]
    assert json.loads(built.plane.blobs.get(gate.sha256))["verdict"] == "passed"
    capsys.readouterr()

    assert main(["release", "show", "moves-1", "--bom", PROFILE]) == 0
    bill = json.loads(capsys.readouterr().out)
    assert main(["release", "show", "moves-1", "--provenance", PROFILE]) == 0
    made = json.loads(capsys.readouterr().out)

    model = bill["metadata"]["component"]
    assert model["hashes"][0]["content"] == made_of["manifest"]
    assert {each["type"] for each in model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]} >= {
        "accuracy",
        "size_bytes",
    }
    parts = {part["sha256"] for part in built.ask("GET", "/v1/datasets")}
    data = [each for each in bill["components"] if each["type"] == "data"]
    assert {each["hashes"][0]["content"] for each in data} <= parts
    assert {"onnx", "onnxruntime", "scikit-learn"} <= {each["name"] for each in bill["components"]}
    subjects = {each["name"].rpartition("/")[2]: each["digest"]["sha256"] for each in made["subject"]}
    assert subjects == {**made_of["files"], "manifest.json": made_of["manifest"]}
    names = {each["name"] for each in made["predicate"]["buildDefinition"]["resolvedDependencies"]}
    assert {"data/moves", "trained model", "skerry", "numpy"} <= names
    assert main(["release", "show", "moves-1", "--bom", "no-such"]) == 2
    assert "of a profile that it was built for" in refusal(capsys)


def test_an_automatic_model_is_released_and_revoked_at_once_when_that_was_granted(built: Coast, capsys: Output) -> None:
    assert main(["model", "policy", "moves"]) == 0
    assert "signed: manual" in capsys.readouterr().out
    assert main(["model", "policy", "moves", "automatic"]) == 0
    assert main(["model", "policy", "nothing", "automatic"]) == 2
    assert "skerry model list" in refusal(capsys)
    assert main(["release", "create", "moves", "1"]) == 2
    assert "skerry keys grant moves" in refusal(capsys)
    assert built.ask("GET", "/v1/releases") == []
    assert built.client.put("/v1/models/moves/policy", json={"policy": "sometimes"}).status_code == 422

    assert main(["keys", "grant", "moves", "--keys", str(built.keys)]) == 0
    capsys.readouterr()
    assert main(["release", "create", "moves", "1"]) == 0
    assert "moves-1: live, for x86-64-gateway, signed online by automatic-moves" in capsys.readouterr().out
    assert any("/blob/" in topic for topic, _, _ in built.said.messages)
    assert main(["release", "revoke", "moves-1"]) == 0
    assert "moves-1: revoked" in capsys.readouterr().out
