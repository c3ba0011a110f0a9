"""The demonstration's story on real data: eight watches, one changes wrist, then all of them do.

seglearn's watch data: ten wearers doing seven exercises, at 50 Hz, wrist left or right. The first seven are the
training data, the others wear the devices. A window holds 100 observations of two seconds each.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from seglearn.datasets import load_watch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skerry.drift import (
    Commissioned,
    Counter,
    Counts,
    DeviceWindows,
    Evidence,
    FleetVerdict,
    Monitor,
    Status,
    build_monitor,
    commission,
    decide,
    step,
)

Row = tuple[float | str, ...]
Tables = dict[tuple[int, int], list[Row]]  # (wearer, wrist) -> 30 features, prediction, confidence


@dataclass
class _Watch:
    """A device that replays a wearer's observations in a random order, each once before any comes again."""

    name: str
    tables: Tables
    monitor: Monitor
    wearer: int
    wrist: int
    rng: random.Random
    queue: list[Row] = field(default_factory=list)
    windows: list[Counts] = field(default_factory=list)
    commissioned: Commissioned | None = None
    state: Evidence | None = None

    def change_wrist(self) -> None:
        self.wrist = 1 - self.wrist
        self.queue = []

    def commission(self) -> None:
        self.commissioned = commission(self.monitor, [self._window() for _ in range(8)])
        assert self.commissioned is not None
        self.state = self.commissioned.begin(self.monitor)

    def live(self) -> None:
        assert self.state is not None
        self.windows.append(self._window())
        self.state = step(self.state, self.windows[-1])

    @property
    def status(self) -> Status:
        assert self.state is not None
        return self.state.status

    def reported(self) -> DeviceWindows:
        assert self.commissioned is not None
        return DeviceWindows(
            device=self.name,
            baseline=self.commissioned.baseline,
            windows=tuple(self.windows),
            design_effects=self.commissioned.design_effects,
        )

    def _window(self) -> Counts:
        counter = Counter(self.monitor)
        for _ in range(100):
            if not self.queue:
                self.queue = list(self.tables[self.wearer, self.wrist])
                self.rng.shuffle(self.queue)
            counter.add(self.queue.pop())
        return counter.counts()


def _features(series: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(series) - 99, 50):
        part = series[start : start + 100]
        mean = part.mean(axis=0)
        deviation, step_size = np.abs(part - mean).mean(axis=0), np.abs(np.diff(part, axis=0)).mean(axis=0)
        yield np.concatenate([mean, deviation, step_size, part.min(axis=0), part.max(axis=0)])


@pytest.fixture(scope="module")
def world() -> tuple[Monitor, Tables]:
    data = load_watch()
    rows: dict[tuple[int, int], list[tuple[np.ndarray, int]]] = {}
    for series, subject, side, label in zip(data["X"], data["subject"], data["side"], data["y"], strict=True):
        found = rows.setdefault((int(subject), int(side)), [])
        found.extend((features, int(label)) for features in _features(series))

    training = [row for (wearer, side), found in rows.items() if wearer <= 7 and side == 0 for row in found]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    model.fit([features for features, _ in training], [label for _, label in training])

    def observed(found: list[tuple[np.ndarray, int]]) -> list[Row]:
        inputs = np.array([features for features, _ in found])
        probabilities = model.predict_proba(inputs)
        pairs = zip(inputs.tolist(), probabilities, strict=True)
        return [(*features, str(p.argmax()), float(p.max())) for features, p in pairs]

    table = observed(training)
    monitor = build_monitor(
        {f"f{index:02d}": [float(row[index]) for row in table] for index in range(30)},
        categories={"prediction": [str(row[30]) for row in table]},
        confidence=[float(row[31]) for row in table],
        correct=[row[30] == str(label) for row, (_, label) in zip(table, training, strict=True)],
        window_n=100,
        pairs=4,
    )
    return monitor, {key: observed(found) for key, found in rows.items() if key[0] >= 8}


def _fleet(world: tuple[Monitor, Tables], seed: int) -> list[_Watch]:
    monitor, tables = world
    fleet = [
        _Watch(
            name=f"watch-{index}",
            tables=tables,
            monitor=monitor,
            wearer=(8, 9, 10)[index % 3],
            wrist=0,
            rng=random.Random(100 * seed + index),
        )
        for index in range(8)
    ]
    for watch in fleet:
        watch.commission()
    return fleet


def _decide(fleet: list[_Watch]) -> FleetVerdict:
    return decide([watch.reported() for watch in fleet], pairs=4)


@pytest.mark.parametrize("seed", [1, 2])
def test_thirty_quiet_windows_raise_nothing(world: tuple[Monitor, Tables], seed: int) -> None:
    fleet = _fleet(world, seed)
    for window in range(30):
        for watch in fleet:
            watch.live()
        assert {watch.status for watch in fleet} == {Status.QUIET}
        if window % 6 == 5:
            verdict = _decide(fleet)
            assert verdict.local_flags == ()
            assert not verdict.world_changed


@pytest.mark.parametrize("seed", [3, 4])
def test_one_wrist_is_a_ticket_and_all_wrists_are_a_changed_world(world: tuple[Monitor, Tables], seed: int) -> None:
    fleet = _fleet(world, seed)
    for _ in range(5):
        for watch in fleet:
            watch.live()

    fleet[3].change_wrist()
    for watch in fleet:
        watch.live()
    verdict = _decide(fleet)
    assert verdict.local_flags == ("watch-3",)
    assert not verdict.world_changed
    assert fleet[3].status is Status.ALARM

    others = [watch for watch in fleet if watch.name != "watch-3"]
    for arrived, watch in enumerate(others, start=2):
        watch.change_wrist()
        watch.live()
        verdict = _decide(fleet)
        # Four of eight are four tickets; the fifth makes it the world.
        assert verdict.world_changed == (arrived > 4)
        if arrived <= 4:
            assert len(verdict.local_flags) == arrived

    for watch in fleet:
        watch.live()
    verdict = _decide(fleet)
    assert verdict.world_changed
    assert verdict.severity_lower > 0.2
    assert {watch.status for watch in fleet} == {Status.ALARM}


def test_unseen_wearers_are_unlike_the_training_data_and_the_device_says_so(world: tuple[Monitor, Tables]) -> None:
    for watch in _fleet(world, 5)[:3]:
        assert watch.commissioned is not None
        assert len(watch.commissioned.unlike_training) > 5
