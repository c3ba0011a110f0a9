"""The demo's report page: self-contained, complete, and in words that follow from the figures."""

import re
from pathlib import Path
from typing import Any

from demo.report_page import Measured, headline, tables, write_report_page

REPORT: dict[str, Any] = {
    "profiles": {
        "board": {"runtime": "litert", "size_bytes": 12_650, "accuracy": 0.868, "agreement": 0.987, "gate": "passed"}
    },
    "v1": {"accuracy_as_trained": 0.871, "accuracy_other_wrist": 0.592},
    "v2": {"accuracy_as_trained": 0.86, "accuracy_other_wrist": 0.848},
    "offline": {"devices": 3, "windows_buffered": 1120, "windows_lost": 0, "windows_duplicated": 0},
    "drift": {
        "false_alarms_before": 0,
        "local_flag": {"device": "watch-<3>", "windows_to_flag": 1},
        "world_changed": True,
        "windows_to_alarm": 2,
    },
    "rollout": {"v1_committed": 8, "v2_committed": 8, "v2_canary_devices": 2, "v2_bytes_sent": 104_000},
    "seconds": 141.25,
}
MEASURED: Measured = {
    "accuracy": {"watch-<3>": [(1e9, 0.87), (1e9 + 100, 0.6)]},
    "evidence": {"watch-<3>": [(1e9 + 100, 57.0)]},
    "deployments": [
        {"device": "watch-<3>", "release": "watch-1", "wave": "canary", "assigned": 3.0, "committed": None}
    ],
    "buffer": {"watch-<3>": [(0.0, 0.0), (4.0, 9.0)]},
    "moments": {"event": [(1e9 + 50, "moved")], "real": [(2.0, "cut off")]},
}
NOTHING: Measured = {
    "accuracy": {},
    "evidence": {},
    "deployments": [],
    "buffer": {},
    "moments": {"event": [], "real": []},
}


def test_the_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    write_report_page(tmp_path / "report.html", REPORT, MEASURED)
    page = (tmp_path / "report.html").read_text()
    without_namespaces = page.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?://|@import|url\(|<script|<link rel=\"stylesheet|src=", without_namespaces)
    assert "watch-<3>" not in page


def test_the_page_has_four_charts_and_every_figure(tmp_path: Path) -> None:
    write_report_page(tmp_path / "report.html", REPORT, MEASURED)
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="chart"') == 4
    figures = [value for _, rows in tables(REPORT) for _, value in rows]
    assert len(figures) == 23
    assert all(f">{value}<" in page.replace("&lt;3&gt;", "<3>") for value in figures)


def test_a_run_that_measured_nothing_still_makes_a_page(tmp_path: Path) -> None:
    write_report_page(tmp_path / "new" / "report.html", REPORT, NOTHING)
    assert (tmp_path / "new" / "report.html").read_text().count("Nothing to draw yet.") == 4


def test_the_headline_follows_from_the_figures() -> None:
    assert headline(REPORT) == "The watches changed wrists, the fleet noticed, and came back from 0.59 to 0.85."
    worse = REPORT | {"v2": {"accuracy_other_wrist": 0.5}}
    assert "did not come back" in headline(worse)
    assert "did not change" in headline(REPORT | {"drift": {"world_changed": False}})
