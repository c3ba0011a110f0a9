"""Which inputs of a window may leave the device: by the signed manifest, and no more than its owner allows."""

import struct
from typing import Any

import pytest

from agent.inference.samples import Samples
from skerry.drift.monitor import PREDICTION
from skerry.errors import Rejected
from skerry.seen import Seen
from skerry.wire.manifest import MAX_SAMPLE_BYTES, MAX_SAMPLE_ROWS, SamplePolicy, TensorSpec
from skerry.wire.sample import Sample, decode_sample, encode_sample

DIGEST = "0123456789abcdef" * 4
INPUTS = (TensorSpec("x", (1, 2), "float32"), TensorSpec("secret", (1, 2), "float32"))
SEEN = Seen(features=(), prediction="rest", confidence=0.75)
VALUES: dict[str, Any] = {"x": [1.0, 2.0], "secret": [3.0, 4.0]}


def make(policy: SamplePolicy, *, rows: int = MAX_SAMPLE_ROWS, size: int = MAX_SAMPLE_BYTES) -> Samples:
    samples = Samples(policy, INPUTS, digest=DIGEST, most_rows=rows, most_bytes=size)
    samples.begin(3, window_rows=50)
    return samples


def window(samples: Samples, rows: int = 50) -> list[Sample | None]:
    bodies = [samples.offer(VALUES, SEEN) for _ in range(rows)]
    return [decode_sample(body) if body else None for body in bodies]


def test_without_a_policy_nothing_is_kept() -> None:
    samples = make(SamplePolicy())

    assert not samples.wanted
    assert window(samples) == [None] * 50


def test_so_many_rows_of_a_window_are_kept_with_the_inputs_that_are_named() -> None:
    kept = [each for each in window(make(SamplePolicy(4, ("x",), 100))) if each]

    assert kept == [Sample(DIGEST[:16], 3, "rest", 0.75, {"x": struct.pack("<2f", 1.0, 2.0)})] * 4


def test_a_restart_draws_the_same_rows_and_another_window_others() -> None:
    policy = SamplePolicy(4, ("x",), 100)
    whole = window(make(policy))
    samples = make(policy)
    begun = window(samples, 20)
    samples = make(policy)
    samples.begin(3, window_rows=50, row=20)
    assert begun + window(samples, 30) == whole

    samples.begin(4, window_rows=50)
    assert [bool(each) for each in window(samples)] != [bool(each) for each in whole]


@pytest.mark.parametrize(("rows", "size", "kept"), [(0, 100, 0), (2, 100, 2), (9, 100, 4), (9, 7, 0), (9, 8, 4)])
def test_the_owner_may_allow_less_and_never_more(rows: int, size: int, kept: int) -> None:
    assert sum(map(bool, window(make(SamplePolicy(4, ("x",), 100), rows=rows, size=size)))) == kept


def test_tensors_may_come_as_bytes_and_lists_are_packed_by_their_type() -> None:
    samples = Samples(
        SamplePolicy(1, ("a", "b", "c"), 100),
        (TensorSpec("a", (2,), "int8"), TensorSpec("b", (1,), "int64"), TensorSpec("c", (1,), "float32")),
        digest=DIGEST,
        most_rows=9,
        most_bytes=99,
    )
    samples.begin(0, window_rows=1)

    body = samples.offer({"a": [-1, 2], "b": [3], "c": b"wxyz"}, SEEN)

    assert body is not None
    assert decode_sample(body).inputs == {"a": b"\xff\x02", "b": struct.pack("<q", 3), "c": b"wxyz"}


@pytest.mark.parametrize("values", [{"secret": [1.0]}, {"x": ["a"]}, {"x": [1.0] * 26}])
def test_a_row_that_cannot_be_kept_is_left_out_and_counted(values: dict[str, Any]) -> None:
    samples = make(SamplePolicy(50, ("x",), 100))

    assert samples.next_wanted == 0
    assert samples.offer(values, SEEN) is None
    assert samples.left_out == 1


def test_a_policy_has_bounds() -> None:
    for wrong in ((MAX_SAMPLE_ROWS + 1, (), 1), (1, (), MAX_SAMPLE_BYTES + 1), (-1, (), 1)):
        with pytest.raises(ValueError, match="expected at most"):
            SamplePolicy(*wrong)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x02" + bytes(20),
        b"\x01" + bytes(8) + b"[1,2]\n",
        b"\x01" + bytes(8) + b'[1,"a",0.5,{"x":2}]\nz',
        b"\x01" + bytes(8) + b'[1,"a",0.5,{"x":-1}]\n',
        b"\x01" + bytes(8) + b'[1,"a",NaN,{}]\n',
        b"\x01" + bytes(8) + b'[1,"\\ud800",0.5,{}]\n',
        b"\x01" + bytes(8) + b'[-1,"a",0.5,{}]\n',
        b"\x01" + bytes(8) + b" " * 5000 + b"\n",
        b"\x01" + bytes(8) + b"[" * 3000 + b"\n",
    ],
)
def test_a_body_that_is_no_sample_is_refused(body: bytes) -> None:
    with pytest.raises(Rejected, match="sample"):
        decode_sample(body)


def test_a_sample_is_what_was_encoded() -> None:
    sample = Sample("ab" * 8, 7, PREDICTION, 0.5, {"x": b"123", "y": b""})

    assert decode_sample(encode_sample(sample)) == sample
