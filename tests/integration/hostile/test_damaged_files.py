"""A thousand truncated and a thousand bit-flipped files of each format: refused with a reason, or a model that runs.

What passes the checks is normalised, loaded and run in other processes; this one stays as it was.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from converters.checks import check_import
from converters.source import import_model
from skerry.errors import Rejected

COUNT = 1000
SEED = 20261122
REPOSITORY = Path(__file__).parents[3]


def _truncated(data: bytes) -> Iterator[bytes]:
    rng = random.Random(SEED)
    for _ in range(COUNT):
        yield data[: rng.randrange(len(data))]


def _flipped(data: bytes) -> Iterator[bytes]:
    rng = random.Random(SEED)
    for _ in range(COUNT):
        damaged = bytearray(data)
        # half of the flips hit the first tenth, where a flatbuffer and a graph keep their structure
        for _ in range(rng.randint(1, 4)):
            end = len(damaged) if rng.random() < 0.5 else len(damaged) // 10
            damaged[rng.randrange(end)] ^= 1 << rng.randrange(8)
        yield bytes(damaged)


def _refusal(data: bytes) -> str:
    """Return why the checks refuse a file, or nothing; any other exception is a failure of the test."""
    try:
        check_import(data)
    except Rejected as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_every_truncated_file_is_refused_before_any_runtime_sees_it(whole: dict[str, bytes], kind: str) -> None:
    reasons = [_refusal(data) for data in _truncated(whole[kind])]
    assert len(reasons) == COUNT
    assert all(reason.startswith("model file: expected ") and "\n" not in reason for reason in reasons)


@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_a_bit_flipped_file_is_refused_or_runs_and_never_reaches_this_process(
    whole: dict[str, bytes], kind: str, tmp_path: Path, forked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = _state()
    passed = {}
    reasons = Counter[bool]()
    for number, data in enumerate(_flipped(whole[kind])):
        reason = _refusal(data)
        assert "\n" not in reason
        reasons[bool(reason)] += 1
        if not reason:
            file = tmp_path / f"{number:04d}.{kind}"
            file.write_bytes(data)
            passed[file.name] = data
    assert reasons.total() == COUNT
    assert min(reasons.values()) > COUNT // 20  # both outcomes occur: the test is of something

    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(forked), str(tmp_path)], env=environment, capture_output=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = json.loads((tmp_path / "outcomes.json").read_text())["outcomes"]
    assert outcomes.keys() == passed.keys()
    kinds = Counter(outcome.split(":")[0] for outcome in outcomes.values())
    assert set(kinds) <= {"ran", "refused", "crashed"}, [each for each in outcomes.values() if "raised" in each][:1]
    assert kinds["ran"] > 0
    assert not any("\n" in outcome for outcome in outcomes.values())

    # what became of it there becomes of it on the product's own path: a few of each kind
    for name in _some_of_each(outcomes):
        if outcomes[name] == "ran":
            assert import_model(passed[name]).format == kind
        else:
            with pytest.raises(Rejected, match=r"model file|input|output") as caught:
                import_model(passed[name])
            assert "\n" not in str(caught.value)
    assert _state() == before
    assert list(temporary.iterdir()) == []


def _some_of_each(outcomes: dict[str, str]) -> list[str]:
    chosen: dict[str, list[str]] = {}
    for name, outcome in outcomes.items():
        chosen.setdefault(outcome.split(":")[0], []).append(name)
    return [name for names in chosen.values() for name in names[:4]]


def _state() -> tuple[int, list[str]]:
    """Return what a hostile file could have changed here: the process, and what its open files are."""
    return os.getpid(), sorted(str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.is_symlink())
