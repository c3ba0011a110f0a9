"""The first load of an unknown model: in a worker with limits, which replays the golden vectors and is ended."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from agent.inference.frames import Request, Verb
from agent.inference.trial import over_memory
from agent.inference.workers import Crashed, Given, Hung, Worker, check_answer, start_worker
from skerry.errors import Rejected
from skerry.runtimes.confined import Limits
from skerry.runtimes.rows import timed
from skerry.wire.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Measured:
    """What the replay cost: microseconds of an inference at the median, and the most memory of the whole worker."""

    latency_p50_us: int
    peak_rss_bytes: int


def probe_model(given: Given, manifest: Manifest, *, start: Callable[[Given], Worker] = start_worker) -> Measured:
    """Load a model, replay its golden vectors, and return what that cost.

    Raises:
        Rejected: the model is at fault: refused, crashed, hung, not within its tolerances or over its memory budget.
        Broken: this machine is.
    """
    limits = Limits()
    try:
        worker = start(replace(given, limits=limits, recording=None))
        try:
            answer = worker.ask(Request(Verb.REPLAY), patience_s=limits.wall_s)
            check_answer(answer)
            problem = over_memory(worker.growth_bytes, manifest.memory_budget_bytes)
            if problem:
                raise Rejected(problem)
            latencies = [round(row.latency_us) for row in answer.rows]
            return Measured(latency_p50_us=timed(latencies)[0], peak_rss_bytes=worker.peak_bytes)
        finally:
            worker.close()
    except (Rejected, Crashed, Hung) as error:
        # nothing but this file was in that process
        raise Rejected(f"{manifest.model_file}: {error}") from error
