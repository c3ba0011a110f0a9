"""The agent's smaller parts: observer, trial, reporter, addresses, configuration."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.config import Config, read_config
from agent.identity.folder import StateFolder
from agent.inference.crashes import Crashes
from agent.inference.golden import compare
from agent.inference.observe import Latencies, Observer
from agent.inference.trial import Terms, Trial
from agent.link.address import parse_broker
from agent.link.backoff import full_jitter
from agent.telling.reporter import Reporter, Versions
from skerry.drift.reference import build_monitor
from skerry.errors import Rejected
from skerry.seen import Seen, read_seen
from skerry.wire import codec
from skerry.wire.manifest import Manifest, TensorSpec, Tolerance
from skerry.wire.messages import Reported
from skerry.wire.report import decode_report, encode_report

LABELS = ("rest", "lift")


def manifest(**changes: Any) -> Manifest:
    """Return a manifest with a monitor of one feature."""
    monitor = build_monitor(
        {"mean": [index / 50 for index in range(100)]},
        categories={"prediction": ["rest", "lift"] * 50},
        confidence=[0.5 + index / 200 for index in range(100)],
        window_n=4,
    )
    whole = Manifest(
        model="strokes",
        version=1,
        profile="gateway",
        runtime="onnxruntime",
        model_file="m",
        golden_file="g",
        gate_file="r",
        inputs=(TensorSpec("window", (1, 2), "float32"),),
        outputs=(),
        labels=LABELS,
        tolerances={},
        observe={"features": "f", "probabilities": "p"},
        monitor=monitor.to_json(),
        files=(),
        latency_budget_ms=1.0,
        created="",
    )
    return replace(whole, **changes)


# --- observer


def test_a_full_window_survives_the_wire_with_its_counts() -> None:
    observer = Observer(manifest(), digest="ab" * 32, number=3)
    full = []
    for row in range(4):
        seen = Seen((0.1 * row,), LABELS[row % 2], 0.9)
        observer.add(seen, truth="rest", latency_us=100, event_time=10.0 + row)
        full.append(observer.full)
    report = observer.report(event_time=13.0)

    assert full == [False, False, False, True]
    assert (report.window, report.rows, report.labelled, report.correct) == (3, 4, 4, 2)
    assert (report.start, report.end) == (10, 13)
    assert 95 <= report.latency_p50_us <= 120
    assert [sum(table) for table in report.tables[:3]] == [4, 4, 4]
    assert decode_report(encode_report(report)) == report


def test_an_open_window_is_continued_only_under_its_own_monitor() -> None:
    observer = Observer(manifest(), digest="ab" * 32, number=0)
    observer.add(Seen((0.1,), "rest", 0.9), truth=None, latency_us=100, event_time=10.0)
    kept = json.loads(json.dumps(observer.save()))

    again = Observer(manifest(), digest="ab" * 32, number=0)
    assert again.restore(kept)
    assert again.report(event_time=11.0) == observer.report(event_time=11.0)
    assert not again.restore({**kept, "monitor": "0" * 16})
    assert not Observer(manifest(), digest="ab" * 32, number=0).restore({**kept, "counts": [[1]]})


def test_outputs_are_read_by_the_manifest_and_nan_is_the_artifacts_fault() -> None:
    outputs = {"p": np.array([[0.25, 0.75]], np.float32), "f": np.array([[1.5]], np.float32)}

    assert read_seen(manifest(), outputs) == Seen(features=(1.5,), prediction="lift", confidence=0.75)
    with pytest.raises(Rejected, match="finite"):
        read_seen(manifest(), {**outputs, "p": np.array([[np.nan, 1.0]], np.float32)})
    with pytest.raises(Rejected, match="a tensor named"):
        read_seen(manifest(), {"p": outputs["p"]})


def test_a_model_that_is_no_classifier_is_watched_by_its_inputs() -> None:
    monitor = build_monitor({"level": [index / 50 for index in range(100)]}, window_n=4)
    plain = manifest(observe={"features": "window"}, monitor=monitor.to_json(), labels=())
    seen = read_seen(plain, {"window": np.array([[0.5]], np.float32), "angle": np.array([[3.0]], np.float32)})
    observer = Observer(plain, digest="ab" * 32, number=0)
    observer.add(seen, truth="lift", latency_us=1, event_time=0)

    assert seen == Seen(features=(0.5,))
    report = observer.report(event_time=1.0)
    assert (report.rows, report.labelled, sum(map(sum, report.tables))) == (1, 0, 1)


def test_outputs_that_the_monitor_does_not_know_are_the_artifacts_fault() -> None:
    observer = Observer(manifest(), digest="ab" * 32, number=0)

    with pytest.raises(Rejected, match="do not fit the monitor"):
        observer.add(Seen((0.1, 0.2), "rest", 0.9), truth=None, latency_us=1, event_time=0)
    assert observer.rows == 0


def test_percentiles_are_within_a_bin_of_the_truth() -> None:
    latencies = Latencies()
    for latency in range(1, 1001):
        latencies.add(latency)

    assert 500 <= latencies.percentile(0.5) <= 560
    assert 990 <= latencies.percentile(0.99) <= 1100


# --- trial


@pytest.mark.parametrize(
    ("inferences", "latency_us", "waited_s", "passed"),
    [(5, 500, 0, True), (5, 5000, 0, False), (4, 500, 0, None), (0, 0, 61, True), (2, 5000, 61, False)],
)
def test_a_trial_ends_on_local_evidence(inferences: int, latency_us: int, waited_s: int, passed: bool | None) -> None:
    trial = Trial(terms=Terms(inferences=5, latency_budget_ms=1.0, grace_s=60), latencies=Latencies(), began=100.0)
    for _ in range(inferences):
        trial = trial.after(latency_us)
    decision = trial.decide(100.0 + waited_s)

    assert (decision.passed if decision else None) is passed


@pytest.mark.parametrize(("growth", "batched", "passed"), [(8, False, True), (9, False, False), (9, True, True)])
def test_a_trial_is_judged_by_memory_unless_a_caller_asked_for_many_rows_at_once(
    growth: int, batched: bool, passed: bool
) -> None:
    terms = Terms(inferences=2, latency_budget_ms=1.0, grace_s=60, memory_budget_bytes=8)
    trial = Trial(terms=terms, latencies=Latencies(), began=100.0)
    trial = trial.after(10.0, 10.0) if batched else trial.after(10.0).after(10.0)
    decision = trial.decide(100.0, growth_bytes=growth)

    assert decision is not None
    assert decision.passed is passed


def test_crashes_are_forgotten_after_ten_minutes_and_pauses_double() -> None:
    crashes = Crashes()
    assert (crashes.due, crashes.too_many) == (0.0, False)
    seen = []
    for now in (100.0, 101.0, 102.0, 103.0):
        crashes = crashes.after(now)
        seen.append((crashes.due - now, crashes.too_many))
    assert seen == [(0.0, False), (1.0, False), (2.0, True), (4.0, True)]
    for now in range(104, 120):
        crashes = crashes.after(float(now))
    assert crashes.due == 119.0 + 60.0
    assert crashes.after(719.0) == Crashes((719.0,))


def test_golden_vectors_are_compared_within_their_tolerances_and_nan_is_outside() -> None:
    want = {"p": np.array([[1.0, 2.0]])}
    tolerances = {"p": Tolerance(atol=0.01, rtol=0.01)}

    compare({"p": np.array([[1.015, 1.975]])}, want, tolerances)
    for bad in ([[1.03, 2.0]], [[np.nan, 2.0]], [[1.0]]):
        with pytest.raises(Rejected, match="golden replay"):
            compare({"p": np.array(bad)}, want, tolerances)


# --- telling


def reported(**changes: Any) -> Reported:
    """Return a report."""
    whole = Reported(
        version=1, online=True, state="idle", agent="0", profile="gateway", runtime="r", architecture="x86_64"
    )
    return replace(whole, **changes)


def test_a_change_is_reported_at_once_and_the_rest_every_few_seconds() -> None:
    reporter = Reporter(every_s=2.0)
    assert reporter.due(reported(), now=0.0)
    reporter = reporter.sent(reported(), now=0.0)

    assert not reporter.due(reported(inferences=5), now=1.0)
    assert reporter.due(reported(inferences=5), now=2.0)
    assert reporter.due(reported(state="trial"), now=0.1)
    assert not reporter.due(reported(version=9), now=60.0)


def test_versions_only_grow_and_a_will_is_heard_last() -> None:
    versions = Versions(1)
    first = [versions.will(), *sorted(versions.next() for _ in range(3))]
    second = [versions.will(), versions.next()]
    later = Versions(2).will()

    assert max(first[1:]) < first[0] < second[1] < second[0] < later


def test_versions_of_a_start_that_was_not_counted_follow_those_of_the_last_one_that_was() -> None:
    counted = Versions(3)
    wills = [(counted.will(), counted.next())[0] for _ in range(100)]
    minutes = [Versions(3, uncounted_s=60.0 * each).will() for each in (0, 1, 600, 10**9)]

    assert wills[-1] < minutes[0] < minutes[1] < minutes[2] < minutes[3] < Versions(4).next()


def test_attempts_that_fail_use_up_no_versions() -> None:
    versions = Versions(1)
    assert len({versions.will() for _ in range(5000)}) == 1
    assert versions.will() < Versions(2).next()


def test_versions_fit_the_wire_when_the_starts_were_miscounted(tmp_path: Path) -> None:
    (tmp_path / "starts").write_text("not a number")

    version = Versions(StateFolder(tmp_path).starts()).will()

    assert codec.decode(Reported, codec.encode(reported(version=version))).version == version


# --- addresses, configuration


@pytest.mark.parametrize(
    "url",
    [
        "mqtt://10.0.0.7:1883",
        "mqtt://broker.example",
        "http://127.0.0.1:1",
        "127.0.0.1:1883",
        "mqtt://[::1",
        "mqtt://127.0.0.1:99999",
    ],
)
def test_a_broker_without_identities_is_refused_off_this_machine(url: str) -> None:
    with pytest.raises(Rejected, match="broker: expected"):
        parse_broker(url)


def test_brokers_have_the_usual_ports() -> None:
    assert parse_broker("mqtts://broker.example").port == 8883
    assert parse_broker("mqtt://127.0.0.1:1999").port == 1999


def test_waits_are_spread_and_bounded() -> None:
    waits = [full_jitter(attempt, least_s=1.0, most_s=60.0) for attempt in range(200)]

    assert min(waits) >= 1.0
    assert max(waits) <= 60.0
    assert len({round(wait, 3) for wait in waits[50:]}) > 100


def test_options_win_over_the_file_and_unknown_settings_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("rate = 5\nseed = 3\n")
    assert read_config(tmp_path, {"rate": 9.0, "seed": None}) == Config(rate=9.0, seed=3)

    (tmp_path / "config.toml").write_text("speed = 5\n")
    with pytest.raises(Rejected, match="speed"):
        read_config(tmp_path, {})
    with pytest.raises(Rejected, match="rate: expected 0 or more"):
        read_config(tmp_path / "none", {"rate": -1.0})
    with pytest.raises(Rejected, match="rate: expected a finite number"):
        read_config(tmp_path / "none", {"rate": float("nan")})
    (tmp_path / "config.toml").write_text("seed = 1979-05-27\n")
    with pytest.raises(Rejected, match="seed: expected int"):
        read_config(tmp_path, {})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('rate = "x"', "config.toml: rate: expected float"),
        ("rate = -1", "config.toml: rate: expected 0 or more"),
        ("infer_timeout_s = 1e300", "config.toml: infer_timeout_s: expected at most 604800 s"),
        ("[budgets.lamps]\ndisk = 3", "config.toml: budgets.lamps: expected settings that there are, got disk"),
        ("[budgets]\nlamps = 3", "config.toml: budgets.lamps: expected an object"),
        ("sorce = 3", "config.toml: expected settings that there are, got sorce"),
    ],
)
def test_a_mistake_in_the_file_is_said_by_file_and_setting(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(Rejected, match=says):
        read_config(tmp_path, {})


def test_a_file_with_a_mark_of_its_byte_order_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("\ufeffseed = 3\n", encoding="utf-8")
    assert read_config(tmp_path, {}).seed == 3
