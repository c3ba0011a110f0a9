"""Bins, baselines and the anytime-valid test: standard library only, on both shores.

What counts is imported with this package; what judges, when it is asked for, because a device does not judge.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from skerry.drift.counting import Counter, merge

# named like their modules, which would take their places if they came later
from skerry.drift.evidence import ALARM, WATCH, Evidence, Result, Status, evidence, step
from skerry.drift.monitor import CONFIDENCE, PREDICTION, Counts, Monitor, Pair, Rejected, Scalar
from skerry.drift.severity import Severity, severity

if TYPE_CHECKING:
    from skerry.drift.blindness import blind_below
    from skerry.drift.commissioning import Commissioned, Finding, commission
    from skerry.drift.fleet import DeviceVerdict, DeviceWindows, FleetVerdict, Route, decide
    from skerry.drift.label_free import expected_accuracy
    from skerry.drift.reference import build_monitor

__all__ = [
    "ALARM",
    "CONFIDENCE",
    "PREDICTION",
    "WATCH",
    "Commissioned",
    "Counter",
    "Counts",
    "DeviceVerdict",
    "DeviceWindows",
    "Evidence",
    "Finding",
    "FleetVerdict",
    "Monitor",
    "Pair",
    "Rejected",
    "Result",
    "Route",
    "Scalar",
    "Severity",
    "Status",
    "blind_below",
    "build_monitor",
    "commission",
    "decide",
    "evidence",
    "expected_accuracy",
    "merge",
    "severity",
    "step",
]

_HOMES = {
    "blind_below": "blindness",
    **dict.fromkeys(("Commissioned", "Finding", "commission"), "commissioning"),
    **dict.fromkeys(("DeviceVerdict", "DeviceWindows", "FleetVerdict", "Route", "decide"), "fleet"),
    "expected_accuracy": "label_free",
    "build_monitor": "reference",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
