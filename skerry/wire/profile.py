"""The schema of a profile: what a class of device is, and what a build must keep to run there.

Fields are only ever added, each with a default, so that an older reader takes a newer profile and the other way round.
What is said here is checked in three places: a value on its own when it is built (`__post_init__`), values against
each other when a file is loaded (`check_profile`), and a build against the budgets by the gate.
"""

import re
from dataclasses import dataclass, field

RUNTIMES = ("onnxruntime", "litert", "tflite-micro", "tflite-runtime")
PRECISIONS = {
    "onnxruntime": ("float32", "fp16", "int8-qdq", "int8-qoperator", "int8-dynamic", "pruned-50"),
    "litert": ("float32", "int8", "int8-hybrid", "int8-dynamic"),
    "tflite-micro": ("float32", "int8", "int8-hybrid"),
    "tflite-runtime": ("float32", "int8", "int8-hybrid", "int8-dynamic"),
}
"""The precisions that each runtime can be given; two are joined by a plus sign, such as `pruned-50+int8-qdq`."""
PROVIDERS = ("cpu", "xnnpack", "openvino", "cuda", "tensorrt", "edgetpu", "cmsis-nn", "esp-nn", "ethos-u")
PREFERENCES = ("order", "smaller", "faster")
TRANSPORTS = ("mqtt", "https")
EMULATORS = ("arm64", "cortex-m")
_CLAUSE = re.compile(r"(>=|<=|==|!=|>|<)\s*(\d+(?:\.\d+)*)")


