"""The whole compiler on the real recording: a gated artifact for each profile, or a refusal with its reason."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from control_plane.training import Trained, split
from converters.compile import BuildOutcome, compile_model
from converters.gate import GateReport
from converters.samples import Array, Samples
from converters.source import from_network
from firmware_profiles import list_profiles, load_profile
from skerry.drift.monitor import Monitor
from skerry.errors import Rejected
from skerry.runtimes import Refused, find_runtime, open_session, probe, run_in_child
from skerry.runtimes.arrays import unpack
from skerry.wire import codec
from skerry.wire.manifest import Manifest, describe_file
from skerry.wire.profile import Profile

from .conftest import Watch, wearers

AGENT_PROFILES = [name for name in list_profiles() if load_profile(name).agent]


def _compile(trained: Trained, profile: Profile, samples: Samples, **field: object) -> BuildOutcome:
    calibration, holdout = split(trained.recipe, samples)
    return compile_model(
        from_network(trained.network),
        profile,
        name="watch",
        version=2,
        created="2026-01-01T00:00:00Z",
        calibration=calibration.rows(),
        holdout=holdout.rows(),
        **field,  # type: ignore[arg-type] # `field` and `previous`, named at the call
    )


def _report(outcomes: dict[str, BuildOutcome], name: str) -> GateReport:
    # a runtime may live in a Python of its own: `skerry profile prepare armv7-legacy`
    if isinstance(missing := find_runtime(load_profile(name).runtime), Refused):
        if os.environ.get("SKERRY_REQUIRE_SERVERS") == "1":
            pytest.fail(missing.reason)
        pytest.skip(missing.reason)
    return outcomes[name].report


@pytest.mark.parametrize(
    ("name", "chosen"),
    [("x86-64-gateway", "float32"), ("arm64-board", "int8-hybrid"), ("cortex-m", "int8-hybrid")],
)
def test_every_profile_passes_with_its_preferred_precision(
    outcomes: dict[str, BuildOutcome], name: str, chosen: str
) -> None:
    report = _report(outcomes, name)
    assert (report.verdict, report.chosen) == ("passed", chosen), report.reason
    outcomes_by_name = {candidate.precision: candidate.outcome for candidate in report.candidates}
    assert outcomes_by_name[chosen] == outcomes_by_name["float32"] == "passed"
    # on features of unlike size full int8 falls short, and the mixed arrangement stands in for it
    assert outcomes_by_name.get("int8", "refused") == "refused"


def test_memory_is_the_arena_on_a_microcontroller_and_the_process_elsewhere(outcomes: dict[str, BuildOutcome]) -> None:
    micro, gateway = _report(outcomes, "cortex-m").winner, _report(outcomes, "x86-64-gateway").winner
    assert micro is not None
    assert gateway is not None
    assert micro.ram_bytes <= 16 * 1024
    assert gateway.ram_bytes > 10 << 20


@pytest.mark.parametrize("name", list_profiles())
def test_the_manifest_binds_every_file(outcomes: dict[str, BuildOutcome], name: str) -> None:
    _report(outcomes, name)
    files = outcomes[name].artifact
    assert files is not None
    manifest = codec.decode(Manifest, files["manifest.json"], limit=64 * 1024)
    assert {entry.name: entry for entry in manifest.files} == {
        file: describe_file(file, data) for file, data in files.items() if file != "manifest.json"
    }
    forms = {"model.c", "model.h", "dense.c", "dense.h"} if manifest.runtime == "tflite-micro" else set()
    assert {manifest.model_file, manifest.golden_file, manifest.gate_file, "manifest.json"} | forms == set(files)
    assert json.loads(files[manifest.gate_file])["verdict"] == "passed"


@pytest.mark.parametrize("name", AGENT_PROFILES)
def test_the_golden_vectors_replay_on_the_runtime_within_their_tolerances(
    outcomes: dict[str, BuildOutcome], name: str, tmp_path: Path
) -> None:
    _report(outcomes, name)
    files = outcomes[name].artifact
    assert files is not None
    manifest = codec.decode(Manifest, files["manifest.json"])
    file = tmp_path / manifest.model_file
    file.write_bytes(files[manifest.model_file])
    golden = unpack(files[manifest.golden_file], what="golden vectors")
    assert len(golden["window"]) == 16
    outputs = _replayed(manifest.runtime, file, golden["window"])
    for output, tolerance in manifest.tolerances.items():
        expected = golden[output]
        assert np.all(np.abs(outputs[output] - expected) <= tolerance.atol + tolerance.rtol * np.abs(expected))


def _replayed(runtime: str, file: Path, windows: Array) -> dict[str, Array]:
    """Return the outputs of rows one by one: in this process, as on a device, or by the Python that has the runtime."""
    if isinstance(probe(runtime), Refused):
        ran = run_in_child(runtime, file, {"window": windows})
        assert not isinstance(ran, Refused), ran.reason
        return ran.outputs
    session = open_session(runtime, file)
    rows = [session.run({"window": windows[index : index + 1]}) for index in range(len(windows))]
    session.close()
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def test_the_monitor_counts_features_prediction_and_confidence(
    outcomes: dict[str, BuildOutcome], first: Trained, learnt: Samples
) -> None:
    files = outcomes["x86-64-gateway"].artifact
    assert files is not None
    monitor = Monitor.from_json(codec.decode(Manifest, files["manifest.json"]).monitor)
    assert monitor.names[:32] == (*first.network.feature_names, "prediction", "confidence")
    assert set(monitor.scalars[30].categories) == set(first.network.labels)
    assert sum(monitor.reference[0]) == first.metrics["rows_learnt"] + first.metrics["rows_held_out"]
    # the calibration is honest: of held-out rows, not of those that the model learnt by heart
    assert 0 < sum(rows for rows, _ in monitor.calibration) <= first.metrics["rows_held_out"]


def test_a_build_too_big_for_its_profile_is_refused(first: Trained, watch: Watch) -> None:
    board = load_profile("arm64-board")
    outcome = _compile(
        first, replace(board, budgets=replace(board.budgets, size_bytes=4_000)), wearers(watch.worn, 1, 7)
    )
    assert (outcome.report.verdict, outcome.artifact) == ("refused", None)
    assert "size: expected at most 4000" in outcome.report.reason


def test_a_version_that_is_worse_in_the_field_is_refused(first: Trained, second: Trained, watch: Watch) -> None:
    field = wearers(watch.moved, 8, 10).where(np.arange(0, 700, 10))
    outcome = _compile(
        first,
        load_profile("x86-64-gateway"),
        wearers(watch.worn, 1, 7),
        field=field.rows(),
        previous=from_network(second.network),
    )
    assert outcome.report.verdict == "refused"
    assert "field: expected at least" in outcome.report.reason


def test_the_second_version_passes_against_the_first_in_the_field(
    first: Trained, second: Trained, watch: Watch
) -> None:
    both = Samples(
        np.concatenate([watch.worn.windows, watch.moved.windows]),
        np.concatenate([watch.worn.truth, watch.moved.truth]),
        np.concatenate([watch.worn.groups, watch.moved.groups]),
    )
    field = wearers(watch.moved, 8, 10).where(np.arange(0, 700, 10))
    for name in ("x86-64-gateway", "arm64-board"):
        outcome = _compile(
            second, load_profile(name), wearers(both, 1, 7), field=field.rows(), previous=from_network(first.network)
        )
        assert outcome.report.verdict == "passed", outcome.report.reason


def test_without_its_runtime_a_profile_is_not_run(
    first: Trained, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "expected the runtime tflite-micro, got none: pip install 'skerry[mcu]'"
    monkeypatch.setattr("converters.compile.find_runtime", lambda _: Refused(reason))
    outcome = _compile(first, load_profile("cortex-m"), wearers(watch.worn, 1, 7))
    assert (outcome.report.verdict, outcome.report.reason, outcome.artifact) == ("not run", reason, None)


def test_samples_of_another_shape_are_rejected(first: Trained, watch: Watch) -> None:
    wrong = wearers(watch.worn, 1, 7)
    with pytest.raises(Rejected, match=r"expected float32 rows of \(100, 6\) for window"):
        _compile(first, load_profile("arm64-board"), replace(wrong, windows=wrong.windows[:, :50]))


def test_a_build_can_be_made_in_a_process_pool(first: Trained, watch: Watch, outcomes: dict[str, BuildOutcome]) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        outcome = pool.submit(_compile, first, load_profile("arm64-board"), wearers(watch.worn, 1, 7)).result()
    expected = outcomes["arm64-board"].artifact
    assert outcome.artifact is not None
    assert expected is not None
    for file in ("model.tflite", "golden.npz"):
        assert outcome.artifact[file] == expected[file]
