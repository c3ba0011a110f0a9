"""The local face over real sockets, in front of a fake of the engine."""

import http.client
import json
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest

from skerry.errors import Broken
from tests.integration.serving.clients import UnixConnection
from tests.integration.serving.fake import FakeModels, digest
from tests.integration.serving.served import BODY, INFER, Served, request_of, until

# --- paths


def test_the_server_says_who_it_is_and_that_it_lives(serve: Callable[..., Served]) -> None:
    served = serve()
    for unix in (True, False):
        about = served.ask("GET", "/v2", unix=unix)
        assert about.status == 200
        assert about.tree["name"] == "skerry"
        assert about.tree["extensions"] == ["binary_tensor_data"]
        assert served.ask("GET", "/v2/health/live", unix=unix).tree == {"live": True}
        assert served.ask("GET", "/v2/health/ready", unix=unix).tree == {"ready": True}


def test_it_is_ready_when_every_model_is_and_there_is_one(serve: Callable[..., Served]) -> None:
    served = serve()
    served.models.ready = False
    heard = served.ask("GET", "/v2/health/ready")
    assert (heard.status, heard.tree) == (503, {"ready": False})
    heard = served.ask("GET", "/v2/models/watch/ready")
    assert (heard.status, heard.tree) == (503, {"name": "watch", "ready": False})
    served.models.ready, served.models.version = True, 0
    assert served.ask("GET", "/v2/health/ready").status == 503
    assert served.ask("GET", "/v2/health/live").status == 200


def test_metadata_names_the_tensors_as_the_protocol_does(serve: Callable[..., Served]) -> None:
    heard = serve().ask("GET", "/v2/models/watch/versions/1")
    assert heard.tree == {
        "name": "watch",
        "versions": ["1"],
        "platform": "onnxruntime",
        "inputs": [
            {"name": "window", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "age", "datatype": "INT64", "shape": [1]},
        ],
        "outputs": [
            {"name": "scaled", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "label", "datatype": "BYTES", "shape": [1]},
        ],
    }
    assert heard.headers["skerry-manifest"] == digest(1)


NOWHERE = [
    ("GET", "/", 404),
    ("GET", "/v2/models", 404),
    ("GET", "/v2/models/other", 404),
    ("GET", "/v2/models/watch/versions/9/ready", 404),
    ("POST", "/v2/models/watch/versions/9/infer", 404),
    ("POST", "/v2/models/../watch/infer", 404),
    ("GET", "/v2/models/watch/config", 404),
    ("GET", INFER, 405),
    ("POST", "/v2/models/watch", 405),
    ("DELETE", "/v2/health/live", 405),
]


@pytest.mark.parametrize(("method", "path", "status"), NOWHERE)
def test_what_is_not_there_is_said_in_one_line(
    serve: Callable[..., Served], method: str, path: str, status: int
) -> None:
    heard = serve().ask(method, path)
    assert heard.status == status
    assert list(heard.tree) == ["error"]
    assert ("allow" in heard.headers) == (status == 405)


def test_an_answer_names_the_manifest_that_made_it(serve: Callable[..., Served]) -> None:
    served = serve(FakeModels(version=3))
    for path in (INFER, "/v2/models/watch/versions/3/infer", "/v2/models/w%61tch/infer?x=1"):
        heard = served.ask("POST", path, BODY, unix=True)
        assert heard.status == 200, heard.body
        assert heard.headers["skerry-manifest"] == digest(3)
        assert heard.tree["model_version"] == "3"
        assert heard.tree["outputs"][0]["data"] == [6.0, 0.0, 3.0]


def test_binary_tensors_pass_as_they_are(serve: Callable[..., Served]) -> None:
    tree = request_of() | {"outputs": [{"name": "scaled", "parameters": {"binary_data": True}}]}
    del tree["inputs"][0]["data"]
    tree["inputs"][0]["parameters"] = {"binary_data_size": 12}
    text = json.dumps(tree).encode()
    heard = serve().ask(
        "POST", INFER, text + struct.pack("<3f", 5, 6, 7), Inference_Header_Content_Length=str(len(text))
    )
    length = int(heard.headers["inference-header-content-length"])
    assert struct.unpack("<3f", heard.body[length:]) == (5, 6, 7)


