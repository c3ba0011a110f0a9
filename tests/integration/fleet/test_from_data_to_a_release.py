"""Data in, a trained and gated release out, through the API, with real worker processes."""

import json

from control_plane.schema.work import Job
from tests.integration.fleet.conftest import Coast, recordings

RECIPE = {"hidden": [8], "max_iter": 60, "validation_groups": [4, 5]}


def test_two_versions_are_trained_compiled_and_released(coast: Coast) -> None:
    data = recordings(groups=6, rows=60, seed=1)
    part = coast.ask("POST", "/v1/datasets/moves/parts", content=data)
    again = coast.ask("POST", "/v1/datasets/moves/parts", content=data)
    assert part == again
    assert (part["rows"], part["role"]) == (360, "train")

    asked = coast.ask("POST", "/v1/models/moves/train", json={"dataset": "moves", "recipe": RECIPE})
    trained = coast.job(asked)
    assert trained["state"] == "done", trained["error"]
    assert trained["result"]["version"] == 1
    assert trained["result"]["metrics"]["accuracy"] > 0.8
    assert "training on 240 windows" in trained["log"]
    same = coast.ask("POST", "/v1/models/moves/train", json={"dataset": "moves", "recipe": RECIPE})
    assert same["job"] == asked["job"]

    profiles = ["x86-64-gateway", "arm64-board"]
    job = coast.job(coast.ask("POST", "/v1/models/moves/versions/1/compile", json={"profiles": profiles}))
    assert job["state"] == "done", job["error"]
    model = coast.ask("GET", "/v1/models/moves/versions/1")
    assert [build["profile"] for build in model["builds"]] == sorted(profiles)
    for build in model["builds"]:
        assert build["gate"] == "passed", build["report"]
        manifest = json.loads(coast.plane.blobs.get(build["manifest"]))
        assert (manifest["model"], manifest["version"], manifest["profile"]) == ("moves", 1, build["profile"])
        chosen = next(one for one in build["report"]["candidates"] if one["name"] == build["report"]["chosen"])
        assert chosen["agreement"] >= 0.975

    release = coast.release("moves", 1)
    assert release["state"] == "live"
    assert any("/blob/" in topic for topic, _, _ in coast.said.messages)
    refused = coast.client.post("/v1/models/moves/versions/1/compile", json={"profiles": ["cortex-m"]})
    assert refused.status_code == 409

    coast.ask("POST", "/v1/datasets/moves/parts", content=recordings(groups=6, rows=60, seed=2, shift=1.0))
    field = recordings(groups=2, rows=15, seed=3, shift=1.0)
    coast.ask("POST", "/v1/datasets/moves/parts", params={"role": "gate"}, content=field)
    second = coast.job(coast.ask("POST", "/v1/models/moves/train", json={"dataset": "moves", "recipe": RECIPE}))
    assert second["result"]["version"] == 2
    coast.job(coast.ask("POST", "/v1/models/moves/versions/2/compile", json={"profiles": ["x86-64-gateway"]}))
    (build,) = coast.ask("GET", "/v1/models/moves/versions/2")["builds"]
    assert build["gate"] == "passed"
    report = build["report"]
    assert report["reference"]["field_rows"] == 30
    (best,) = [candidate for candidate in report["candidates"] if candidate["name"] == report["chosen"]]
    assert best["field_accuracy"] > report["reference"]["previous_field_accuracy"]


def test_a_job_that_is_refused_says_why_and_can_be_asked_for_again(coast: Coast) -> None:
    coast.ask("POST", "/v1/datasets/moves/parts", content=recordings(groups=2, rows=20, seed=1))
    body = {"dataset": "moves", "recipe": {"validation_groups": [77]}}
    job = coast.job(coast.ask("POST", "/v1/models/moves/train", json=body))
    assert job["state"] == "failed"
    assert "77" in job["error"]
    assert coast.ask("POST", "/v1/models/moves/train", json=body)["state"] == "queued"
    events = coast.ask("GET", "/v1/events")
    assert any(event["kind"] == "job" and "77" in event["text"] for event in events)


def test_unknown_names_are_404_and_bad_requests_one_line(coast: Coast) -> None:
    for path in ("/v1/jobs/9", "/v1/models/none/versions/1", "/v1/devices/none", "/v1/rollouts/9", "/v1/releases/x"):
        answer = coast.client.get(path)
        assert answer.status_code == 404, path
        assert answer.headers["content-type"] == "application/problem+json"
    assert coast.client.post("/v1/datasets/moves/parts", content=b"no npz").status_code == 422
    assert coast.client.get("/v1/windows", params={"limit": 5000}).status_code == 422
    coast.client.headers.pop("Authorization")
    assert coast.client.get("/v1/devices").status_code == 401


def test_a_job_whose_runner_is_gone_is_taken_up_when_its_lease_ends(coast: Coast) -> None:
    coast.ask("POST", "/v1/datasets/moves/parts", content=recordings(groups=6, rows=40, seed=1))
    parts = [part["sha256"] for part in coast.ask("GET", "/v1/datasets")]
    long_ago = coast.plane.clock().replace(year=2020)
    with coast.plane.sessions.begin() as session:
        job = Job(
            kind="train",
            key="left-behind",
            state="running",
            parameters={"model": "moves", "dataset": "moves", "parts": parts, "recipe": RECIPE},
            leased_until=long_ago,
            created_at=long_ago,
        )
        session.add(job)
        session.flush()
        number = job.id
    done = coast.job({"job": number})
    assert done["state"] == "done", done["error"]
    assert "taken up again" in done["log"]
