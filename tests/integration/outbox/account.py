"""What went into an outbox and what came of it: every row once, or in a gap record."""

from collections import Counter

from sqlalchemy import func, select

from control_plane.plane import Plane
from control_plane.schema.telemetry import Gap, Sample, Window
from skerry.wire.report import WindowReport, encode_report
from skerry.wire.sample import Sample as Said
from skerry.wire.sample import encode_sample


def window(number: int, *, bins: int = 20) -> bytes:
    """Return the body of a window with a number of its own, of about `bins` bytes."""
    empty = tuple((0,) * 4000 for _ in range(bins // 4000)) or ((0,) * bins,)
    report = WindowReport(
        manifest="ab" * 8,
        monitor="cd" * 8,
        window=number,
        start=number * 3600,
        end=number * 3600 + 3600,
        rows=10,
        labelled=0,
        correct=0,
        latency_p50_us=100,
        latency_p99_us=200,
        tables=((10, 0), *empty),
    )
    return encode_report(report)


def sample(number: int, *, size: int = 20) -> bytes:
    """Return the body of a sample of a window with that number."""
    return encode_sample(Said("ab" * 8, number, inputs={"x": b"\0" * size}))


def heard(plane: Plane) -> Counter[int]:
    """Return how often each number was merged, as a window or a sample."""
    with plane.readers() as session:
        return Counter([*session.scalars(select(Window.number)), *session.scalars(select(Sample.window))])


def given_up(plane: Plane) -> int:
    """Return how many rows are in gap records."""
    with plane.readers() as session:
        return session.scalar(select(func.sum(Gap.count))) or 0
