"""Where inputs come from: recordings, tables, lines of JSON, and what feeds a device that has no program of its own."""

import io
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.config import Config
from agent.inference.feeds import MAX_LINE_BYTES, MAX_WAITING, Lines, Stdin, Topic, open_source
from agent.inference.feeds import Rows as RecordedRows
from agent.inference.source import ReplaySource, Sample, read_line, read_recording, shuffled
from agent.inference.workers import Recording
from skerry.errors import Rejected
from skerry.runtimes.arrays import pack
from skerry.wire.manifest import TensorSpec

LABELS = ("rest", "lift")


def write_recording(path: Path, rows: int, value: float = 0.0, **more: Any) -> Path:
    """Write a recording whose rows can be told apart."""
    values = np.arange(rows, dtype=np.float32)[:, None, None] + np.full((1, 4, 2), value, np.float32)
    path.write_bytes(pack({"X": values, **more}))
    return path


def test_a_recording_is_replayed_in_an_order_that_only_the_seed_decides(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "r.npz", 6)
    sources = [ReplaySource(path, seed=seed) for seed in (1, 1, 2)]
    orders = [[float(source.row(number).values["X"][0, 0, 0]) for number in range(18)] for source in sources]

    assert orders[0] == orders[1] != orders[2]
    assert [sorted(orders[0][start : start + 6]) for start in (0, 6, 12)] == [[0, 1, 2, 3, 4, 5]] * 3
    assert orders[0][:6] != orders[0][6:12]
    assert shuffled(6, seed=1, epoch=0) == [int(each) for each in orders[0][:6]]
    assert float(sources[0].row(2).values["X"][0, 0, 0]) == orders[0][2]


def test_a_recording_that_is_replaced_is_followed_and_a_broken_one_is_not(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "r.npz", 4, y=np.array([0, 1, 0, 1]), labels=np.array(LABELS))
    source = ReplaySource(path)
    assert source.row(0).truth in LABELS

    path.write_bytes(b"half a file")
    assert float(source.row(1).values["X"].max()) < 100
    assert "expected an npz" in source.problem

    write_recording(tmp_path / "new.npz", 4, 100.0).replace(path)
    assert float(source.row(2).values["X"].min()) >= 100
    assert (source.problem, source.row(3).truth) == ("", None)


def test_a_recording_that_is_finished_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recording(tmp_path / "r.npz", 4)
    source = ReplaySource(path)
    path.write_bytes(b"half a file")

    def read_too_early(path: Path, _specs: Any) -> Any:
        write_recording(path, 4, 100.0)
        raise Rejected("expected an npz, got half a file")

    with monkeypatch.context() as patch:
        patch.setattr("agent.inference.source.read_recording", read_too_early)
        source.row(0)

    assert float(source.row(0).values["X"].min()) >= 100


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"y": np.zeros(3, np.int64)},
        {"left": np.zeros((3, 2), np.float32), "right": np.zeros((4, 2), np.float32)},
        {"left": np.array(["a", "b"])},
        {"left": np.zeros((0, 2), np.float32)},
        {"X": np.zeros((3, 2), np.complex64)},
        {"X": np.zeros((0, 2), np.float32)},
        {"X": np.zeros((3, 2), np.float32), "y": np.zeros(2, np.int64)},
        {"X": np.zeros((1, 2), np.float32), "y": np.array([9]), "labels": np.array(LABELS)},
        {"X": np.zeros((1, 2), np.float32), "y": np.array([0]), "labels": np.array([["rest"]])},
    ],
)
def test_what_is_not_a_recording_is_refused(tmp_path: Path, arrays: dict[str, Any]) -> None:
    (tmp_path / "r.npz").write_bytes(pack(arrays))

    with pytest.raises(Rejected, match="expected"):
        ReplaySource(tmp_path / "r.npz").row(0)


def test_a_recording_of_several_inputs_gives_the_same_row_of_each(tmp_path: Path) -> None:
    left, right = np.arange(12, dtype=np.float32).reshape(6, 2), np.arange(6, dtype=np.int8)[:, None] + 50
    (tmp_path / "r.npz").write_bytes(pack({"left": left, "right": right, "y": np.arange(6) % 2}))
    source = ReplaySource(tmp_path / "r.npz")
    specs = (TensorSpec("right", (1, 1), "int8"), TensorSpec("left", (1, 2), "float32"))
    rows = set()
    for number in range(6):
        sample = source.row(number)
        given = sample.inputs(specs)
        assert list(given) == ["right", "left"]
        row = int(given["left"][0, 0]) // 2
        assert (given["left"].shape, int(given["right"][0, 0]), sample.truth) == ((1, 2), row + 50, row % 2)
        rows.add(row)
    assert rows == set(range(6))


