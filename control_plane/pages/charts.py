"""Small charts as SVG text: data in, a string out; no dependency, no script, colours from the page's style sheet.

Every text is escaped. Colours are classes (`c0` to `c7`, told apart by dashes too), so that one drawing serves a light
and a dark page. `static/skerry.css` gives the classes their look, in a page and in the demo's report alike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from control_plane.pages.scales import (
    Format,
    Scale,
    drawing,
    element,
    extent,
    finite,
    label,
    nice_ticks,
    number,
    percent,
    power_of_ten,
    spread,
    text_width,
    time_unit,
    tooltip,
)

WIDTH = 760.0
COLOURS = 8
ALARM_LOG10 = 2.0
"""E = 100: the alarm of the anytime-valid test."""
WATCH_LOG10 = math.log10(5)
"""E = 5: worth watching."""
CEILING_LOG10 = 12.0
"""Evidence beyond 10^12 changes no decision, and would press the thresholds flat against the axis."""

_LEFT, _RIGHT, _BOTTOM, _ROW = 52.0, 12.0, 40.0, 15.0


@dataclass(frozen=True, slots=True)
class Series:
    """One line: its name and its points (x, y). Points that are not finite are left out."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment worth a vertical line, such as "v2 committed"."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a wave chart: in row `row` of group `group`, from `start` to `end`, or still open (None)."""

    row: str
    group: str
    start: float
    end: float | None
    tone: str = "good"


@dataclass(frozen=True, slots=True)
class _Frame:
    """The drawing's plot area with its two scales."""

    x: Scale
    y: Scale
    top: float
    bottom: float
    right: float
    height: float


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    y_label: str = "",
    x_label: str = "time",
    marks: Sequence[Mark] = (),
    since: float | None = None,
    y_range: tuple[float, float] | None = None,
    y_format: Format = number,
    height: float = 300,
) -> str:
    """Draw lines over time. x is in seconds from any origin: the axis counts from `since`, or the first point."""
    drawn = _clean(series)
    if not drawn:
        return _nothing(title, height)
    frame = _frame(drawn, marks, y_range=y_range, since=since, height=height)
    body = _y_axis(frame, y_label, y_format) + _time_axis(frame, x_label) + _marks(frame, marks)
    for index, line in enumerate(drawn):
        pixels = [(frame.x(x), frame.y(y)) for x, y in line.points]
        dots = "".join(element("circle", cx=x, cy=y, r=2) for x, y in pixels) if len(pixels) <= 60 else ""
        last = y_format(line.points[-1][1])
        shape = tooltip(f"{line.name}: {last} at the end") + _path(pixels) + dots
        body += element("g", shape, class_=f"series {_colour(index)}")
    body += _end_labels(frame, drawn)
    return drawing(body, width=WIDTH, height=frame.height, title=title)


def step_chart(
    series: Sequence[Series],
    *,
    title: str,
    y_label: str = "",
    x_label: str = "time",
    marks: Sequence[Mark] = (),
    since: float | None = None,
    height: float = 240,
) -> str:
    """Draw counts that hold until they change, as steps over a faint area, from zero."""
    drawn = _clean(series)
    if not drawn:
        return _nothing(title, height)
    highest = max(y for line in drawn for _, y in line.points)
    frame = _frame(drawn, marks, y_range=(0.0, highest or 1.0), since=since, height=height)
    body = _y_axis(frame, y_label, number) + _time_axis(frame, x_label) + _marks(frame, marks)
    for index, line in enumerate(drawn):
        pixels = _steps([(frame.x(x), frame.y(y)) for x, y in line.points])
        area = [(pixels[0][0], frame.bottom), *pixels, (pixels[-1][0], frame.bottom)]
        most = number(max(y for _, y in line.points))
        shape = tooltip(f"{line.name}: at most {most}") + _path(area, class_="area") + _path(pixels)
        body += element("g", shape, class_=f"series {_colour(index)}")
    body += _end_labels(frame, drawn)
    return drawing(body, width=WIDTH, height=frame.height, title=title)