def test_each_error_has_the_status_of_who_should_act(serve: Callable[..., Served]) -> None:
    served = serve()
    assert served.ask("POST", INFER, b"{}").status == 400
    served.models.busy = True
    heard = served.ask("POST", INFER, BODY)
    assert (heard.status, heard.headers["retry-after"]) == (503, "1")
    served.models.busy = False

    def broken() -> None:
        raise Broken("expected a disk, got none")

    served.models.before_run = broken
    assert served.ask("POST", INFER, BODY).status == 500


def test_a_defect_is_answered_and_logged_and_ends_nothing(
    serve: Callable[..., Served], caplog: pytest.LogCaptureFixture
) -> None:
    served = serve()

    def defect() -> None:
        raise ZeroDivisionError

    served.models.before_run = defect
    heard = served.ask("POST", INFER, BODY)
    assert heard.status == 500
    assert "ZeroDivisionError" in caplog.text
    assert "ZeroDivisionError" not in heard.tree["error"]
    served.models.before_run = lambda: None
    assert served.ask("POST", INFER, BODY).status == 200


# --- what programs here tell


def observations(manifest: str, *rows: float, width: int = 5, **more: Any) -> bytes:
    head = {"manifest": manifest, "width": width, **more}
    return json.dumps(head).encode() + b"\n" + struct.pack(f"<{len(rows)}d", *rows)


def test_observations_are_counted(serve: Callable[..., Served]) -> None:
    served = serve()
    body = observations(digest(1), 0.5, 2, 0.75, -1, 310.0, 1.5, 0, 0.5, 1, float("nan"), dropped=4)
    assert served.ask("POST", "/skerry/v1/observations", body, unix=True).status == 204
    ((manifest, (first, second), dropped),) = served.models.rows
    assert (manifest, dropped) == (digest(1), 4)
    assert (first.features, first.prediction, first.confidence, first.truth) == ((0.5,), 2, 0.75, -1)
    assert (second.prediction, second.truth, first.latency_us) == (0, 1, 310.0)


def test_observations_of_what_is_not_committed_are_not(serve: Callable[..., Served]) -> None:
    served = serve()
    assert served.ask("POST", "/skerry/v1/observations", observations(digest(2)), unix=True).status == 409


MALFORMED = [
    b"",
    b"{}",
    b"{}\n",
    b'{"manifest": "../..", "width": 5}\n',
    observations(digest(1))[:-1],
    observations(digest(1), 1, 2, 3),
    observations(digest(1), *range(6), width=6),
    observations(digest(1), width=3),
    observations(digest(1), width=1 << 62),
    observations(digest(1), width=0),
    observations(digest(1), dropped=-1),
    observations(digest(1), *range(5)) + b"\0" * (1 << 20),
]


@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_observations_are_refused(serve: Callable[..., Served], body: bytes) -> None:
    served = serve()
    assert served.ask("POST", "/skerry/v1/observations", body, unix=True).status == 400
    assert served.models.rows == []


def test_a_crash_is_heard(serve: Callable[..., Served]) -> None:
    served = serve()
    body = json.dumps({"manifest": digest(1), "reason": "process 7 died inside the model"})
    assert served.ask("POST", "/skerry/v1/crashed", body, unix=True).status == 204
    assert served.models.crashes == [(digest(1), "process 7 died inside the model")]
    for wrong in ("{}", body.replace("died", "d" * 500), body.replace("0001", "000x")):
        assert served.ask("POST", "/skerry/v1/crashed", wrong, unix=True).status == 400


def test_over_tcp_nobody_counts_or_rolls_back(serve: Callable[..., Served]) -> None:
    served = serve()
    crash = json.dumps({"manifest": digest(1), "reason": "gone"})
    assert served.ask("POST", "/skerry/v1/observations", observations(digest(1))).status == 403
    assert served.ask("POST", "/skerry/v1/crashed", crash).status == 403
    assert (served.models.rows, served.models.crashes) == ([], [])


