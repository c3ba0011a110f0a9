"""The fleet as a row of skerries: a rock for each device, shaped by its name, under water while out of reach."""

import hashlib

from control_plane.pages.scales import drawing, element, tooltip

_WIDTH, _HEIGHT, _WATER, _FOOT = 96.0, 76.0, 58.0, 66.0
_RIDGE = (6, 18, 30, 42, 54, 66, 78, 90)
# twelve small waves, a rock's width beyond the rock on both sides: they meet the neighbours', and the page's flat sea
_SURFACE = f"M-96 {_WATER:g}" + "q12 -4 24 0" + "t24 0" * 11 + f"V{_HEIGHT:g}H-96Z"


def rock(name: str, *, health: str, title: str) -> str:
    """Draw the rock of the device `name`; its shape never changes, its light and its depth say its health."""
    heights = _heights(name)
    sunk = max(heights) - 22.0 if health in ("away", "revoked") else 0.0
    ridge = [(float(x), min(_FOOT + sunk - height, _FOOT)) for x, height in zip(_RIDGE, heights, strict=True)]
    peak_x, peak_y = min(ridge, key=lambda point: point[1])
    lit = [point for point in ridge if point[0] <= peak_x] + [(peak_x - 8, _FOOT), (0.0, _FOOT)]
    stone = _polygon([(0.0, _FOOT), *ridge, (_WIDTH, _FOOT)], "stone") + _polygon(lit, "face")
    stone += "".join(_stratum(ridge, share) for share in (0.42, 0.7))
    if health == "drifting":
        stone += element("path", d=f"M{peak_x:.1f} {peak_y:.1f}v-15l13 5-13 5", class_="flag")
    else:
        stone += element("line", x1=peak_x, x2=peak_x, y1=peak_y, y2=peak_y - 8, class_="mast")
        stone += element("circle", cx=peak_x, cy=peak_y - 10, r=3.6, class_="lamp")
    body = tooltip(title) + stone
    body += element("path", d=_SURFACE, class_="water")
    return drawing(body, width=_WIDTH, height=_HEIGHT, title=title, class_=f"rock {health}")


def _heights(name: str) -> list[float]:
    """Return the ridge of a name: low at both ends, one peak, a little broken."""
    seed = hashlib.sha256(name.encode()).digest()
    peak = 2 + seed[0] % 4
    heights = []
    for index in range(len(_RIDGE)):
        fall = abs(index - peak) / (peak if index < peak else len(_RIDGE) - 1 - peak)
        heights.append(max(5.0, (36.0 + seed[1] % 11) * (1 - fall**1.3) + seed[2 + index] % 9 - 3))
    return heights


def _stratum(ridge: list[tuple[float, float]], share: float) -> str:
    points = [(x, y + (_FOOT - y) * share) for x, y in ridge[1:-1]]
    return element("path", d="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points), class_="stratum")


def _polygon(points: list[tuple[float, float]], class_: str) -> str:
    return element("polygon", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)
