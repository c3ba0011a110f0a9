"""The nouns of the gate: what was measured, against what, what each check said, and the report as JSON and as a table.

Importing this costs nothing: no NumPy, no runtime. The rules are in `converters.gate`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from skerry.wire.profile import Profile

PASSED, REFUSED, NOT_RUN, PROXY, SLOWER = "passed", "refused", "not run", "proxy", "slower"
FLOAT = "float32"
FIELD, OWN = "the labelled windows from the field", "the model's own held-out samples"
"""What a version is held against its predecessor on."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an emulator said of one candidate: `outcome` is passed, refused or "not run", with the reason of the latter.

    `rows` golden rows were compared, and `max_abs_diff` is the largest difference of any output. Of integer builds
    `max_steps` is the same in steps of the integers behind an output, and of classifiers `label_flips` the rows whose
    label is another one.
    """

    emulator: str
    outcome: str
    reason: str = ""
    rows: int = 0
    max_abs_diff: float | None = None
    max_steps: float | None = None
    label_flips: int | None = None


@dataclass(frozen=True, slots=True)
class Sticky:
    """What keeping the grids of the version before came to: `kept` of its `scales` stayed what they were.

    `before` is the SHA-256 of that version's model file. Figures named `free_` are of the same precision with grids of
    its own; `taken` says whether the form with the kept grids is the one that these figures stand beside, or was
    refused. The lengths of deltas from `before` are of what stays in a release. What was not measured is None.
    """

    before: str
    kept: int
    scales: int
    taken: bool
    accuracy: float | None = None
    free_accuracy: float | None = None
    agreement: float | None = None
    free_agreement: float | None = None
    output_error: float | None = None
    free_output_error: float | None = None
    delta_bytes: int | None = None
    free_delta_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one candidate did on the runtime of the profile; what was not measured is None, or empty.

    `ram_bytes` is the arena on TFLite Micro, else what the process grew by over the bare runtime; `resident_bytes` is
    the whole process. `agreement` is the share of held-out rows with the float model's label, `probability_error` the
    largest difference of a probability; both are of classifiers. `output_error` is the worst of `output_errors`: for
    each output, the root of the mean squared difference from the float model as a share of the float output's spread
    (1 - R2 is its square). `architecture` and `features` are those of the machine that measured. `latency_ratio` is
    the median latency over that of the float build in the same process, `latency_ratio_low` to `latency_ratio_high`
    its 95 % interval. `deterministic`: two runs gave equal bytes. `deflated_bytes`: the file as zlib packs it.
    `sticky`: what keeping the grids of the version before came to, where there is one.
    """

    size_bytes: int
    rows: int
    accuracy: float | None
    accuracy_by_group: dict[str, float]
    agreement: float | None
    probability_error: float | None
    ram_bytes: int
    latency_p50_us: int | None
    latency_p99_us: int | None
    architecture: str
    field_accuracy: float | None = None
    rows_by_group: dict[str, int] = field(default_factory=dict)
    output_error: float | None = None
    output_errors: dict[str, float] = field(default_factory=dict)
    deterministic: bool | None = None
    latency_ratio: float | None = None
    latency_ratio_low: float | None = None
    latency_ratio_high: float | None = None
    resident_bytes: int = 0
    deflated_bytes: int = 0
    features: tuple[str, ...] | None = None
    operators: tuple[str, ...] = ()
    opset: int = 0
    evidence: tuple[Evidence, ...] = ()
    sticky: Sticky | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """What candidates are held against: the float model on the same rows, and the version that the field runs.

    `float_size_bytes` is the float32 file of the same format, `float_deflated_bytes` the same as zlib packs it, 0 when
    unknown. Accuracies are None without true labels, field accuracies without field windows. `field_of` says what those
    are: windows from the field, or samples that came with the model. `ungated` says why a version that follows another
    was not held against it.
    """

    accuracy: float | None
    float_size_bytes: int
    field_rows: int = 0
    field_accuracy: float | None = None
    previous_field_accuracy: float | None = None
    accuracy_by_group: dict[str, float] = field(default_factory=dict)
    float_deflated_bytes: int = 0
    field_of: str = FIELD
    ungated: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One condition: `outcome` is passed, refused, proxy, slower or "not run"; `expected` and `got` are texts."""

    name: str
    outcome: str
    expected: str
    got: str


@dataclass(frozen=True, slots=True)
class CandidateReport:
    """One candidate: its precision, its outcome, what was measured (None when it did not run) and every check.

    `lost` says why a candidate that passed was not chosen.
    """

    precision: str
    outcome: str
    measurement: Measurement | None
    checks: tuple[Check, ...]
    lost: str = ""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the candidate was refused, a line for each check that it failed."""
        return tuple(f"{c.name}: expected {c.expected}, got {c.got}" for c in self.checks if c.outcome == REFUSED)

    def to_json(self) -> dict[str, Any]:
        """Return the candidate as a JSON tree."""
        figures = {} if self.measurement is None else asdict(self.measurement)
        return figures | {
            "name": self.precision,
            "outcome": self.outcome,
            "lost": self.lost,
            "reasons": [*self.reasons, *([self.lost] if self.lost else [])],
            "checks": [asdict(check) for check in self.checks],
        }


