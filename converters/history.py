"""What the precisions of a model came to on each profile, remembered so that the next search begins with the best."""

import json

from converters.cache import Cache
from converters.gate import PASSED, GateReport
from converters.search import Earlier


def record(cache: Cache | None, source: str, report: GateReport) -> None:
    """Remember a report's outcomes for the source of that digest."""
    if cache is None:
        return
    outcomes = [
        {
            "precision": each.precision,
            "passed": each.outcome == PASSED,
            "agreement": each.measurement.agreement,
            "ratio": each.measurement.latency_ratio,
        }
        for each in report.candidates
        if each.measurement is not None
    ]
    cache.put(_key(source, report.profile), json.dumps(outcomes).encode())


def recall(cache: Cache | None, source: str, *, but: str) -> tuple[Earlier, ...]:
    """Return what is remembered of other profiles than `but`; what cannot be read is left out."""
    if cache is None:
        return ()
    found: list[Earlier] = []
    for key in cache.keys(_key(source, "")):
        body = cache.get(key) if key != _key(source, but) else None
        try:
            outcomes = json.loads(body or b"[]")
            found += [
                Earlier(
                    precision=str(each["precision"]),
                    passed=bool(each["passed"]),
                    agreement=float(each["agreement"] or 0.0),
                    ratio=float(each["ratio"] or 1.0),
                )
                for each in outcomes
            ]
        except (ValueError, KeyError, TypeError):
            continue
    return tuple(found)


def _key(source: str, profile: str) -> str:
    return f"history-{source[:32]}-{profile}"
