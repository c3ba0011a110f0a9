"""Bins, baselines and the anytime-valid test: standard library only, on both shores."""

from skerry.drift.blindness import blind_below
from skerry.drift.commissioning import Commissioned, Finding, commission
from skerry.drift.counting import Counter, merge
from skerry.drift.evidence import ALARM, WATCH, Evidence, Result, Status, evidence, step
from skerry.drift.fleet import DeviceVerdict, DeviceWindows, FleetVerdict, Route, decide
from skerry.drift.label_free import expected_accuracy
from skerry.drift.monitor import CONFIDENCE, PREDICTION, Counts, Monitor, Pair, Rejected, Scalar
from skerry.drift.reference import build_monitor
from skerry.drift.severity import Severity, severity

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
