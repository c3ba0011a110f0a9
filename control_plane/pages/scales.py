"""Scales, ticks and escaped SVG elements: the arithmetic under the charts, with nothing drawn yet."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

Format = Callable[[float], str]

_UNITS = ((2.0 * 86_400, 86_400.0, "days"), (2.0 * 3_600, 3_600.0, "h"), (180.0, 60.0, "min"), (0.0, 1.0, "s"))
_CHARACTER_WIDTH = 6.3
"""An estimate, in pixels, at the charts' 11.5 px: system fonts differ and nothing here can measure them."""


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map from `low..high` in the data to `start..stop` in pixels; an empty domain maps to the middle."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Return the pixel of `value`, clipped to the drawing."""
        if self.high <= self.low:
            return (self.start + self.stop) / 2
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(max(share, 0.0), 1.0) * (self.stop - self.start)


def nice_ticks(low: float, high: float, *, most: int = 6) -> list[float]:
    """Return at most `most` round numbers (1, 2, 2.5 or 5 times a power of ten) inside `low..high`."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    for factor in (1.0, 2.0, 2.5, 5.0, 10.0, 20.0, 25.0):
        step = factor * power
        first = math.ceil(low / step - 1e-9)
        last = math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            return [number * step for number in range(first, last + 1)] or [low]
    return [low, high]


def time_unit(span_s: float) -> tuple[float, str]:
    """Return the unit in seconds, and its name, in which a span of `span_s` seconds reads best."""
    for least, unit, name in _UNITS:
        if span_s >= least:
            return unit, name
    return 1.0, "s"


def number(value: float) -> str:
    """Write a tick without noise: 0.5, 2, 1,000."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def percent(value: float) -> str:
    """Write a share of 1 as a percentage."""
    return f"{value * 100:.3g} %"


def power_of_ten(value: float) -> str:
    """Write 10 to the power of `value`: small ones in full, large ones with an exponent."""
    if float(value).is_integer() and 0 <= value <= 3:
        return f"{10 ** int(value):,}"
    return "10" + f"{value:g}".translate(str.maketrans("-0123456789.", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹·"))


def text_width(text: str) -> float:
    """Estimate the width in pixels of a label."""
    return len(text) * _CHARACTER_WIDTH


def finite(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that can be drawn, in order of x."""
    return sorted((float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y))


def extent(values: Sequence[float], *, fallback: tuple[float, float]) -> tuple[float, float]:
    """Return the least and the greatest value; one value alone gets room on both sides."""
    if not values:
        return fallback
    low, high = min(values), max(values)
    if low == high:
        room = abs(low) * 0.05 or 0.5
        return low - room, high + room
    return low, high


def spread(wanted: Sequence[float], *, gap: float, top: float, bottom: float) -> list[float]:
    """Move positions apart to at least `gap`, keeping their order and staying near where they were wanted."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed = [0.0] * len(wanted)
    at = -math.inf
    for index in order:
        at = max(wanted[index], at + gap, top)
        placed[index] = at
    limit = bottom
    for index in reversed(order):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - gap
    return placed


def element(name: str, body: str = "", /, **attributes: str | float) -> str:
    """Return one SVG element. Attribute values are escaped; `body` is markup already. `class_` is `class`."""
    pairs = "".join(f' {_attribute(key)}="{_value(value)}"' for key, value in attributes.items())
    return f"<{name}{pairs}>{body}</{name}>" if body else f"<{name}{pairs}/>"


def label(text: str, /, **attributes: str | float) -> str:
    """Return a `text` element with escaped content."""
    return element("text", escape(text), **attributes)


def tooltip(text: str) -> str:
    """Return a `title` element: what a pointer or a screen reader is told about the shape around it."""
    return element("title", escape(text))


def drawing(body: str, *, width: float, height: float, title: str, class_: str = "chart") -> str:
    """Return a whole SVG image named `title`; it takes the width of its container."""
    return element(
        "svg",
        body or "<g/>",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}",
        class_=class_,
        role="img",
        aria_label=title,
    )


def _attribute(key: str) -> str:
    return key if key == "viewBox" else key.rstrip("_").replace("_", "-")


def _value(value: str | float) -> str:
    return escape(value) if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
