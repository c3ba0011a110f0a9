"""A client that is not ours, `tritonclient[http]`, talks to the local face unmodified."""

from collections.abc import Iterator
from typing import Any

import pytest

from agent.local.serving import Face
from tests.integration.serving.clients import tell_by_tritonclient
from tests.integration.serving.fake import FakeModels

SCALED = ["float32", [1, 3], ["7.0", "7.0", "7.0"]]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the client saw of the fake's model in version 7."""
    face = Face(FakeModels(version=7))
    port = face.start(tmp_path_factory.mktemp("face") / "serve.sock", port=0)
    yield tell_by_tritonclient(port, "watch")
    face.stop()


def test_it_finds_the_server_and_the_model(story: dict[str, Any]) -> None:
    said = {key: story[key] for key in ("live", "ready", "model_ready", "version_ready", "other_ready")}
    assert said == {"live": True, "ready": True, "model_ready": True, "version_ready": True, "other_ready": False}
    assert story["server"]["name"] == "skerry"
    assert [spec["name"] for spec in story["metadata"]["inputs"]] == ["window", "age"]


@pytest.mark.parametrize("form", ["json", "binary", "mixed", "gzip", "deflate"])
def test_it_infers_in_every_form(story: dict[str, Any], form: str) -> None:
    assert story[form]["version"] == "7"
    outputs = story[form]["outputs"]
    assert outputs["scaled"] == SCALED
    assert outputs["label"][1:] == [[1], ["v7"]]


def test_ids_versions_batches_and_single_outputs_are_heard(story: dict[str, Any]) -> None:
    assert story["mixed"]["id"] == "r-1"
    assert list(story["one"]["outputs"]) == ["label"]
    assert story["batch"]["outputs"]["scaled"][1] == [5, 3]
    assert [each["outputs"]["scaled"] for each in story["async"]] == [SCALED] * 20


def test_refusals_come_with_their_status_and_reason(story: dict[str, Any]) -> None:
    statuses = {name: status for name, (status, _) in story["errors"].items()}
    assert statuses == {
        "model": "404",
        "version": "404",
        "datatype": "400",
        "output": "400",
        "classes": "400",
        "sequence": "400",
        "extension": "404",
    }
    assert all("expected" in reason for _, reason in story["errors"].values())
