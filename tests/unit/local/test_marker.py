"""What the marker of a dead process says."""

import pytest

from skerry.local.marker import FORMAT, Crash, read_crashes

A, B = "a" * 64, "b" * 64
TRACE = b"""Fatal Python error: Segmentation fault

Current thread 0x00007f5a (most recent call first):
  File "/usr/lib/python3/site-packages/onnxruntime/capi/session.py", line 220 in run
  File "/usr/lib/python3/site-packages/skerry/local/loaded.py", line 90 in _timed
"""
ELSEWHERE = b"""Fatal Python error: Aborted

Current thread 0x00007f5a (most recent call first):
  File "/home/someone/camera.py", line 7 in grab
"""
IN_THE_RUNTIME = b"Fatal Python error: Aborted\n\nThread 0x00007f5a:\n  <no Python frame>\n"


def head(*records: tuple[int, str]) -> bytes:
    data = bytearray(4096)
    data[: len(FORMAT)] = FORMAT
    for number, (flag, manifest) in enumerate(records, start=1):
        data[128 * number] = flag
        data[128 * number + 1 : 128 * number + 65] = manifest.encode().ljust(64)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "manifests"),
    [
        (head((1, A)) + TRACE, [A]),
        (head((0, A), (1, B)) + TRACE, [B]),
        (head((1, A), (1, B)) + TRACE, [A, B]),
        (head((1, A)) + IN_THE_RUNTIME, [A]),
        # a thread was inside, but it was another one that died
        (head((1, A)) + ELSEWHERE, []),
        (head((0, A)) + TRACE, []),
        # stopped by SIGTERM, SIGKILL or a power cut
        (head((1, A)), []),
        (head((1, "no digest")) + TRACE, []),
        (b"", []),
        (head((1, A))[:4095], []),
        (b"another" + head((1, A))[7:] + TRACE, []),
    ],
)
def test_a_death_is_a_models_when_a_fault_ended_the_process_inside_it(data: bytes, manifests: list[str]) -> None:
    crashes = read_crashes("4711-beef.marker", data)
    assert [crash.manifest for crash in crashes] == manifests


def test_a_crash_says_which_process_died_and_how() -> None:
    crashes = read_crashes("4711-beef.marker", head((1, A)) + TRACE)
    assert crashes == [Crash(A, "process 4711 died inside the model: Segmentation fault")]