@dataclass(frozen=True, slots=True)
class Budgets:
    """What a build may cost and must reach on the profile; sizes in bytes, latency in milliseconds.

    `ram_bytes` is for the model alone: the arena on TFLite Micro, elsewhere what a process grows by over the bare
    runtime. `agreement` is the least share of held-out samples on which the build gives the float model's label;
    `accuracy_drop` the most accuracy it may lose against the float model, `slice_drop` the most that any slice of
    `slice_rows` samples or more may lose. `output_error` is the most error of a model that is no classifier, as a
    share of the spread of the float outputs. `compression` is how many times smaller than the float build a quantised
    or pruned one must be: below it, the quantiser did nothing.
    """

    size_bytes: int
    ram_bytes: int
    latency_ms: float
    agreement: float = 0.975
    accuracy_drop: float = 0.02
    slice_drop: float = 0.05
    slice_rows: int = 20
    output_error: float = 0.1
    compression: float = 1.02

    def __post_init__(self) -> None:
        if not 0 < self.agreement <= 1:
            raise ValueError(f"agreement: expected a share above 0 and at most 1, got {self.agreement}")
        for name in ("accuracy_drop", "slice_drop", "output_error"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share from 0 to 1, got {getattr(self, name)}")
        if self.compression < 1:
            raise ValueError(f"compression: expected a ratio of 1 or more, got {self.compression}")
        _above_zero(self, "size_bytes", "ram_bytes", "latency_ms", "slice_rows")


@dataclass(frozen=True, slots=True)
class Hardware:
    """What the device has: processor core, how many of them, memory and storage in bytes."""

    cpu: str
    ram_bytes: int
    flash_bytes: int
    cores: int = 1

    def __post_init__(self) -> None:
        _above_zero(self, "ram_bytes", "flash_bytes", "cores")


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """What the device's way to the broker carries: the longest chunk of an artifact, and the longest message."""

    chunk_bytes: int = 65_536
    message_bytes: int = 131_072

    def __post_init__(self) -> None:
        if not 1024 <= self.chunk_bytes <= self.message_bytes:
            got = f"{self.chunk_bytes} and {self.message_bytes}"
            raise ValueError(f"chunk_bytes: expected 1024 or more, and at most message_bytes, got {got}")


@dataclass(frozen=True, slots=True)
class Profile:
    """One class of device. `architecture` is what `platform.machine()` says there (`none` for a bare MCU).

    `features` are what its processor can (`vnni`, `dotprod`, `fp16`); `providers` the execution providers that a
    device of this class may use, best first; `operators` the only operators that its runtime knows, all when empty;
    `opset` the newest ONNX opset. `precision` lists what may run there, and `prefer` says which of those that pass
    is best: the first listed (`order`), the smallest or the fastest. `emulator` is the one that stands in for the
    device when its architecture is not that of the compiling machine. `environment` says what the runtime needs of
    its surroundings, such as an older Python. `v` is the version of this schema.
    """

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
    features: tuple[str, ...] = ()
    providers: tuple[str, ...] = ("cpu",)
    operators: tuple[str, ...] = ()
    prefer: str = "order"
    emulator: str = ""
    hardware: Hardware | None = None
    transport: TransportLimits = field(default_factory=TransportLimits)
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise ValueError(f"runtime: expected one of {', '.join(RUNTIMES)}, got {self.runtime!r}")
        if self.prefer not in PREFERENCES:
            raise ValueError(f"prefer: expected one of {', '.join(PREFERENCES)}, got {self.prefer!r}")


def check_profile(profile: Profile) -> None:
    """Check the values of a profile against each other; the field comes first in the message.

    Not done when a profile is built: an older reader must take the words that a newer writer knows.

    Raises:
        ValueError: says the field, what was expected, and what it is.
    """
    if profile.v != 1:
        raise ValueError(f"v: expected version 1 of the schema, got {profile.v}: install a newer skerry")
    _known("transports", profile.transports, TRANSPORTS)
    _known("providers", profile.providers, PROVIDERS)
    if profile.emulator:
        _known("emulator", (profile.emulator,), EMULATORS)
    if not profile.precision or len(set(profile.precision)) != len(profile.precision):
        raise ValueError(f"precision: expected one or more, each once, got {list(profile.precision)}")
    for each in profile.precision:
        _known("precision", each.split("+"), PRECISIONS[profile.runtime])
    if not 7 <= profile.opset <= 21:
        raise ValueError(f"opset: expected 7 to 21, got {profile.opset}")
    clauses(profile.runtime_version)
    if profile.hardware:
        for budget, what in (("size_bytes", "flash_bytes"), ("ram_bytes", "ram_bytes")):
            asked, there = getattr(profile.budgets, budget), getattr(profile.hardware, what)
            if asked > there:
                raise ValueError(f"budgets.{budget}: expected at most the device's {what} of {there}, got {asked}")


def accepts_version(wanted: str, version: str) -> bool:
    """Say whether a version lies in a range such as `>=2.1,<2.4`; numbers alone count, `any` takes all.

    `==2.14` takes every version that begins so. A version that begins with no number lies in no range but `any`.
    """
    found = re.match(r"\d+(?:\.\d+)*", version)
    if wanted == "any":
        return True
    return found is not None and all(_holds(operator, _numbers(found[0]), bound) for operator, bound in clauses(wanted))


def clauses(wanted: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the comparisons of a version range; raises `ValueError` when it is not one."""
    if wanted == "any":
        return ()
    matched = [_CLAUSE.fullmatch(part.strip()) for part in wanted.split(",")]
    if not all(matched):
        raise ValueError(f"runtime_version: expected 'any' or a range such as '>=2.1,<2.4', got {wanted!r}")
    return tuple((match[1], _numbers(match[2])) for match in matched if match)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _holds(operator: str, version: tuple[int, ...], bound: tuple[int, ...]) -> bool:
    width = max(len(version), len(bound))
    got, limit = (each + (0,) * (width - len(each)) for each in (version, bound))
    begins = got[: len(bound)] == bound
    return {
        ">=": got >= limit,
        "<=": got <= limit,
        ">": got > limit,
        "<": got < limit,
        "==": begins,
        "!=": not begins,
    }[operator]


def _above_zero(part: Budgets | Hardware, *names: str) -> None:
    for name in names:
        if getattr(part, name) <= 0:
            raise ValueError(f"{name}: expected a number above 0, got {getattr(part, name)}")


def _known(name: str, got: "tuple[str, ...] | list[str]", expected: tuple[str, ...]) -> None:
    unknown = [each for each in got if each not in expected]
    if unknown:
        raise ValueError(f"{name}: expected one of {', '.join(expected)}, got {unknown[0]!r}")
