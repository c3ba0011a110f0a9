"""What the strict codec accepts, and what it refuses."""

import pytest

from skerry.errors import Rejected
from skerry.wire import codec
from skerry.wire.messages import Ack, Entry, Outbox, Reported


def test_a_message_survives_the_round_trip() -> None:
    batch = Outbox(epoch="ab12", entries=(Entry(sequence=1, kind="window", event_time=3.5, crc=7, body="AA=="),))
    assert codec.decode(Outbox, codec.encode(batch)) == batch


def test_an_unknown_key_of_a_newer_writer_is_ignored() -> None:
    assert codec.decode(Ack, b'{"epoch":"a","up_to":3,"later":true}') == Ack(epoch="a", up_to=3)


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"", "expected JSON"),
        (b"[1]", "expected an object"),
        (b'{"epoch":"a"}', "Ack.up_to: expected a value, got none"),
        (b'{"epoch":"a","up_to":"3"}', 'Ack.up_to: expected int, got "3"'),
        (b'{"epoch":"a","up_to":true}', "Ack.up_to: expected int, got true"),
        (b'{"epoch":' + b'"a"' * 600_000, "expected at most 1048576 bytes"),
        (b"[" * 100_000, "expected JSON"),
    ],
)
def test_a_payload_that_does_not_fit_is_refused_with_its_field(payload: bytes, says: str) -> None:
    with pytest.raises(Rejected, match=says.replace("[", r"\[")):
        codec.decode(Ack, payload)


def test_a_wrong_item_is_named_by_its_place() -> None:
    with pytest.raises(Rejected, match=r"Outbox\.entries\[0\]\.sequence: expected a value"):
        codec.decode(Outbox, b'{"epoch":"a","entries":[{}]}')


@pytest.mark.parametrize("number", [10**400, float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_refused_from_any_parser(number: float) -> None:
    tree = {"sequence": 1, "kind": "gap", "event_time": number, "crc": 7, "body": ""}
    with pytest.raises(Rejected, match=r"Entry\.event_time: expected a finite number"):
        codec.from_tree(Entry, tree)


def test_a_whole_number_stands_for_a_float() -> None:
    tree = {
        "version": 1, "online": True, "state": "idle", "agent": "0", "profile": "p", "runtime": "r",
        "architecture": "a", "event_time": 5,
    }  # fmt: skip
    assert codec.from_tree(Reported, tree).event_time == 5.0