def evidence_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str = "time",
    marks: Sequence[Mark] = (),
    since: float | None = None,
    ceiling_log10: float = CEILING_LOG10,
    height: float = 280,
) -> str:
    """Draw evidence on a log scale; y is log10 of E. Above the ceiling a line runs along the top edge."""
    drawn = _clean(series)
    if not drawn:
        return _nothing(title, height)
    values = [y for line in drawn for _, y in line.points]
    low, high = min(-1.0, max(min(values), -3.0)), min(max(3.0, *values), ceiling_log10)
    frame = _frame(drawn, marks, y_range=(low, high), since=since, height=height)
    ticks = sorted({float(round(tick)) for tick in nice_ticks(low, high, most=7)})
    body = _y_axis(frame, "evidence E, log scale", power_of_ten, ticks=ticks)
    body += _time_axis(frame, x_label) + _marks(frame, marks)
    for index, line in enumerate(drawn):
        pixels = [(frame.x(x), frame.y(y)) for x, y in line.points]
        most = power_of_ten(round(max(y for _, y in line.points), 1))
        shape = tooltip(f"{line.name}: at most {most}") + _path(pixels)
        shape += "".join(element("circle", cx=x, cy=y, r=2) for x, y in pixels)
        body += element("g", shape, class_=f"series {_colour(index)}")
    body += _threshold(frame, ALARM_LOG10, "alarm, E = 100", "alarm")
    body += _threshold(frame, WATCH_LOG10, "watch, E = 5", "watch")
    if max(values) > ceiling_log10:
        note = f"↑ beyond {power_of_ten(ceiling_log10)}, drawn at the edge"
        body += label(note, x=frame.x.start + 4, y=frame.top + 14, class_="note")
    body += _end_labels(frame, drawn)
    return drawing(body, width=WIDTH, height=frame.height, title=title)


def wave_chart(
    bars: Sequence[Bar], *, title: str, now: float | None = None, since: float | None = None, x_label: str = "time"
) -> str:
    """Draw deployments as bars, one row for each device, grouped by wave in the order given; open ones reach `now`."""
    drawn = [bar for bar in bars if math.isfinite(bar.start)]
    if not drawn:
        return _nothing(title, 160)
    ends = [bar.end if bar.end is not None else bar.start for bar in drawn] + ([now] if now is not None else [])
    first, last = extent([bar.start for bar in drawn] + ends + ([] if since is None else [since]), fallback=(0.0, 1.0))
    groups = list(dict.fromkeys(bar.group for bar in drawn))
    rows = [(group, row) for group in groups for row in dict.fromkeys(b.row for b in drawn if b.group == group)]
    left = min(190.0, 20.0 + max(text_width(row) for _, row in rows))
    height = 12 + 22.0 * len(rows) + 24.0 * len(groups) + _BOTTOM
    x = Scale(first, last, left, WIDTH - 70)
    frame = _Frame(x=x, y=Scale(0, 1, height, 0), top=8, bottom=height - _BOTTOM, right=WIDTH - 70, height=height)
    body = _time_axis(frame, x_label, ruled=True)
    y = 8.0
    for group in groups:
        body += label(group, x=4, y=y + 16, class_="group")
        y += 24
        for row in (name for owner, name in rows if owner == group):
            body += label(row, x=14, y=y + 14, class_="row")
            body += "".join(_bar(x, bar, y, last) for bar in drawn if (bar.group, bar.row) == (group, row))
            y += 22
    return drawing(body, width=WIDTH, height=height, title=title)


def evidence_bars(rows: Sequence[tuple[str, float, str, str]], *, title: str) -> str:
    """Draw current evidence, (name, log10 E, tone, a note instead of the figure), against the two thresholds."""
    drawn = [row for row in rows if math.isfinite(row[1])]
    if not drawn:
        return _nothing(title, 120)
    low, high = -1.0, min(max(3.0, *(value for _, value, _, _ in drawn)), CEILING_LOG10)
    left = min(190.0, 20.0 + max(text_width(name) for name, *_ in drawn))
    height = 30 + 22.0 * len(drawn) + 26
    x = Scale(low, high, left, WIDTH - 90)
    bottom = height - 26
    body = ""
    for tick in sorted({float(round(tick)) for tick in nice_ticks(low, high, most=7)}):
        body += element("line", x1=x(tick), x2=x(tick), y1=24, y2=bottom, class_="grid")
        body += label(power_of_ten(tick), x=x(tick), y=bottom + 17, class_="tick", text_anchor="middle")
    for at, text, anchor in ((WATCH_LOG10, "watch, E = 5", "end"), (ALARM_LOG10, "alarm, E = 100", "start")):
        kind = text.partition(",")[0]
        body += element("line", x1=x(at), x2=x(at), y1=18, y2=bottom, class_=f"threshold {kind}")
        body += label(text, x=x(at), y=12, class_=f"threshold-label {kind}", text_anchor=anchor)
    for index, (name, value, tone, note) in enumerate(drawn):
        y = 35.0 + 22 * index
        text = note or (f"E = {power_of_ten(round(value, 1))}" if abs(value) >= 4 else f"E = {10**value:.3g}")
        shape = element("rect", x=left, y=y - 2, width=max(x(value) - left, 2.0), height=4, rx=2)
        shape += element("circle", cx=x(value), cy=y, r=5.5)
        body += label(name, x=4, y=y + 4, class_="row")
        body += element("g", tooltip(f"{name}: {text}") + shape, class_=f"bar {tone}")
        body += label(text, x=WIDTH - 4, y=y + 4, class_="tick", text_anchor="end")
    return drawing(body, width=WIDTH, height=height, title=title)