def test_a_source_that_lacks_an_input_is_refused_in_one_line_that_names_it() -> None:
    sample = Sample(values={"left": np.zeros((1, 2))}, truth=None)
    specs = [TensorSpec(name, (1, 2), "float32") for name in ("left", "right")]
    with pytest.raises(Rejected, match="expected an array for each input, right too, got left") as refused:
        sample.inputs(specs)
    assert "\n" not in str(refused.value)
    one = Sample(values={"X": np.zeros((1, 2))}, truth=None)
    assert list(one.inputs(specs[:1])) == ["left"]
    with pytest.raises(Rejected, match="left, right too, got X"):
        one.inputs(specs)


VECTOR = (TensorSpec("window", (1, 2), "float32"),)
PAIR = (TensorSpec("left", (1, 2), "float32"), TensorSpec("right", (1, 1), "int8"))


@pytest.mark.parametrize(
    ("specs", "text", "values", "truths"),
    [
        (VECTOR, "a,b\n1,2\n3,4\n", {"window": [[1, 2], [3, 4]]}, [None, None]),
        (VECTOR, "y,window.0,window.1\nrest,1,2\nlift,3,4\n", {"window": [[1, 2], [3, 4]]}, ["rest", "lift"]),
        (PAIR, "left.0,y,right,left.1\n1,0,9,2\n3,1,8,4\n", {"left": [[1, 2], [3, 4]], "right": [[9], [8]]}, [0, 1]),
        # as spreadsheets write it
        (VECTOR, "\ufeffy,a,b\r\nrest,1,2\r\n\r\nlift,3,4\r\n\r\n", {"window": [[1, 2], [3, 4]]}, ["rest", "lift"]),
        (VECTOR, "time,window.0,window.1,note\n12:00,1,2,\n12:01,3,4,x\n", {"window": [[1, 2], [3, 4]]}, [None, None]),
        (VECTOR, "window.1,window.0\n2,1\n4,3\n", {"window": [[1, 2], [3, 4]]}, [None, None]),
    ],
)
def test_a_table_is_a_recording(
    tmp_path: Path, specs: tuple[TensorSpec, ...], text: str, values: dict[str, Any], truths: list[Any]
) -> None:
    (tmp_path / "r.csv").write_text(text)
    recording = read_recording(tmp_path / "r.csv", specs)

    for row in (0, 1):
        sample = recording.sample(row)
        given = sample.inputs(specs)
        assert {name: array.tolist() for name, array in given.items()} == {
            name: [rows[row]] for name, rows in values.items()
        }
        assert [str(given[spec.name].dtype) for spec in specs] == [spec.dtype for spec in specs]
        assert sample.truth == truths[row]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n1,2\n",
        "1,2\n3,4\n",
        "a,b\n",
        "a,b\n1,x\n",
        "a,b\n1\n",
        "a,b,c\n1,2,3\n",
        "y\n1\n",
        'a,b\n"1,2\n',
        "a,window.0\n1,2\n",
    ],
)
def test_what_is_no_table_for_a_model_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.csv").write_text(text)

    with pytest.raises(Rejected, match="expected"):
        read_recording(tmp_path / "r.csv", VECTOR)


@pytest.mark.parametrize(
    ("line", "says"),
    [("3,", "line 4: .* ''"), ("3,4,5", "line 4: .* 3 of 2"), ("3,x", "line 4: .* 'x'"), ("3;4", "line 4: .* 1 of 2")],
)
def test_the_line_that_is_wrong_in_a_table_is_named(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "r.csv").write_text(f"a,b\n1,2\n\n{line}\n5,6\n")
    with pytest.raises(Rejected, match=says):
        read_recording(tmp_path / "r.csv", VECTOR)


def test_rows_are_given_in_the_models_own_dtype_and_what_does_not_fit_is_no_input(tmp_path: Path) -> None:
    """A recording of another shape or dtype said that the model was at fault, and ended its trial."""
    (tmp_path / "r.csv").write_text("left.0,left.1,right\n1,2,3\n1,2,3.5\n1,2,300\n1,2,nan\n")
    table = read_recording(tmp_path / "r.csv", PAIR)
    assert table.sample(0).inputs(PAIR)["right"].tolist() == [[3]]
    for row in (1, 2, 3):
        with pytest.raises(Rejected, match=r"expected right of shape \(1, 1\) .* and int8"):
            table.sample(row).inputs(PAIR)

    double = Sample(values={"X": np.array([[0.1, 2]])}, truth=None).inputs(VECTOR)["window"]
    assert (double.dtype, double.tolist()) == (np.float32, [[np.float32(0.1), 2.0]])
    for array in (np.zeros((1, 3), np.float32), np.zeros(1, np.float32), np.zeros((1, 2, 1), np.float32)):
        with pytest.raises(Rejected, match=r"expected window of shape \(1, 2\)"):
            Sample(values={"X": array}, truth=None).inputs(VECTOR)


