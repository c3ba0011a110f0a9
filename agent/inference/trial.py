"""The trial: local evidence that a new artifact may be trusted; no connection is needed to pass."""

from dataclasses import dataclass, replace

from agent.inference.observe import Latencies


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


def over_memory(growth_bytes: int, budget_bytes: int) -> str:
    """Return by how much a model takes more memory than its budget, in words; empty when it does not."""
    if not budget_bytes or growth_bytes <= budget_bytes:
        return ""
    return f"expected a model that takes at most {budget_bytes} bytes of memory, got {growth_bytes}"
