"""The desired configuration: of groups and devices, with versions that only a change moves."""

import json

import pytest

from control_plane import desired
from control_plane.ingest import handle
from control_plane.plane import Plane
from control_plane.refusals import Unknown
from skerry.errors import Rejected
from skerry.wire import codec, topics
from skerry.wire.messages import Reported


def configure(plane: Plane, scope: str, name: str, **changes: str) -> list[str]:
    """Set keys and return the devices that are told something new."""
    with plane.sessions.begin() as session:
        desired.configure(session, scope, name, changes)
        return desired.settle(session, scope, name)


def told(plane: Plane) -> dict[str, tuple[int, dict[str, object]]]:
    """Return (version, config) by topic."""
    with plane.readers() as session:
        rows = desired.messages(plane, session)
    return {topic: (json.loads(body)["version"], json.loads(body)["config"]) for topic, body in rows}


TOPIC = topics.down("watch.gull", "desired")


def test_a_device_is_told_what_its_group_and_itself_have_its_own_first(plane: Plane) -> None:
    assert configure(plane, "group", "default", rate_limit_bytes_s="8000", metered="pause") == ["gull"]
    assert configure(plane, "device", "gull", rate_limit_bytes_s="2000") == ["gull"]

    assert told(plane) == {TOPIC: (2, {"rate_limit_bytes_s": 2000, "metered": "pause"})}


def test_what_changes_nothing_is_no_new_version(plane: Plane) -> None:
    configure(plane, "device", "gull", quiet_hours="22:00-06:00")

    assert configure(plane, "device", "gull", quiet_hours="22:00-06:00") == []
    assert configure(plane, "group", "default", quiet_hours="01:00-02:00") == []
    assert told(plane)[TOPIC] == (1, {"quiet_hours": "22:00-06:00"})


def test_an_empty_value_takes_a_key_away(plane: Plane) -> None:
    configure(plane, "device", "gull", start_jitter_s="30", metered="pause")

    assert configure(plane, "device", "gull", start_jitter_s="") == ["gull"]
    assert told(plane)[TOPIC] == (2, {"metered": "pause"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rate_limit_bytes_s", "1023"),
        ("rate_limit_bytes_s", "-5"),
        ("rate_limit_bytes_s", "fast"),
        ("rate_limit_bytes_s", "²"),
        ("quiet_hours", "24:00-06:00"),
        ("quiet_hours", "22:00-22:00"),
        ("metered", "maybe"),
        ("start_jitter_s", "86401"),
        ("colour", "red"),
        ("colour", ""),
    ],
)
def test_what_no_device_could_keep_to_is_refused(plane: Plane, key: str, value: str) -> None:
    with pytest.raises(Rejected):
        configure(plane, "device", "gull", **{key: value})
    assert told(plane) == {}


def test_a_device_that_nobody_enrolled_is_not_configured(plane: Plane) -> None:
    with pytest.raises(Unknown):
        configure(plane, "device", "kittiwake", metered="pause")


def test_a_device_that_is_new_in_its_group_is_told_when_it_first_reports(plane: Plane) -> None:
    with plane.sessions.begin() as session:
        desired.configure(session, "group", "default", {"metered": "pause"})
    reported = Reported(
        version=1,
        online=True,
        state="idle",
        agent="1",
        profile="x86-64-gateway",
        runtime="onnxruntime",
        architecture="x86_64",
    )

    (first,) = handle(plane, topics.up("watch.gull", "reported"), codec.encode(reported))

    assert (first.topic, first.retain, json.loads(first.payload)["config"]) == (TOPIC, True, {"metered": "pause"})
    assert handle(plane, topics.up("watch.gull", "reported"), codec.encode(reported)) == []
