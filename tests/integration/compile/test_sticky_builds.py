"""A version that follows another keeps its grids under the same gate, and the report says what that came to."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from control_plane.training import Recipe, Trained, split, train
from converters import predecessor
from converters.cache import Cache
from converters.compile import BuildOutcome, compile_model
from converters.gate import replay, table
from converters.gate_report import Sticky
from converters.samples import Rows, Samples
from converters.source import from_network
from converters.tflite import quantise
from converters.tflite.ir import Quantisation
from firmware_profiles import load_profile
from skerry.wire.profile import Profile

LABELS = ("still", "slow", "fast")


@pytest.fixture(scope="module")
def samples() -> Samples:
    """Windows of two channels, three labels."""
    rng = np.random.default_rng(3)
    truth = np.arange(240) % 3
    time_s = np.arange(20) / 20
    waves = np.sin(2 * np.pi * time_s[None, :, None] * (1 + 2 * truth[:, None, None])) * (0.2 + truth[:, None, None])
    windows = waves * [1.0, 4.0] + rng.normal(0, 0.05, (240, 20, 2))
    return Samples(windows.astype(np.float32), truth.astype(np.int64), np.arange(240) // 60)


def _trained(samples: Samples, iterations: int) -> Trained:
    recipe = Recipe(hidden=(96, 48), max_iter=iterations, validation_groups=(2,), channels=("x", "y"))
    return train(recipe, samples.windows, samples.truth, samples.groups, labels=LABELS)


@pytest.fixture(scope="module")
def versions(samples: Samples) -> tuple[Trained, Trained]:
    """The second was trained for a little longer than the first."""
    return _trained(samples, 60), _trained(samples, 70)


@pytest.fixture(scope="module")
def halves(versions: tuple[Trained, Trained], samples: Samples) -> tuple[Rows, Rows]:
    """Calibration and held-out rows."""
    learnt, held_out = split(versions[0].recipe, samples)
    return learnt.rows(), held_out.rows()


def _profile(name: str, precision: str) -> Profile:
    profile = load_profile(name)
    budgets = replace(profile.budgets, latency_ms=1000.0, compression=1.0, agreement=0.8)
    return replace(profile, precision=(precision,), prefer="order", budgets=budgets)


def _compile(trained: Trained, profile: Profile, halves: tuple[Rows, Rows], **options: object) -> BuildOutcome:
    return compile_model(
        from_network(trained.network),
        profile,
        name="moves",
        version=2,
        created="2026-01-01T00:00:00Z",
        calibration=halves[0],
        holdout=halves[1],
        **options,  # type: ignore[arg-type] # named at the call
    )


def _sticky(outcome: BuildOutcome, precision: str) -> Sticky | None:
    measured = next(each.measurement for each in outcome.report.candidates if each.precision == precision)
    assert measured is not None
    return measured.sticky


@pytest.mark.parametrize(
    ("name", "precision", "file"),
    [("arm64-board", "int8-hybrid", "model.tflite"), ("x86-64-gateway", "int8-qdq", "model.onnx")],
)
def test_a_version_keeps_the_grids_of_the_one_before_and_says_so(
    name: str,
    precision: str,
    file: str,
    versions: tuple[Trained, Trained],
    halves: tuple[Rows, Rows],
    tmp_path: Path,
) -> None:
    profile, cache = _profile(name, precision), Cache(tmp_path)
    first = _compile(versions[0], profile, halves, cache=cache)
    assert first.artifact is not None, first.report.reason
    before = {precision: first.artifact[file]}

    lines: list[str] = []
    made = _compile(versions[1], profile, halves, cache=cache, before=before, log=lines.append)
    assert made.artifact is not None, made.report.reason
    sticky = _sticky(made, precision)
    assert sticky is not None
    assert sticky.taken
    assert 0 < sticky.kept <= sticky.scales
    assert None not in (sticky.accuracy, sticky.free_accuracy, sticky.agreement, sticky.free_agreement)
    assert sticky.delta_bytes is not None
    assert sticky.free_delta_bytes is not None
    assert sticky.delta_bytes < sticky.free_delta_bytes
    assert any("scales kept" in line for line in lines)
    assert f"scales of the version before kept: {sticky.kept} of {sticky.scales}" in table(made.report)
    assert sticky.before in made.recipes[precision]["sticky"]

    again = _compile(versions[1], profile, halves, cache=cache, before=before)
    assert (again.artifact, again.report) == (made.artifact, made.report)
    assert replay(json.loads(made.artifact["gate.json"])) == made.report
    alone = _compile(versions[1], profile, halves, cache=cache)
    assert alone.artifact is not None
    assert alone.artifact[file] != made.artifact[file]
    assert _sticky(alone, precision) is None


def test_grids_that_the_gate_refuses_give_way_to_free_ones(
    versions: tuple[Trained, Trained], halves: tuple[Rows, Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = _profile("arm64-board", "int8-hybrid")
    first = _compile(versions[0], profile, halves)
    assert first.artifact is not None

    def coarse(_old: Quantisation | None, new: Quantisation) -> Quantisation:
        return replace(new, scales=tuple(5000 * scale for scale in new.scales))

    monkeypatch.setattr(quantise, "stick", lambda old, new: new if old is None else coarse(old, new))
    monkeypatch.setattr(predecessor, "kept", lambda _old, _new: (5, 9))
    made = _compile(versions[1], profile, halves, before={"int8-hybrid": first.artifact["model.tflite"]})
    assert made.artifact is not None, made.report.reason
    sticky = _sticky(made, "int8-hybrid")
    assert sticky is not None
    assert not sticky.taken
    assert sticky.agreement is not None
    assert sticky.free_agreement is not None
    assert sticky.agreement < 0.8 <= sticky.free_agreement
    assert sticky.delta_bytes is None
    assert sticky.free_delta_bytes is not None
    assert "scales of the version before refused: 5 of 9" in table(made.report)
    free = _compile(versions[1], profile, halves)
    assert free.artifact is not None
    assert made.artifact["model.tflite"] == free.artifact["model.tflite"]


def test_a_file_that_is_no_predecessor_changes_nothing(
    versions: tuple[Trained, Trained], halves: tuple[Rows, Rows]
) -> None:
    profile = _profile("arm64-board", "int8-hybrid")
    made = _compile(versions[1], profile, halves, before={"int8-hybrid": b"    TFL3 and no more", "fp16": b"x"})
    assert made.artifact is not None
    assert _sticky(made, "int8-hybrid") is None
