"""The binary body of a window."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.errors import Rejected
from skerry.wire.report import WindowReport, decode_report, encode_report

counts = st.integers(min_value=0, max_value=1 << 40)
reports = st.builds(
    WindowReport,
    manifest=st.binary(min_size=8, max_size=8).map(bytes.hex),
    monitor=st.binary(min_size=8, max_size=8).map(bytes.hex),
    window=counts,
    start=counts,
    end=counts,
    rows=counts,
    labelled=counts,
    correct=counts,
    latency_p50_us=counts,
    latency_p99_us=counts,
    tables=st.lists(st.lists(counts, max_size=16).map(tuple), max_size=8).map(tuple),
)


@given(reports)
def test_a_report_survives_the_round_trip(report: WindowReport) -> None:
    assert decode_report(encode_report(report)) == report


@given(reports, st.data())
def test_a_shortened_report_is_refused(report: WindowReport, data: st.DataObject) -> None:
    body = encode_report(report)
    length = data.draw(st.integers(min_value=0, max_value=len(body) - 1))
    with pytest.raises(Rejected):
        decode_report(body[:length])


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused(body: bytes) -> None:
    try:
        report = decode_report(b"\x01" + body)
    except Rejected:
        return
    assert decode_report(encode_report(report)) == report


def test_sixteen_features_prediction_and_confidence_of_a_thousand_rows_stay_under_300_bytes() -> None:
    table = (0, *([100] * 10), 0, 0)
    report = WindowReport(
        manifest="ab" * 8, monitor="cd" * 8, window=30, start=1_790_000_000, end=1_790_086_400, rows=1000, labelled=0,
        correct=0, latency_p50_us=300, latency_p99_us=900, tables=(table,) * 16 + ((300, 300, 400, 0, 0), table),
    )  # fmt: skip
    assert len(encode_report(report)) <= 300
