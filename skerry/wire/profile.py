"""The schema of a profile: what a class of device is, and what a build must keep to run there."""

from dataclasses import dataclass, field

RUNTIMES = ("onnxruntime", "litert", "tflite-micro")


@dataclass(frozen=True, slots=True)
class Budgets:
    """What a build may cost and must reach on the profile; sizes in bytes, latency in milliseconds.

    `agreement` is the least share of held-out samples on which the build gives the float model's label;
    `accuracy_drop` the most accuracy it may lose against the float model.
    """

    size_bytes: int
    ram_bytes: int
    latency_ms: float
    agreement: float = 0.975
    accuracy_drop: float = 0.02

    def __post_init__(self) -> None:
        if not 0 < self.agreement <= 1:
            raise ValueError(f"agreement: expected a share above 0 and at most 1, got {self.agreement}")
        if min(self.size_bytes, self.ram_bytes) <= 0 or self.latency_ms <= 0:
            raise ValueError("budgets: expected positive sizes and latency")


@dataclass(frozen=True, slots=True)
class Profile:
    """One class of device. `architecture` is what `platform.machine()` says there (`none` for a bare MCU)."""

    name: str
    description: str
    architecture: str
    runtime: str
    runtime_version: str
    precision: tuple[str, ...]
    budgets: Budgets
    agent: bool = True
    opset: int = 17
    transports: tuple[str, ...] = ("mqtt",)
    notes: dict[str, str] = field(default_factory=dict)
    v: int = 1

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise ValueError(f"runtime: expected one of {', '.join(RUNTIMES)}, got {self.runtime!r}")
