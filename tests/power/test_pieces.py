"""The power-cut matrix in small, for every run of the tests: the agent's parts without a broker, some 150 cuts."""

from pathlib import Path

from tests.power.check import check_cuts
from tests.power.cuts import choose, find_cuts
from tests.power.pieces import record_pieces

CUTS = 150


def test_a_power_cut_at_any_of_150_moments_loses_nothing(strace: str, tmp_path: Path) -> None:
    recording = record_pieces(tmp_path)
    cuts = choose(find_cuts(recording.initial, recording.operations), CUTS)

    assert len(cuts) == CUTS
    assert check_cuts([(recording, cuts)], tmp_path) == []