def sparkline(values: Sequence[float], *, title: str, low: float = 0.0, high: float = 1.0) -> str:
    """Draw the last few values of one quantity, without axes: the number stands beside it in the table."""
    known = [value for value in values if math.isfinite(value)]
    x, y = Scale(0, max(len(known) - 1, 1), 3, 93), Scale(low, high, 21, 3)
    if not known:
        return drawing("", width=96, height=24, title=title, class_="spark")
    pixels = [(x(index), y(value)) for index, value in enumerate(known)]
    body = _path(pixels) + element("circle", cx=pixels[-1][0], cy=pixels[-1][1], r=2.4)
    return drawing(body, width=96, height=24, title=title, class_="spark")


def accuracy_chart(
    series: Sequence[Series],
    *,
    title: str,
    marks: Sequence[Mark] = (),
    since: float | None = None,
    height: float = 320,
) -> str:
    """Draw accuracy in percent over event time, on an axis that always reaches 100 % and never hides the fall."""
    values = [y for line in _clean(series) for _, y in line.points]
    low = math.floor(min(values, default=0.0) * 10 - 0.2) / 10
    return line_chart(
        series,
        title=title,
        y_label="accuracy",
        x_label="event time",
        marks=marks,
        since=since,
        y_range=(max(0.0, low), 1.0),
        y_format=percent,
        height=height,
    )


def _clean(series: Sequence[Series]) -> list[Series]:
    cleaned = [Series(name=line.name, points=tuple(finite(line.points))) for line in series]
    return [line for line in cleaned if line.points]


