"""What the server keeps of each device's windows under one artifact: the first ones, the last ones, and what is shared.

Artifacts of one model version for unlike runtimes may count a scalar into unlike bins (a quantised confidence has fewer
distinct values), so the fleet is judged on the scalars that all of its devices count into equally many bins.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from skerry import drift

KEPT_WINDOWS = 16

Version = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Artifact:
    """What the manifest of a window stands for: a model version, and the bins that are counted into."""

    version: Version
    monitor: drift.Monitor
    digest: str


@dataclass(frozen=True, slots=True)
class Counted:
    """One window as it was merged."""

    number: int
    end: int
    tables: drift.Counts


@dataclass(slots=True)
class Track:
    """One device under one artifact.

    Windows are added in the order of their numbers: the first ones commission the device, later ones are tested.
    `others_at_flag` says how many windows the other devices had sent when this one's local flag came up.
    """

    device: str
    artifact: Artifact
    first: list[drift.Counts] = field(default_factory=list)
    recent: deque[drift.Counts] = field(default_factory=lambda: deque(maxlen=KEPT_WINDOWS))
    commissioned: drift.Commissioned | None = None
    windows: int = 0
    number: int = -1
    event_time: float = 0.0
    others_at_flag: dict[str, int] | None = None

    def add(self, window: Counted) -> None:
        """Take in one window; raises `drift.Rejected` when its counts are another monitor's."""
        self.artifact.monitor.check(window.tables)
        self.windows, self.number, self.event_time = self.windows + 1, window.number, float(window.end)
        if self.commissioned is not None:
            self.recent.append(window.tables)
            return
        self.first.append(window.tables)
        self.commissioned = drift.commission(self.artifact.monitor, self.first)

    @property
    def unlike_training(self) -> tuple[str, ...]:
        """Scalars that never looked like the training data on this device."""
        return tuple(one.name for one in self.commissioned.unlike_training) if self.commissioned else ()


@dataclass(frozen=True, slots=True)
class Shared:
    """The scalars that some monitors have in common, by name, in order; the last `pairs` of them are pairs."""

    names: tuple[str, ...]
    pairs: int
    horizon: int

    def of(self, track: Track) -> drift.DeviceWindows | None:
        """Return what a device has to say about them; None before it is commissioned and has sent a window more."""
        if track.commissioned is None or not track.recent:
            return None
        places = [track.artifact.monitor.names.index(name) for name in self.names]
        return drift.DeviceWindows(
            device=track.device,
            baseline=_chosen(track.commissioned.baseline, places),
            windows=tuple(_chosen(window, places) for window in track.recent),
            design_effects=tuple(track.commissioned.design_effects[place] for place in places),
            seen=track.windows - len(track.first),
        )


def shared(monitors: Sequence[drift.Monitor]) -> Shared:
    """Return what the monitors have in common: names that all count into equally many bins."""
    first, *others = monitors
    layouts = [dict(zip(other.names, other.shape, strict=True)) for other in others]
    names = [
        name
        for name, bins in zip(first.names, first.shape, strict=True)
        if all(layout.get(name) == bins for layout in layouts)
    ]
    pairs = {pair.name for pair in first.pairs}
    return Shared(
        names=tuple(names),
        pairs=sum(name in pairs for name in names),
        horizon=max(monitor.horizon_windows for monitor in monitors),
    )


def worst_severity(windows: drift.DeviceWindows, *, last: int = 8) -> float:
    """Return PSI_adj of the most changed scalar over the last windows, against the device's own baseline."""
    total = drift.merge(windows.windows[-last:])
    scalars = zip(windows.baseline, total, windows.design_effects, strict=True)
    return max(
        drift.severity(before, now, reference_effect=effect, counts_effect=effect).psi_adj
        for before, now, effect in scalars
    )


def _chosen(counts: drift.Counts, places: Sequence[int]) -> drift.Counts:
    return tuple(counts[place] for place in places)