def test_a_line_of_json_is_a_row() -> None:
    sample = read_line(b'{"left": [1, 2], "right": 7, "y": "rest", "else": {}}', PAIR)
    assert {name: array.tolist() for name, array in sample.inputs(PAIR).items()} == {"left": [[1, 2]], "right": [[7]]}
    assert (sample.truth, read_line(b'{"X": [[1, 2]]}', VECTOR).inputs(VECTOR)["window"].tolist()) == ("rest", [[1, 2]])

    for line in (b"", b"[]", b"{", b'{"window": [1]}', b'{"window": ["a", 2]}', b'{"window": [1, 2, 3]}', b"[" * 9999):
        with pytest.raises(Rejected, match="expected"):
            read_line(line, VECTOR)
    with pytest.raises(Rejected, match="right too"):
        read_line(b'{"left": [1, 2]}', PAIR).inputs(PAIR)
    for number in ("700", "1.5", "null", '"3"'):
        with pytest.raises(Rejected, match="expected right"):
            read_line(b'{"left": [1, 2], "right": %s}' % number.encode(), PAIR)


# --- feeds


def test_a_source_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("a\n1\n")
    assert open_source(Config()) == (None, None)
    for config in (Config(replay=str(tmp_path / "r.csv"), seed=3), Config(source=f"csv:{tmp_path}/r.csv", seed=3)):
        source, recording = open_source(config)
        assert isinstance(source, RecordedRows)
        assert recording == Recording(tmp_path / "r.csv", seed=3)
    topic, _ = open_source(Config(source="mqtt://127.0.0.1:1884/site/a%20b"))
    assert isinstance(topic, Topic)
    assert (topic._host, topic._port, topic._topic) == ("127.0.0.1", 1884, "site/a b")

    secret, _ = open_source(Config(source="mqtt://me:s%20t@localhost/site/+/rows/#"))
    assert isinstance(secret, Topic)
    assert (secret._port, secret._topic, secret._user, secret._password) == (1883, "site/+/rows/#", "me", "s t")
    for wanted in ("mqtt://me:secret@127.0.0.1/a/#/b", "mqtt://me:secret@10.0.0.7/a+"):
        with pytest.raises(Rejected, match="expected") as refused:
            open_source(Config(source=wanted))
        assert "secret" not in str(refused.value)

    for wanted in ("", "csv:none.csv", f"csv:{tmp_path}/r.npz", "mqtt://10.0.0.7/x", "mqtt://127.0.0.1", "mqtt://[::1"):
        with pytest.raises(Rejected, match="expected"):
            open_source(Config(source=wanted or "tail:x"))


def test_standard_input_is_read_line_by_line_and_a_line_too_long_is_dropped_whole() -> None:
    text = b'{"X": 1}\n\n' + b"x" * (MAX_LINE_BYTES + 10) + b"\n" + b'{"X": 2}\n'
    came = threading.Semaphore(0)
    source = Stdin(io.BytesIO(text))
    source.start(came.release)

    for expected in (b'{"X": 1}\n', b'{"X": 2}\n'):
        assert came.acquire(timeout=10)
        request = source.take()
        assert request is not None
        assert request.body == expected
    assert (source.take(), source.dropped) == (None, 1)


def test_lines_that_are_lost_are_told_of_in_the_log_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    lines = Lines()
    for _ in range(MAX_WAITING + 300):
        lines.offer(b"{}")
    (record,) = caplog.records
    assert "expected at most 256 lines to wait for the model, got more" in record.getMessage()


def test_a_closed_standard_input_is_one_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    source = Stdin()
    source.start(lambda: None)
    deadline = time.monotonic() + 10
    while not source.problem and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "got its end" in source.problem


def test_a_topic_says_why_nothing_comes(free_port: Callable[[], int]) -> None:
    source = Topic("127.0.0.1", free_port(), "rows")
    source.start(lambda: None)
    assert "expected the broker at 127.0.0.1:" in source.problem