def test_pages_in_a_browser_are_refused(serve: Callable[..., Served]) -> None:
    served = serve()
    page = served.ask("POST", INFER, BODY, Origin="http://evil.example")
    assert (page.status, "a page of 'http://evil.example'" in page.tree["error"]) == (403, True)
    assert served.ask("GET", "/v2", Host="evil.example:80").status == 403
    assert served.ask("GET", "/v2", Host="127.0.0.1.evil.example").status == 403
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:9"):
        assert served.ask("GET", "/v2", Host=host).status == 200
    assert served.models.runs == 0


# --- results kept for equal inputs


def test_an_equal_input_is_answered_from_what_was_kept_and_counted(serve: Callable[..., Served]) -> None:
    served = serve(FakeModels(stateful=False), keep_bytes=1 << 16)
    first, second = (served.ask("POST", INFER, BODY) for _ in range(2))
    assert (first.body, first.headers) == (second.body, second.headers)
    assert served.models.runs == 1
    assert [manifest for manifest, _, _ in served.models.rows] == [digest(1)]
    served.ask("POST", INFER, json.dumps(request_of(3.0)))
    assert served.models.runs == 2


def test_nothing_is_kept_of_a_state_of_a_refusal_on_trial_or_unasked(serve: Callable[..., Served]) -> None:
    cases: list[tuple[FakeModels, int, bytes]] = [
        (FakeModels(stateful=True), 1 << 16, BODY),
        (FakeModels(stateful=False), 0, BODY),
        (FakeModels(stateful=False, trial=True), 1 << 16, BODY),
    ]
    for models, room, body in cases:
        served = serve(models, keep_bytes=room)
        for _ in range(2):
            assert served.ask("POST", INFER, body).status == 200
        assert models.runs == 2


def test_no_version_answers_for_another(serve: Callable[..., Served]) -> None:
    served = serve(FakeModels(stateful=False), keep_bytes=1 << 16)
    for version, expected in ((1, 2.0), (2, 4.0), (1, 2.0)):
        served.models.version = version
        assert served.ask("POST", INFER, BODY).tree["outputs"][0]["data"][0] == expected


def test_a_swap_in_the_middle_keeps_nothing_under_the_wrong_name(serve: Callable[..., Served]) -> None:
    served = serve(FakeModels(stateful=False), keep_bytes=1 << 16)
    serving, models = served.models.serving, served.models

    def swapped() -> Any:
        before = serving()
        models.version = 2
        return before

    models.serving = swapped  # type: ignore[method-assign]
    # the face looked, and saw version 1; version 2 answered
    assert served.ask("POST", INFER, BODY).tree["model_version"] == "2"
    models.serving = serving  # type: ignore[method-assign]
    models.version = 1
    assert served.ask("POST", INFER, BODY).tree["model_version"] == "1"


# --- swaps


def test_swapping_under_load_drops_and_mixes_nothing(serve: Callable[..., Served]) -> None:
    served = serve(FakeModels(stateful=False), keep_bytes=1 << 14)
    wrong: list[Any] = []
    seen: set[str] = set()
    counts = [0] * 6
    ending = threading.Event()

    def load(place: int) -> None:
        unix = place % 2
        connection = UnixConnection(served.path) if unix else http.client.HTTPConnection("127.0.0.1", served.port)
        value = 0
        while not ending.is_set():
            value += 1
            connection.request("POST", INFER, body=json.dumps(request_of(float(value % 7))))
            answer = connection.getresponse()
            tree = json.loads(answer.read())
            version = tree.get("model_version", "0")
            right = (
                answer.status == 200
                and answer.getheader("skerry-manifest") == digest(int(version))
                and tree["outputs"][0]["data"] == [value % 7 * float(version), 0.0, float(version)]
            )
            if not right:
                wrong.append((answer.status, answer.headers, tree))
            seen.add(version)
            counts[place] += 1
        connection.close()

    threads = [threading.Thread(target=load, args=(place,)) for place in range(len(counts))]
    for thread in threads:
        thread.start()
    for version in range(2, 12):
        goal = sum(counts) + 60
        until(lambda goal=goal: sum(counts) >= goal or bool(wrong), why="answers")  # type: ignore[misc]
        served.models.version = version
    ending.set()
    for thread in threads:
        thread.join(10)
    assert wrong == []
    assert len(seen) >= 8
    assert min(counts) > 0
