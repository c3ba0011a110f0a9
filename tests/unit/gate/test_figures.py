"""The figures of a measurement: errors, intervals, labels, and what an emulated run says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.measure import accuracy_by_group, compare, interval, labels_of, output_error, without_run
from converters.samples import Array, Rows
from skerry.wire.manifest import Tolerance

DRAWN = np.random.default_rng(3)


def test_the_error_is_the_share_of_the_spread_so_that_its_square_is_one_minus_r2() -> None:
    wanted = DRAWN.normal(5.0, 2.0, size=(500, 3))
    got = wanted + DRAWN.normal(0.0, 0.2, size=wanted.shape)
    residual, total = ((got - wanted) ** 2).sum(), ((wanted - wanted.mean(axis=0)) ** 2).sum()
    assert output_error(wanted, got) ** 2 == pytest.approx(residual / total)
    assert output_error(wanted, wanted) == 0


@given(st.floats(0.01, 100), st.floats(-1000, 1000))
def test_the_error_knows_neither_unit_nor_origin(scale: float, origin: float) -> None:
    wanted = np.linspace(-1, 1, 50)[:, None]
    got = wanted + 0.1
    expected = pytest.approx(output_error(wanted, got), rel=1e-6)
    assert output_error(wanted * scale + origin, got * scale + origin) == expected


@pytest.mark.parametrize(("constant", "error"), [(0.0, 0.5), (5.0, 0.1), (-5.0, 0.1)])
def test_an_output_that_does_not_vary_is_measured_by_its_size(constant: float, error: float) -> None:
    wanted = np.full((20, 2), constant, dtype=np.float32)
    assert output_error(wanted, wanted + 0.5) == pytest.approx(error)


def test_an_interval_holds_the_ratio_and_is_the_same_each_time() -> None:
    rival = DRAWN.lognormal(3.0, 0.1, size=300)
    low, high = interval(rival * 1.5 * DRAWN.lognormal(0.0, 0.05, size=300), rival)
    assert 1.4 < low < 1.5 < high < 1.6
    assert interval(rival, rival) == (1.0, 1.0)
    assert interval(rival * 2, rival[::-1]) == interval(rival * 2, rival[::-1])


def test_an_outlier_moves_no_median() -> None:
    rival = np.full(100, 10.0)
    disturbed = np.where(np.arange(100) % 10 == 0, 5_000.0, 10.0)
    assert interval(disturbed, rival) == (1.0, 1.0)


def test_a_lone_column_is_the_probability_of_the_second_label() -> None:
    assert labels_of(np.array([[0.4], [0.6]])).tolist() == [0, 1]
    assert labels_of(np.array([[0.4, 0.6], [0.9, 0.1]])).tolist() == [1, 0]
    assert labels_of(np.array([[[0.1, 0.2, 0.7]]])).tolist() == [2]


def test_slices_are_counted_where_there_are_truth_and_groups() -> None:
    labels, truth = np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0])
    inputs = {"x": np.zeros((4, 1), dtype=np.float32)}
    shares, counts = accuracy_by_group(labels, Rows(inputs, truth=truth, groups=np.array([7, 7, 8, 8])))
    assert (shares, counts) == ({"7": 1.0, "8": 0.5}, {"7": 2, "8": 2})
    assert accuracy_by_group(labels, Rows(inputs, truth=truth)) == ({}, {})


WANTED: dict[str, Array] = {"y": np.array([[1.0], [100.0]], dtype=np.float32), "n": np.array([[1], [2]], dtype=np.int8)}
LOOSE = {"y": Tolerance(atol=0.1, rtol=0.01), "n": Tolerance(atol=0.0, rtol=0.0)}


@pytest.mark.parametrize(
    ("y", "n", "tolerances", "outcome"),
    [
        ([[1.0], [100.0]], [[1], [2]], None, "passed"),
        ([[1.0], [100.0001]], [[1], [2]], None, "refused"),
        ([[1.1], [101.0]], [[1], [2]], LOOSE, "passed"),
        ([[1.1], [101.2]], [[1], [2]], LOOSE, "refused"),
        ([[1.0], [100.0]], [[1], [3]], LOOSE, "refused"),
        ([[1.0], [float("nan")]], [[1], [2]], LOOSE, "refused"),
        ([[1.0], [float("inf")]], [[1], [2]], LOOSE, "refused"),
        ([[1.0]], [[1], [2]], LOOSE, "refused"),
    ],
)
def test_an_emulated_run_passes_within_its_tolerances_and_bit_for_bit_without(
    y: list[list[float]], n: list[list[int]], tolerances: dict[str, Tolerance] | None, outcome: str
) -> None:
    got: dict[str, Array] = {"y": np.array(y, dtype=np.float32), "n": np.array(n, dtype=np.int8)}
    assert compare("arm64", WANTED, got, tolerances=tolerances).outcome == outcome


def test_a_missing_output_refuses_and_names_itself() -> None:
    evidence = compare("cortex-m", WANTED, {"y": WANTED["y"]})
    assert (evidence.outcome, evidence.reason) == ("refused", "no output n")


def test_no_rows_prove_nothing() -> None:
    assert compare("cortex-m", {}, {}).outcome == "refused"
    assert without_run("arm64", "no binfmt_misc").outcome == "not run"
