"""The trial: local evidence that a new artifact may be trusted; no connection is needed to pass."""

from dataclasses import dataclass, replace

from agent.inference.observe import Latencies

# without an end for so long, what is on trial is not what ends this device
WELL_S = 60.0
# how often a trial that goes on is noted; a restart loses at most so much of its grace
NOTED_S = 900.0
FIRST_GRACE_S = 60


@dataclass(frozen=True, slots=True)
class Terms:
    """What a trial must show: so many inferences, with latency and memory within the manifest's budgets.

    Latency is the median; memory is by how much the worker grew at most over the bare runtime, as the gate measures it,
    and 0 stands for no budget. Without any input to infer on, the golden replay alone is the evidence, once the grace
    is over.
    """

    inferences: int
    latency_budget_ms: float
    grace_s: float
    memory_budget_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """How a trial ended."""

    passed: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial under way; `latencies` counts in place, everything else is replaced.

    `batched` says that several rows were asked for at once: what memory that takes is the caller's affair, and the
    budget, which the gate measured row by row, says nothing about it.
    """

    terms: Terms
    latencies: Latencies
    began: float
    done: int = 0
    batched: bool = False

    def after(self, *latencies_us: float) -> "Trial":
        """Return the trial after one more request with finite outputs, by the latency of each of its rows."""
        for latency_us in latencies_us:
            self.latencies.add(latency_us)
        return replace(self, done=self.done + len(latencies_us), batched=self.batched or len(latencies_us) > 1)

    def decide(self, now: float, *, growth_bytes: int = 0) -> Decision | None:
        """Return the decision, or None while the evidence is incomplete; `now` and `began` are of one clock."""
        if self.done >= self.terms.inferences:
            return self._judge(growth_bytes)
        if now - self.began >= self.terms.grace_s:
            if self.done:
                return self._judge(growth_bytes)
            return Decision(passed=True, reason="no inputs within the grace: committed on the golden replay alone")
        return None

    def _judge(self, growth_bytes: int) -> Decision:
        median_ms = self.latencies.percentile(0.5) / 1000
        if median_ms > self.terms.latency_budget_ms:
            budget = f"{self.terms.latency_budget_ms:g} ms"
            return Decision(passed=False, reason=f"expected a median latency within {budget}, got {median_ms:.2f} ms")
        problem = "" if self.batched else over_memory(growth_bytes, self.terms.memory_budget_bytes)
        return Decision(passed=not problem, reason=problem)


def grace_left(granted_s: int, *, lived_s: int, has_good: bool) -> int:
    """Return for how long a trial waits for inputs, in seconds, when it has run for `lived_s` before.

    While nothing is good it is a minute: there is nothing to go back to, and programs on the device
    (`skerry.Model`) wait for what is committed.
    """
    left_s = max(0, granted_s - lived_s)
    return left_s if has_good else min(left_s, FIRST_GRACE_S)


def over_memory(growth_bytes: int, budget_bytes: int) -> str:
    """Return by how much a model takes more memory than its budget, in words; empty when it does not."""
    if not budget_bytes or growth_bytes <= budget_bytes:
        return ""
    return f"expected a model that takes at most {budget_bytes} bytes of memory, got {growth_bytes}"


class Life:
    """How long what is on trial has run without ending, said after a minute and then every quarter of an hour."""

    def __init__(self) -> None:
        self._manifest = ""
        self._faulty = ""
        self._since = 0.0
        self._due_s = WELL_S

    def turn(self, manifest: str, now: float) -> int:
        """Return how many seconds are to be noted of the trial of `manifest` (empty for none): 0 until it is time."""
        if manifest != self._manifest:
            self._manifest, self._since, self._due_s = manifest, now, WELL_S
        if manifest in ("", self._faulty) or now - self._since < self._due_s:
            return 0
        lived_s = int(now - self._since)
        self._since, self._due_s = self._since + lived_s, NOTED_S
        return lived_s

    def ended(self, manifest: str) -> None:
        """Note that it ended by itself: what does that is not said to live, however long it takes each time."""
        self._faulty = manifest
