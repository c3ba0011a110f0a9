"""The charts: well-formed whatever the data, escaped, and true to the figures."""

import math
import re
from collections.abc import Callable
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from control_plane.pages import charts
from control_plane.pages.charts import Bar, Mark, Series
from control_plane.pages.rocks import rock

NASTY = '<script>alert("&")</script>'
SVG = "{http://www.w3.org/2000/svg}"
Draw = Callable[[list[Series]], str]
LINES: dict[str, Draw] = {
    "line": lambda series: charts.line_chart(series, title=NASTY, marks=[Mark(5, NASTY)]),
    "accuracy": lambda series: charts.accuracy_chart(series, title=NASTY, marks=[Mark(5, NASTY)]),
    "step": lambda series: charts.step_chart(series, title=NASTY, marks=[Mark(5, NASTY)]),
    "evidence": lambda series: charts.evidence_chart(series, title=NASTY, marks=[Mark(5, NASTY)]),
}
DATA: dict[str, list[Series]] = {
    "nothing": [],
    "no points": [Series(NASTY, ())],
    "one point": [Series(NASTY, ((5.0, 0.5),))],
    "the same point twice": [Series(NASTY, ((5.0, 0.5), (5.0, 0.5)))],
    "not finite": [Series(NASTY, ((1.0, math.nan), (math.inf, 1.0), (2.0, 0.4), (3.0, 0.6)))],
    "forty lines": [Series(f"{NASTY}{index}", tuple((x, index + x) for x in range(90))) for index in range(40)],
    "huge": [Series(NASTY, ((0.0, -1e30), (1e12, 1e30)))],
}


def parse(svg: str) -> ElementTree.Element:
    """Parse a drawing, which fails unless it is well-formed."""
    return ElementTree.fromstring(svg)  # noqa: S314 -- our own drawing, not a stranger's


def numbers(svg: str) -> list[float]:
    """Return every number of every coordinate attribute and path."""
    found: list[float] = []
    for node in parse(svg).iter():
        for name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height", "d", "points"):
            found += [float(text) for text in re.findall(r"-?\d+(?:\.\d+)?", node.get(name, ""))]
    return found


