"""Writes the demo's report as one self-contained page: the figures of `report.json` as a table, and the charts."""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from control_plane.pages import charts
from control_plane.pages.rocks import rock

Points = Mapping[str, Sequence[tuple[float, float]]]


class Deployed(TypedDict):
    """One device's attempt, in real seconds since the demo began; `committed` is None where it never did."""

    device: str
    release: str
    wave: str
    assigned: float
    committed: float | None


class Moments(TypedDict):
    """What deserves a vertical line: (time, label), by the clock that the time is on."""

    event: Sequence[tuple[float, str]]
    real: Sequence[tuple[float, str]]


class Measured(TypedDict):
    """What the demo saw over time, device by device.

    `accuracy` holds (event time in s, share of 1), `evidence` (event time in s, log10 of E), `buffer` (real seconds
    since the demo began, entries waiting). Event times may count from any origin, the same for all.
    """

    accuracy: Points
    evidence: Points
    deployments: Sequence[Deployed]
    buffer: Points
    moments: Moments


class _Figure(NamedTuple):
    title: str
    drawing: str
    caption: str


def write_report_page(path: Path, report: Mapping[str, Any], series: Measured) -> None:
    """Write the page to `path`; `report` is what `report.json` holds. It loads nothing and runs no script."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(
        style=resources.files("control_plane.pages").joinpath("static", "skerry.css").read_text(),
        headline=headline(report),
        story=story(report),
        highlights=highlights(report),
        rocks=[(name, rock(name, health=_health(name, report), title=name)) for name in sorted(series["accuracy"])],
        figures=_figures(series),
        tables=tables(report),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)


def headline(report: Mapping[str, Any]) -> str:
    """Say in one sentence what happened, from the figures alone."""
    before, after = report["v1"]["accuracy_other_wrist"], report["v2"]["accuracy_other_wrist"]
    if not report["drift"]["world_changed"]:
        return "The world did not change, as far as the fleet could tell."
    if after <= before:
        return f"The world changed, and the fleet did not come back: {before:.2f}, then {after:.2f}."
    return f"The watches changed wrists, the fleet noticed, and came back from {before:.2f} to {after:.2f}."


def story(report: Mapping[str, Any]) -> str:
    """Tell the run in two sentences."""
    offline, drift, rollout = report["offline"], report["drift"], report["rollout"]
    return (
        f"{offline['devices']} devices were cut off and went on inferring: of the {offline['windows_buffered']} "
        f"windows that they kept, {offline['windows_lost']} were lost and {offline['windows_duplicated']} counted "
        f"twice. {drift['local_flag']['device']} was flagged when it alone changed wrist; when all did, a second "
        f"version went to {rollout['v2_canary_devices']} canaries first and was committed by "
        f"{rollout['v2_committed']} devices."
    )


def highlights(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the figures that the run stands or falls with, as (figure, what it counts)."""
    offline, drift, rollout = report["offline"], report["drift"], report["rollout"]
    return [
        (_text(offline["windows_lost"]), "windows lost"),
        (_text(offline["windows_duplicated"]), "windows counted twice"),
        (_text(drift["false_alarms_before"]), "false alarms before the change"),
        (_text(drift["local_flag"]["windows_to_flag"]), "windows to flag the one device"),
        (_text(drift["windows_to_alarm"]), "windows until the world had changed"),
        (_text(rollout["v2_committed"]), "devices on the second version"),
        (f"{report['seconds']:.0f} s", "from nothing to here"),
    ]


def tables(report: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return every figure of the report, grouped by its first key: (group, [(name, figure)])."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for path, value in _leaves(report):
        top, _, rest = path.partition(" · ")
        groups.setdefault(top if rest else "run", []).append((rest or top, _text(value)))
    return list(groups.items())


def _figures(series: Measured) -> list[_Figure]:
    event = [charts.Mark(at, label) for at, label in series["moments"]["event"]]
    real = [charts.Mark(at, label) for at, label in series["moments"]["real"]]
    first_event = _earliest(series["accuracy"], series["evidence"])
    first_real = min([0.0, *(one["assigned"] for one in series["deployments"])])
    bars = [
        charts.Bar(
            row=one["device"],
            group=f"{one['release']}, {one['wave']}",
            start=one["assigned"],
            end=one["committed"],
            tone="good" if one["committed"] is not None else "alarm",
        )
        for one in sorted(series["deployments"], key=lambda one: one["assigned"])
    ]
    return [
        _Figure(
            "Accuracy over time",
            charts.accuracy_chart(
                _lines(series["accuracy"]), title="Accuracy of each device over time", marks=event, since=first_event
            ),
            "The share of correct rows in each window, counted on the device, where the truth is known.",
        ),
        _Figure(
            "Drift evidence",
            charts.evidence_chart(
                _lines(series["evidence"]),
                title="Drift evidence of each device",
                x_label="event time",
                marks=event,
                since=first_event,
            ),
            "Each device against its own first windows; the test may look at every window. E ≥ 100 is an alarm.",
        ),
        _Figure(
            "Rollouts",
            charts.wave_chart(bars, title="Deployments by release and wave", since=first_real, x_label="real time"),
            "From assignment to commit: fetched over MQTT, verified, replayed on golden vectors, tried, committed.",
        ),
        _Figure(
            "Buffer depth",
            charts.step_chart(
                _lines(series["buffer"]),
                title="Entries waiting on each device",
                y_label="entries waiting",
                x_label="real time",
                marks=real,
                since=first_real,
            ),
            "What a device has to say and has not yet been heard; it falls to nothing when the connection is back.",
        ),
    ]


def _lines(points: Points) -> list[charts.Series]:
    return [charts.Series(name=name, points=tuple(points[name])) for name in sorted(points)]


def _earliest(*groups: Points) -> float | None:
    return min((time for points in groups for line in points.values() for time, _ in line), default=None)


def _health(name: str, report: Mapping[str, Any]) -> str:
    return "drifting" if name == report["drift"]["local_flag"]["device"] else "good"


def _leaves(tree: Mapping[str, Any], path: str = "") -> list[tuple[str, object]]:
    """Return (path in words, value) of every leaf, in the report's order."""
    out: list[tuple[str, object]] = []
    for key, value in tree.items():
        here = f"{path} · {key.replace('_', ' ')}" if path else key.replace("_", " ")
        out += _leaves(value, here) if isinstance(value, Mapping) else [(here, value)]
    return out


def _text(value: object) -> str:
    """Write a figure as a person reads it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() else f"{value:,.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
