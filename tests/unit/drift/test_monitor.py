"""What a monitor is, how it is built from rows, and how it travels."""

import json
import math
import random
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.drift import CONFIDENCE, PREDICTION, Monitor, Rejected, Scalar, build_monitor
from skerry.drift.monitor import is_float32


def _rng(seed: int) -> random.Random:
    return random.Random(seed)


def _rows(n: int = 400, seed: int = 1) -> dict[str, list[float]]:
    rng = _rng(seed)
    first = [rng.gauss(0, 1) for _ in range(n)]
    return {
        "first": first,
        "second": [value + rng.gauss(0, 0.5) for value in first],
        "third": [rng.gauss(5, 2) for _ in range(n)],
        "copy": [2 * value for value in first],
    }


def _monitor() -> Monitor:
    rng = _rng(2)
    confidence = [rng.random() for _ in range(400)]
    return build_monitor(
        _rows(),
        categories={PREDICTION: [rng.choice("abc") for _ in range(400)]},
        confidence=confidence,
        correct=[rng.random() < value for value in confidence],
        window_n=50,
        pairs=2,
    )


def test_a_monitor_survives_the_manifest() -> None:
    monitor = _monitor()
    again = Monitor.from_json(json.loads(json.dumps(monitor.to_json())))
    assert again == monitor
    assert again.digest() == monitor.digest()


def test_the_digest_names_the_content() -> None:
    monitor = _monitor()
    assert replace(monitor, window_n=51).digest() != monitor.digest()
    assert len(monitor.digest()) == 64


def test_the_order_is_inputs_then_prediction_then_confidence_then_pairs() -> None:
    monitor = _monitor()
    assert monitor.names[:6] == ("first", "second", "third", "copy", PREDICTION, CONFIDENCE)
    assert len(monitor.pairs) == 2
    assert monitor.position(CONFIDENCE) == 5
    with pytest.raises(KeyError):
        monitor.position("fourth")


def test_a_pair_of_identical_scalars_is_not_watched() -> None:
    watched = {(pair.a, pair.b) for pair in _monitor().pairs}
    assert watched == {("first", "second"), ("second", "copy")}


def test_reference_rows_are_all_within_range() -> None:
    for scalar in _monitor().scalars[:4]:
        assert sum(scalar.reference) == 400
        assert scalar.reference[0] == 0
        assert scalar.reference[-2:] == (0, 0)
        assert max(scalar.reference) <= 41


@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=60))
def test_edges_are_float32_and_hold_their_rows_in_either_precision(values: list[float]) -> None:
    scalar = build_monitor({"x": values}, window_n=10).scalars[0]
    assert all(is_float32(edge) for edge in scalar.edges)
    assert sum(scalar.reference[1:-2]) == len(values)
    for value in values:
        rounded = struct.unpack("<f", struct.pack("<f", value))[0]
        assert 0 < scalar.bin_of(rounded) < scalar.bins - 2


def test_a_constant_column_has_one_bin_within_range() -> None:
    scalar = build_monitor({"x": [3.0] * 50}, window_n=10).scalars[0]
    assert scalar.reference == (0, 50, 0, 0)
    assert [scalar.bin_of(value) for value in (2.9, 3.0, 3.1, math.nan, math.inf, None)] == [0, 1, 2, 3, 3, 3]


def test_categories_beyond_the_top_are_other() -> None:
    names = [f"c{index:02d}" for index in range(25) for _ in range(30 - index)]
    scalar = build_monitor({}, categories={"place": names}, window_n=10).scalars[0]
    assert scalar.categories == tuple(f"c{index:02d}" for index in range(20))
    assert scalar.bin_of("c24") == 20 == scalar.bin_of("unheard of")
    assert scalar.bin_of(None) == 21
    assert scalar.reference[20] == sum(30 - index for index in range(20, 25))


def test_missing_reference_values_are_counted_as_missing() -> None:
    scalar = build_monitor({"x": [1.0, 2.0, math.nan, 3.0]}, window_n=10).scalars[0]
    assert scalar.reference[-1] == 1


def test_the_calibration_table_follows_the_bins_of_confidence() -> None:
    monitor = _monitor()
    confidence = monitor.scalars[monitor.position(CONFIDENCE)]
    assert len(monitor.calibration) == 20
    assert tuple(rows for rows, _ in monitor.calibration) == confidence.reference[1:-2]
    assert all(0 <= correct <= rows for rows, correct in monitor.calibration)


def test_rows_in_time_order_reveal_their_design_effect() -> None:
    rng = _rng(3)
    level, walk = 0.0, []
    for _ in range(2000):
        level = 0.97 * level + rng.gauss(0, 1)
        walk.append(level)
    columns = {"walk": walk, **{f"calm{index}": [rng.gauss(0, 1) for _ in range(2000)] for index in range(5)}}
    ordered = build_monitor(columns, window_n=100, time_ordered=True, pairs=0)
    assert ordered.design_effects[0] > 10
    assert max(ordered.design_effects[1:]) < 3
    assert set(build_monitor(columns, window_n=100, pairs=0).design_effects) == {1.0}


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("window_n",), "many", "a whole number"),
        (("window_n",), 0, "at least 1"),
        (("alpha",), 2.0, "between 0 and 1"),
        (("commissioning_windows",), 3, "at least 8"),
        (("scalars",), "first", "a list"),
        (("scalars",), [], "one or more"),
        (("scalars",), [3], "a list of objects"),
        (("scalars", 0, "kind"), "colour", "numeric or category"),
        (("scalars", 0, "kind"), [], "a text"),
        (("scalars", 0, "edges"), [1.0, 0.5], "ascending"),
        (("scalars", 0, "edges"), [0.1, 0.2], "float32"),
        (("scalars", 0, "edges"), [1e300, 2e300], "float32"),
        (("scalars", 0, "edges"), [1.0], "two or more"),
        (("scalars", 0, "reference"), [1, 2], "bins"),
        (("scalars", 0, "design_effect"), 0.5, "at least 1"),
        (("scalars", 0, "name"), "second", "distinct names"),
        (("scalars", 0, "name"), 7, "a text"),
        (("pairs", 0, "a"), PREDICTION, "two different numeric scalars"),
        (("pairs", 0, "edges_a"), [1.0], "three quartiles"),
        (("calibration",), [[1, 2]] * 20, "0 <= correct <= rows"),
        (("calibration",), [[2, 1]], "20 bins"),
        (("calibration",), [7], "pairs of rows"),
    ],
)
def test_a_bad_monitor_block_says_what_was_expected(path: tuple[str | int, ...], value: object, expected: str) -> None:
    document = json.loads(json.dumps(_monitor().to_json()))
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(Rejected, match=expected):
        Monitor.from_json(document)


def test_a_missing_key_is_named() -> None:
    document = _monitor().to_json()
    del document["alpha"]
    with pytest.raises(Rejected, match="'alpha'"):
        Monitor.from_json(document)


def test_a_category_may_not_be_named_twice() -> None:
    with pytest.raises(Rejected, match="distinct"):
        Scalar(name="x", kind="category", categories=("a", "a"), reference=(0, 0, 0, 0))


@pytest.mark.parametrize(
    ("columns", "message"),
    [({}, "one or more"), ({"x": [1.0], "y": []}, "same number"), ({"x": [math.nan]}, "finite")],
)
def test_unusable_reference_rows_are_rejected(columns: dict[str, list[float]], message: str) -> None:
    with pytest.raises(Rejected, match=message):
        build_monitor(columns, window_n=10)