def texts(svg: str) -> list[str]:
    """Return the texts that the drawing shows."""
    return [node.text or "" for node in parse(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("draw", LINES.values(), ids=LINES)
@pytest.mark.parametrize("series", DATA.values(), ids=DATA)
def test_every_chart_is_well_formed_escaped_and_inside_its_frame(draw: Draw, series: list[Series]) -> None:
    svg = draw(series)
    assert "<script" not in svg
    assert "nan" not in re.findall(r'="[^"]*"', svg)
    assert all(-1 <= value <= charts.WIDTH for value in numbers(svg))


@pytest.mark.parametrize("draw", LINES.values(), ids=LINES)
def test_a_chart_without_data_says_so(draw: Draw) -> None:
    assert texts(draw([])) == ["Nothing to draw yet."]


def test_a_line_goes_through_its_points_in_order_of_time() -> None:
    svg = charts.line_chart([Series("a", ((10.0, 1.0), (0.0, 0.0)))], title="t", y_range=(0.0, 1.0))
    path = next(node.get("d", "") for node in parse(svg).iter(f"{SVG}path"))
    (x0, y0), (x1, y1) = (map(float, pair.split()) for pair in path.removeprefix("M").split("L"))
    assert x0 < x1
    assert y0 > y1


def test_a_line_is_named_at_its_end() -> None:
    svg = charts.line_chart([Series("watch-08", ((0.0, 1.0), (1.0, 2.0)))], title="t")
    assert "watch-08" in texts(svg)


def test_time_is_written_in_the_unit_that_reads_best() -> None:
    assert "time (h)" in texts(charts.line_chart([Series("a", ((0.0, 1.0), (9000.0, 2.0)))], title="t"))
    assert "time (days)" in texts(charts.line_chart([Series("a", ((0.0, 1.0), (9e5, 2.0)))], title="t"))


def test_time_counts_from_where_it_is_told_to() -> None:
    svg = charts.step_chart([Series("a", ((50.0, 1.0), (100.0, 2.0)))], title="t", since=0.0)
    assert "100" in texts(svg)


def test_the_evidence_chart_marks_both_thresholds_and_says_what_it_cut_off() -> None:
    shown = texts(charts.evidence_chart([Series("a", ((0.0, 0.0), (1.0, 57.0)))], title="t"))
    assert "alarm, E = 100" in shown
    assert "watch, E = 5" in shown
    assert any("beyond 10¹²" in text for text in shown)


def test_labels_of_marks_that_would_overlap_are_put_into_rows() -> None:
    marks = [Mark(1.0, "a first long label"), Mark(1.1, "a second long label")]
    svg = charts.line_chart([Series("a", ((0.0, 1.0), (9.0, 2.0)))], title="t", marks=marks)
    rows = {node.get("y") for node in parse(svg).iter(f"{SVG}text") if node.get("class") == "mark-label"}
    assert len(rows) == 2


def test_end_labels_never_overlap() -> None:
    series = [Series(f"d{index}", ((0.0, 0.5), (1.0, 0.5 + index / 1000))) for index in range(8)]
    root = parse(charts.line_chart(series, title="t", y_range=(0.0, 1.0)))
    ys = sorted(float(node.get("y", "")) for node in root.iter(f"{SVG}text") if node.get("class") == "name")
    assert len(ys) == 8
    assert min(after - before for before, after in pairwise(ys)) >= 12.9


def test_a_deployment_that_has_not_ended_is_an_open_bar() -> None:
    bars = [Bar("a", NASTY, 0.0, 4.0), Bar("b", NASTY, 1.0, None, tone="moving")]
    svg = charts.wave_chart(bars, title=NASTY, now=10.0)
    assert {"4 s", "open"} <= set(texts(svg))
    assert [node.get("class") for node in parse(svg).iter(f"{SVG}g")] == [
        "bar good",
        "bar moving open",
    ]


@pytest.mark.parametrize("bars", [[], [Bar("a", "g", 1.0, 1.0)], [Bar("a", "g", math.nan, 1.0)]])
def test_a_wave_chart_survives_little_data(bars: list[Bar]) -> None:
    parse(charts.wave_chart(bars, title="t"))


def test_evidence_bars_say_the_figure_or_the_note() -> None:
    rows = [
        ("a", 0.5, "good", ""),
        ("b", 57.0, "alarm", ""),
        (NASTY, 0.0, "plain", "learning"),
        ("d", math.nan, "good", ""),
    ]
    assert {"E = 3.16", "E = 10⁵⁷", "learning"} <= set(texts(charts.evidence_bars(rows, title=NASTY)))
    parse(charts.evidence_bars([], title="t"))


@pytest.mark.parametrize("values", [[], [0.5], [0.5, math.nan, 0.7]])
def test_a_sparkline_survives_little_data(values: list[float]) -> None:
    assert parse(charts.sparkline(values, title=NASTY)).get("aria-label") == NASTY


@pytest.mark.parametrize("health", ["good", "moving", "drifting", "away", "failed", "revoked"])
def test_a_rock_keeps_its_shape_and_is_lower_when_away(health: str) -> None:
    def peak(how: str) -> float:
        root = parse(rock("watch-08", health=how, title=NASTY))
        stone = next(node.get("points", "") for node in root.iter(f"{SVG}polygon"))
        return min(float(point.split(",")[1]) for point in stone.split())

    lower = health in ("away", "revoked")
    assert (peak(health) > peak("good")) is lower


def test_many_names_all_make_rocks() -> None:
    for index in range(300):
        parse(rock(f"device-{index}", health="good", title="t"))
