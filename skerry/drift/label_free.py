"""Accuracy without labels, from calibrated confidence: an estimate that holds only while P(y|x) has not changed.

It was within .005 under covariate shift, and said .985 where the truth was .529 under concept drift; so it is shown,
never gated on, and withheld while the inputs are in alarm.
"""

from skerry.drift.monitor import CONFIDENCE, Counts, Monitor


def expected_accuracy(monitor: Monitor, counts: Counts, *, alarmed: bool) -> float | None:
    """Estimate the share of correct predictions among the rows of `counts`, between 0 and 1.

    None while drift is in alarm, without a calibration table, or when fewer than nine rows in ten had a confidence
    within the range of the table.
    """
    if alarmed or not monitor.calibration:
        return None
    bins = counts[monitor.position(CONFIDENCE)]
    within = bins[1:-2]
    rows = sum(within)
    if rows == 0 or rows < 0.9 * sum(bins):
        return None
    # Laplace's rule: an empty bin of the table says one half, and says it with little weight.
    rates = [(correct + 1) / (count + 2) for count, correct in monitor.calibration]
    return sum(count * rate for count, rate in zip(within, rates, strict=True)) / rows
