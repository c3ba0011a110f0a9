"""The trial: local evidence that a new artifact may be trusted; no connection is needed to pass."""

from dataclasses import dataclass, replace

from agent.observe import Latencies


@dataclass(frozen=True, slots=True)
class Terms:
    """What a trial must show: so many inferences, at a median latency within the manifest's budget.

    Without any input to infer on, the golden replay alone is the evidence, once the grace is over.
    """

    inferences: int
    latency_budget_ms: float
    grace_s: float


@dataclass(frozen=True, slots=True)
class Decision:
    """How a trial ended."""

    passed: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial under way; `latencies` counts in place, everything else is replaced."""

    terms: Terms
    latencies: Latencies
    began: float
    done: int = 0

    def after(self, latency_us: float) -> "Trial":
        """Return the trial after one more inference with finite outputs."""
        self.latencies.add(latency_us)
        return replace(self, done=self.done + 1)

    def decide(self, now: float) -> Decision | None:
        """Return the decision, or None while the evidence is incomplete; `now` and `began` are of one clock."""
        if self.done >= self.terms.inferences:
            return self._judge_latency()
        if now - self.began >= self.terms.grace_s:
            if self.done:
                return self._judge_latency()
            return Decision(passed=True, reason="no inputs within the grace: committed on the golden replay alone")
        return None

    def _judge_latency(self) -> Decision:
        median_ms = self.latencies.percentile(0.5) / 1000
        if median_ms > self.terms.latency_budget_ms:
            budget = f"{self.terms.latency_budget_ms:g} ms"
            return Decision(passed=False, reason=f"expected a median latency within {budget}, got {median_ms:.2f} ms")
        return Decision(passed=True)