@dataclass(frozen=True, slots=True)
class GateReport:
    """The verdict for one profile: passed, refused or "not run"; `chosen` is the precision that won, or empty.

    `kept` are the precisions that stay in the release, the chosen one first: two where latency is only a proxy, and
    then the first canary devices measure both. `forced` names the budget (`size`, `ram`) that forced a build slower
    than the float one. `rules` is the profile as it was judged by, so that the choice can be made again.
    """

    profile: str
    runtime: str
    runtime_version: str
    verdict: str
    reason: str
    chosen: str
    reference: Reference | None
    candidates: tuple[CandidateReport, ...]
    kept: tuple[str, ...] = ()
    forced: str = ""
    field_margin: float = 0.0
    rules: Profile | None = None

    @property
    def winner(self) -> Measurement | None:
        """The measurement of the chosen candidate."""
        return next((each.measurement for each in self.candidates if each.precision == self.chosen), None)

    @property
    def slower(self) -> bool:
        """Whether the chosen build is surely slower than the float build, measured on the profile's architecture."""
        chosen = next((each for each in self.candidates if each.precision == self.chosen), None)
        return chosen is not None and any(check.outcome == SLOWER for check in chosen.checks)

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON tree; a candidate's figures stand beside its name, outcome and reasons."""
        return {
            "profile": self.profile,
            "runtime": self.runtime,
            "runtime_version": self.runtime_version,
            "verdict": self.verdict,
            "reason": self.reason,
            "chosen": self.chosen,
            "kept": list(self.kept),
            "forced": self.forced,
            "field_margin": self.field_margin,
            "reference": None if self.reference is None else asdict(self.reference),
            "rules": None if self.rules is None else asdict(self.rules),
            "candidates": [each.to_json() for each in self.candidates],
        }


COLUMNS = ("candidate", "size", "ram", "accuracy", "agreement", "error", "p50 us", "p99 us", "of float", "")


def table(report: GateReport) -> str:
    """Return the report for people: a line with the verdict, candidates by budget, and why each lost."""
    head = f"{report.profile} ({report.runtime} {report.runtime_version}): {report.verdict}"
    head += f", {report.chosen}" if report.chosen else f": {report.reason}"
    if report.forced:
        head += f", forced by {report.forced}: slower than {FLOAT}, which is over that budget"
    lines = [head]
    if report.candidates:
        lines += [f"  {line}" for line in _aligned([COLUMNS, *(_row(each, report) for each in report.candidates)])]
        lines.append("  ! refused or slower by this, ~ a proxy: measured on another machine than the profile's")
    if len(report.kept) > 1:
        lines.append(f"  kept: {' and '.join(report.kept)}: latency is a proxy here, the first devices measure both")
    for each in report.candidates:
        lines += [f"  {each.precision}: {why}" for why in (*each.reasons, *([each.lost] if each.lost else []))]
    for each in report.candidates:
        if each.measurement is not None and each.measurement.sticky is not None:
            lines.append(f"  {each.precision}: {sticky_line(asdict(each.measurement.sticky))}")
    for each in report.candidates:
        missing = [
            c for c in each.checks if c.outcome == NOT_RUN and (each.precision in report.kept or not report.kept)
        ]
        lines += [f"  {each.precision}: {c.name}: not run: {c.got}" for c in missing]
    return "\n".join(lines)


def sticky_line(sticky: Mapping[str, Any] | None) -> str:
    """Return in one line what keeping grids came to, from the JSON tree of a `Sticky`; the free form in brackets."""
    if not sticky:
        return ""
    figures = (("accuracy", _number), ("agreement", _number), ("output_error", _number), ("delta_bytes", _bytes))
    words = [f"scales of the version before {'kept' if sticky.get('taken') else 'refused'}: "]
    words[0] += f"{sticky.get('kept')} of {sticky.get('scales')}"
    for name, written in figures:
        one, other = (written(sticky.get(each)) for each in (name, f"free_{name}"))
        if (one, other) != ("-", "-"):
            words.append(f"{name.split('_')[0 if name == 'delta_bytes' else -1]} {one} (free {other})")
    return ", ".join(words)


def _bytes(value: int | None) -> str:
    return "-" if value is None else f"{value} bytes"


def _row(candidate: CandidateReport, report: GateReport) -> tuple[str, ...]:
    outcome = "chosen" if candidate.precision == report.chosen else candidate.outcome
    if candidate.precision in report.kept[1:]:
        outcome = "kept"
    found = candidate.measurement
    if found is None:
        return (candidate.precision, *("-" for _ in COLUMNS[2:]), outcome)
    said = {check.name: {REFUSED: "!", PROXY: "~", SLOWER: "!"}.get(check.outcome, "") for check in candidate.checks}

    def marked(text: str, *checks: str) -> str:
        return text + "".join(sorted({said.get(check, "") for check in checks}))

    ratio = "-" if found.latency_ratio is None else f"{found.latency_ratio:.2f}"
    return (
        candidate.precision,
        marked(f"{found.size_bytes}", "size", "compression"),
        marked(f"{found.ram_bytes}", "memory"),
        marked(_number(found.accuracy), "accuracy", "slices", "field"),
        marked(_number(found.agreement), "agreement"),
        marked(_number(found.output_error), "outputs", "determinism"),
        _count(found.latency_p50_us),
        marked(_count(found.latency_p99_us), "latency"),
        marked(ratio, "speed"),
        outcome,
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value}"


def _aligned(rows: "list[tuple[str, ...]]") -> list[str]:
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def figures_of(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a candidate's JSON tree, without the gate's words about them."""
    return {name: tree[name] for name in Measurement.__dataclass_fields__ if name in tree}
