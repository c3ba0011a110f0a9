"""Models on other machines: emitted C on a Cortex-M3, and the aarch64 wheels of the runtimes."""

import argparse
import json
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest

from control_plane.cli import emulators
from control_plane.cli.session import Session
from control_plane.training import Trained
from converters import onnx_writer
from converters.c_source import dense_core, dense_front, emit_dense, emit_trees
from converters.emulators import NotRun, run_arm64, run_cortex_m, status
from converters.samples import Array
from skerry.runtimes import Limits, Refused, run_in_child
from tests.integration.emulators.emitted import micro
from tests.integration.emulators.test_emitted_trees import ensemble, rows_of, runtime
from tests.tflite_files import float_file
from tests.unit.emulators.ensembles import classifier, regressor
from tests.unit.emulators.nets import Layer, random_net

pytestmark = pytest.mark.emulator


def test_a_dense_net_on_a_cortex_m3_gives_the_integers_of_the_interpreter(
    cortex_m: Path, hybrid: bytes, watch_windows: Array, rng: np.random.Generator, tmp_path: Path
) -> None:
    other = random_net(rng, 9, [Layer(20, per_channel=True, activation="RELU6"), Layer(4)])
    cases = (
        (hybrid, micro(dense_front(hybrid), watch_windows, tmp_path)),
        (hybrid, rng.integers(-128, 128, (500, 30)).astype(np.int8)),
        (other, rng.integers(-128, 128, (500, 9)).astype(np.int8)),
    )
    for model, rows in cases:
        ended = run_cortex_m(cortex_m, emit_dense(model, "net"), rows)
        assert isinstance(ended, dict), ended
        expected = micro(dense_core(model), rows, tmp_path)
        assert np.array_equal(ended["output"], expected)
        assert np.array_equal(ended["label"], expected.argmax(axis=1))


def test_trees_on_a_cortex_m3_label_and_sum_as_onnx_runtime(cortex_m: Path, rng: np.random.Generator) -> None:
    model = classifier(ensemble(rng, "class", (0, 1, 2), "BRANCH_LEQ"), 3)
    rows = rows_of(rng, 200)
    labels, scores = runtime(model, rows)
    ended = run_cortex_m(cortex_m, emit_trees(model, "trees"), rows)
    assert isinstance(ended, dict), ended
    assert np.array_equal(ended["label"], labels[:, 0])
    assert ended["output"].tobytes() == scores.tobytes()


def test_a_regressor_on_a_cortex_m3_has_no_label(cortex_m: Path, rng: np.random.Generator) -> None:
    model = regressor(ensemble(rng, "target", (0,), "BRANCH_LEQ"), 1)
    ended = run_cortex_m(cortex_m, emit_trees(model, "trees"), rows_of(rng, 5))
    assert isinstance(ended, dict), ended
    assert list(ended) == ["output"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("*(volatile int *)0xF0000000 = 1; out[0] = in[0];", "a fault after 0"),
        ("out[0] = in[0] + missing;", "error: 'missing' undeclared"),
        ("static char big[8 << 20]; out[0] = big[(unsigned char)in[0]]; big[1] = 1;", "overflowed by"),
    ],
)
def test_c_that_faults_or_does_not_build_is_refused(cortex_m: Path, body: str, message: str) -> None:
    sources = emit_dense(random_net(np.random.default_rng(1), 3, [Layer(2)]), "bad")
    code = f'#include "bad.h"\nvoid bad_predict(const int8_t in[3], int8_t out[2]) {{ {body} }}\n'
    sources["bad.c"] = f"{code}int bad_label(const int8_t in[3]) {{ return in[0]; }}\n".encode()
    ended = run_cortex_m(cortex_m, sources, np.zeros((2, 3), dtype=np.int8))
    assert isinstance(ended, Refused)
    assert message in ended.reason.replace("‘", "'").replace("’", "'")


