"""Remote requests on the shore: who asked whom for what, told in time, answered by the one who was asked, once."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from control_plane import requests
from control_plane.ingest import handle
from control_plane.plane import Plane
from control_plane.publisher import republish_current
from control_plane.refusals import Conflict, TooMany, Unknown
from control_plane.schema.devices import DeviceComponent, DeviceRequest
from control_plane.schema.work import Event
from skerry.errors import Rejected
from skerry.wire import codec, topics
from skerry.wire.messages import Answer, Reported, Request
from tests.unit.fleet.conftest import Said

DOWN = topics.down("watch.gull", "request")
UP = topics.up("watch.gull", "answer")
REPORTED = Reported(
    version=1, online=True, state="idle", agent="1", profile="p", runtime="r", architecture="a", health="ok"
)


def ask(plane: Plane, verb: str = "self-test", device: str = "gull", **options: Any) -> DeviceRequest:
    given = {"args": {}, "expires_s": 60, "asked_by": "operator at 127.0.0.1", **options}
    with plane.sessions.begin() as session:
        row = requests.ask(plane, session, device, verb, given.pop("args"), **given)
    requests.publish(plane, [row])
    return row


def answer(plane: Plane, row_id: str, *, ok: bool = True, topic: str = UP, **result: Any) -> None:
    handle(plane, topic, codec.encode(Answer(id=row_id, ok=ok, result=result)))


def found(plane: Plane, row: DeviceRequest) -> tuple[str, dict[str, Any]]:
    with plane.readers() as session:
        kept = requests.find(session, "gull", row.id)
        return requests.state_of(kept, now=plane.clock()), kept.result


def events_of(plane: Plane, kind: str) -> list[str]:
    with plane.readers() as session:
        return list(session.scalars(select(Event.text).where(Event.kind == kind)))


def told(plane: Plane) -> list[Request]:
    assert isinstance(plane.outgoing, Said)
    return [codec.decode(Request, body) for topic, body in plane.outgoing.messages if topic == DOWN]


def later(plane: Plane, **by: float) -> Plane:
    now = plane.clock()
    return replace(plane, clock=lambda: now + timedelta(**by))


def test_a_request_is_told_and_its_answer_kept(plane: Plane) -> None:
    row = ask(plane, "collect-logs", args={"lines": "20"})

    (request,) = told(plane)
    assert (request.id, request.verb, request.args) == (row.id, "collect-logs", {"lines": 20})
    assert (request.asked_by, request.only_repeat) == ("operator at 127.0.0.1", False)
    assert abs(request.expires - plane.clock().timestamp() - 60) < 5
    assert found(plane, row) == ("waiting", {})

    answer(plane, row.id, text="a line")

    assert found(plane, row) == ("done", {"text": "a line"})
    assert events_of(plane, "request") == ["operator at 127.0.0.1 asked gull: collect-logs lines=20"]
    assert events_of(plane, "answer") == ["gull: collect-logs of operator at 127.0.0.1: done"]


def test_a_model_is_restarted_in_a_component_that_the_device_has(plane: Plane) -> None:
    with plane.sessions.begin() as session:
        for name in ("lamps", "agent"):
            session.add(DeviceComponent(device="gull", name=name, added_at=plane.clock()))

    ask(plane, "restart-model", args={"component": "lamps"})
    ask(plane, "restart-model")

    assert [each.args for each in told(plane)] == [{"component": "lamps"}, {}]
    assert events_of(plane, "request")[0] == "operator at 127.0.0.1 asked gull: restart-model component=lamps"
    with pytest.raises(Conflict, match=r"expected one of its components \(lamps\), got 'doors'"):
        ask(plane, "restart-model", args={"component": "doors"})
    with pytest.raises(Rejected, match="got the agent itself"):
        ask(plane, "restart-model", args={"component": "agent"})


def test_the_first_answer_counts(plane: Plane) -> None:
    row = ask(plane)
    answer(plane, row.id, count=1)
    answer(plane, row.id, ok=False, reason="another")

    assert found(plane, row) == ("done", {"count": 1})
    assert len(events_of(plane, "answer")) == 1


def test_an_answer_of_another_device_is_refused(plane: Plane) -> None:
    row = ask(plane)
    with plane.sessions.begin() as session:
        from control_plane.schema.devices import Device

        session.get_one(Device, "auk").state = "enrolled"

    answer(plane, row.id, topic=topics.up("watch.auk", "answer"))
    answer(plane, "0" * 16)
    answer(plane, row.id + "x" * 40)

    assert found(plane, row)[0] == "waiting"
    assert any("expected one to a request to auk" in text for text in events_of(plane, "refused"))


def test_a_late_answer_is_kept(plane: Plane) -> None:
    row = ask(plane)
    after = later(plane, minutes=5)
    assert found(after, row)[0] == "expired"

    answer(after, row.id, count=1)

    assert found(after, row) == ("done", {"count": 1})
    assert events_of(plane, "answer") == ["gull: self-test of operator at 127.0.0.1: done, late"]


def test_what_waits_is_told_again_when_the_broker_or_the_device_comes_back(plane: Plane) -> None:
    row = ask(plane)

    republish_current(plane)
    replies = handle(plane, topics.up("watch.gull", "reported"), codec.encode(REPORTED))
    again = handle(plane, topics.up("watch.gull", "reported"), codec.encode(replace(REPORTED, version=2)))

    assert [each.id for each in told(plane)] == [row.id] * 2
    (reply,) = [each for each in replies if each.topic == DOWN]
    assert (reply.retain, 0 < reply.expiry_s <= 60) == (False, True)
    assert again == []


def test_after_its_time_only_the_answer_is_asked_for_and_for_a_day(plane: Plane) -> None:
    ask(plane)

    republish_current(later(plane, minutes=5))
    republish_current(later(plane, days=2))

    assert [each.only_repeat for each in told(plane)] == [False, True]


def test_who_cannot_hear_is_not_asked(plane: Plane) -> None:
    with pytest.raises(Conflict):
        ask(plane, device="auk")
    with pytest.raises(Unknown):
        ask(plane, device="kittiwake")


@pytest.mark.parametrize(
    "options",
    [
        {"verb": "open-shell"},
        {"verb": "self-test", "args": {"now": "yes"}},
        {"verb": "resend-window"},
        {"expires_s": 1},
        {"expires_s": 30 * 86_400},
    ],
)
def test_what_no_device_would_do_is_refused(plane: Plane, options: dict[str, Any]) -> None:
    with pytest.raises(Rejected):
        ask(plane, **options)
    assert told(plane) == []


def test_what_waits_and_what_is_kept_is_bounded(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "KEPT_PER_DEVICE", 10)
    for _ in range(requests.MAX_WAITING):
        ask(plane)
    with pytest.raises(TooMany):
        ask(plane)

    for _ in range(20):
        with plane.readers() as session:
            waiting = [row.id for row in requests.listed(session, "gull") if row.answered_at is None]
        answer(plane, waiting[-1])
        ask(plane)

    with plane.readers() as session:
        assert len(requests.listed(session, "gull", limit=100)) == 10


def test_a_change_of_health_is_an_event(plane: Plane) -> None:
    for version, health in enumerate(("ok", "degraded", "degraded", "ok")):
        said = replace(REPORTED, version=version, health=health, reasons=() if health == "ok" else ("it is hot",))
        handle(plane, topics.up("watch.gull", "reported"), codec.encode(said))

    assert events_of(plane, "health") == ["gull is degraded: it is hot", "gull is ok"]