def _colour(index: int) -> str:
    return f"c{index % COLOURS}" + (" dashed" if (index // COLOURS) % 2 else "")


def _nothing(title: str, height: float) -> str:
    text = label("Nothing to draw yet.", x=WIDTH / 2, y=height / 2, class_="note", text_anchor="middle")
    return drawing(text, width=WIDTH, height=height, title=f"{title}: nothing to draw yet")


def _frame(
    series: Sequence[Series],
    marks: Sequence[Mark],
    *,
    y_range: tuple[float, float] | None,
    since: float | None,
    height: float,
) -> _Frame:
    xs = [x for line in series for x, _ in line.points] + [mark.at for mark in marks if math.isfinite(mark.at)]
    xs += [] if since is None else [since]
    ys = [y for line in series for _, y in line.points]
    right = WIDTH - _RIGHT - max(text_width(line.name) for line in series) - 18
    rows = len(_mark_rows(Scale(*extent(xs, fallback=(0, 1)), _LEFT, right), marks))
    top = 10 + (_ROW * (rows + 0.4) if rows else 0)
    x_low, x_high = extent(xs, fallback=(0.0, 1.0))
    y_low, y_high = y_range or extent(ys, fallback=(0.0, 1.0))
    bottom = height - _BOTTOM
    return _Frame(
        x=Scale(x_low, x_high, _LEFT, right),
        y=Scale(y_low, y_high, bottom, top),
        top=top,
        bottom=bottom,
        right=right,
        height=height,
    )


def _y_axis(frame: _Frame, name: str, write: Format, *, ticks: Sequence[float] | None = None) -> str:
    out = ""
    for tick in ticks if ticks is not None else nice_ticks(frame.y.low, frame.y.high, most=6):
        y = frame.y(tick)
        out += element("line", x1=_LEFT, x2=frame.right, y1=y, y2=y, class_="grid")
        out += label(write(tick), x=_LEFT - 7, y=y + 4, class_="tick", text_anchor="end")
    middle = (frame.top + frame.bottom) / 2
    turn = f"rotate(-90 11 {middle:.1f})"
    return out + label(name, x=11, y=middle, class_="axis", text_anchor="middle", transform=turn) if name else out


def _time_axis(frame: _Frame, name: str, *, ruled: bool = False) -> str:
    unit, unit_name = time_unit(frame.x.high - frame.x.low)
    out = element("line", x1=frame.x.start, x2=frame.right, y1=frame.bottom, y2=frame.bottom, class_="base")
    for tick in nice_ticks(0.0, (frame.x.high - frame.x.low) / unit, most=7):
        x = frame.x(frame.x.low + tick * unit)
        top = frame.top if ruled else frame.bottom - 4
        out += element("line", x1=x, x2=x, y1=top, y2=frame.bottom, class_="grid" if ruled else "base")
        out += label(number(tick), x=x, y=frame.bottom + 16, class_="tick", text_anchor="middle")
    middle = (frame.x.start + frame.right) / 2
    return out + label(f"{name} ({unit_name})", x=middle, y=frame.bottom + 33, class_="axis", text_anchor="middle")


def _mark_rows(x: Scale, marks: Sequence[Mark]) -> list[list[tuple[float, Mark]]]:
    """Put each mark's label into the first row where it overlaps none; (where the label starts, mark)."""
    rows: list[list[tuple[float, Mark]]] = []
    for mark in sorted((mark for mark in marks if math.isfinite(mark.at)), key=lambda mark: mark.at):
        width = text_width(mark.label)
        start = max(min(x(mark.at) + 4, x.stop + 60 - width), x.start)
        for row in rows:
            if row[-1][0] + text_width(row[-1][1].label) + 10 <= start:
                row.append((start, mark))
                break
        else:
            rows.append([(start, mark)])
    return rows


def _marks(frame: _Frame, marks: Sequence[Mark]) -> str:
    out = ""
    for index, row in enumerate(_mark_rows(frame.x, marks)):
        y = 12 + _ROW * index
        for start, mark in row:
            at = frame.x(mark.at)
            out += element("line", x1=at, x2=at, y1=y - 8, y2=frame.bottom, class_="mark")
            out += label(mark.label, x=start, y=y, class_="mark-label")
    return out


def _threshold(frame: _Frame, at: float, text: str, kind: str) -> str:
    y = frame.y(at)
    line = element("line", x1=frame.x.start, x2=frame.right, y1=y, y2=y, class_=f"threshold {kind}")
    return line + label(text, x=frame.x.start + 5, y=y - 4, class_=f"threshold-label {kind}")


def _end_labels(frame: _Frame, series: Sequence[Series]) -> str:
    """Name each line at its end, pushed apart, with a short lead where a name had to move."""
    most = max(int((frame.bottom - frame.top) // 13), 1)
    named = list(enumerate(series))[:most]
    wanted = [frame.y(line.points[-1][1]) for _, line in named]
    placed = spread(wanted, gap=13.0, top=frame.top + 4, bottom=frame.bottom - 2)
    out = ""
    for (index, line), end, y in zip(named, wanted, placed, strict=True):
        x = frame.x(line.points[-1][0])
        lead = element("path", d=f"M{x:.1f} {end:.1f}L{frame.right + 10:.1f} {y:.1f}", class_="lead")
        name = label(line.name, x=frame.right + 13, y=y + 4, class_="name")
        out += element("g", lead + name, class_=_colour(index))
    if len(series) > most:
        out += label(f"and {len(series) - most} more", x=frame.right + 13, y=frame.bottom + 14, class_="note")
    return out


def _bar(x: Scale, bar: Bar, y: float, last: float) -> str:
    end = bar.end if bar.end is not None else last
    left, right = x(bar.start), x(max(end, bar.start))
    took = max(end - bar.start, 0.0)
    text = f"{took:.3g} s" if bar.end is not None else "open"
    rect = element("rect", x=left, y=y + 3, width=max(right - left, 3.0), height=14, rx=3)
    tone = bar.tone if bar.end is not None else f"{bar.tone} open"
    shape = element("g", tooltip(f"{bar.row}, {bar.group}: {text}") + rect, class_=f"bar {tone}")
    return shape + label(text, x=max(right, left + 3) + 6, y=y + 14, class_="tick")


def _path(pixels: Sequence[tuple[float, float]], *, class_: str = "line") -> str:
    return element("path", d="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in pixels), class_=class_)


def _steps(pixels: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Insert the corner before each change, so that a value holds until the next."""
    out = [pixels[0]]
    for (_, before), (x, y) in pairwise(pixels):
        out += [(x, before), (x, y)]
    return out