def test_c_that_never_ends_is_not_run_to_an_end(cortex_m: Path) -> None:
    sources = emit_dense(random_net(np.random.default_rng(1), 3, [Layer(2)]), "bad")
    code = b'#include "bad.h"\nvoid bad_predict(const int8_t in[3], int8_t out[2]) { (void)in; (void)out; for (;;); }\n'
    sources["bad.c"] = code + b"int bad_label(const int8_t in[3]) { return in[0]; }\n"
    ended = run_cortex_m(cortex_m, sources, np.zeros((2, 3), dtype=np.int8), wall_s=2.0)
    assert isinstance(ended, NotRun)
    assert "within 2 s, got a timeout" in ended.reason


@pytest.mark.parametrize("kind", ["onnxruntime", "litert"])
def test_the_watch_model_on_arm64_gives_what_it_gives_here(
    kind: str, arm64: Path, trained: Trained, watch_windows: Array, tmp_path: Path
) -> None:
    writers = {"onnxruntime": onnx_writer.write_float, "litert": float_file}
    model = writers[kind](trained.network)
    (tmp_path / "model").write_bytes(model)
    rows = {"window": watch_windows[:60]}
    here = run_in_child(kind, tmp_path / "model", rows)
    there = run_arm64(arm64, kind, model, rows)
    assert not isinstance(here, Refused), here
    assert isinstance(there, dict), there
    assert there.keys() == here.outputs.keys()
    for name, expected in here.outputs.items():
        # raw features are of the order of 10, so 1e-6 of their size
        assert np.abs(there[name] - expected).max() <= 1e-6 * max(1.0, float(np.abs(expected).max())), name


def test_a_file_that_is_no_model_is_refused_on_arm64_and_leaves_nothing(
    arm64: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Path] = []

    def recorded(*, dir: Path | None = None) -> str:  # noqa: A002 -- as the function that it stands in for
        jobs.append(Path(mkdtemp(dir=dir)))
        return str(jobs[-1])

    monkeypatch.setattr("converters.emulators.arm64.tempfile.mkdtemp", recorded)
    ended = run_arm64(arm64, "onnxruntime", b"no model at all", {"x": np.zeros((1, 2), dtype=np.float32)})
    assert isinstance(ended, Refused)
    assert "ONNX" in ended.reason
    # this one's: another process may be at work in the same folder
    assert [job.parent.name for job in jobs] == ["jobs"]
    assert not jobs[0].exists()


def test_a_model_that_takes_too_long_on_arm64_is_not_run(arm64: Path) -> None:
    rows = {"x": np.zeros((1, 2), dtype=np.float32)}
    ended = run_arm64(arm64, "onnxruntime", b"no model", rows, limits=Limits(wall_s=0.2, address_space_bytes=16 << 30))
    assert isinstance(ended, NotRun)
    assert "timeout" in ended.reason


def test_the_hosts_own_packages_are_left_alone(arm64: Path) -> None:
    foreign = Path("/var/lib/dpkg/arch")
    assert not foreign.exists() or "arm64" not in foreign.read_text(encoding="ascii").split()[1:]
    found = status("arm64", arm64)
    assert found.ready
    assert {"libc6", "onnxruntime", "python3.11-minimal"} <= found.versions.keys()


@pytest.mark.parametrize("kind", ["arm64", "cortex-m"])
def test_the_command_line_says_that_an_emulator_is_ready(
    kind: str, arm64: Path, cortex_m: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["emulator", "prepare", kind], as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert answer["ready"]
    assert answer["missing"] == []
    assert _run(["emulator", "status", kind], as_json=False)
    assert f"{kind}: ready" in capsys.readouterr().out


def _run(arguments: list[str], *, as_json: bool) -> bool:
    parser = argparse.ArgumentParser()
    emulators.add_verbs(parser.add_subparsers())
    options = parser.parse_args(arguments)
    options.run(options, Session(home=None, url="", token="", ca="", key_passphrase="", as_json=as_json))
    return True
