"""Opening chunks in a child: what comes out is what went in, whatever the child is given, and the agent stays small."""

import hashlib
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from agent.fetching.fetch import Fetched, fetch_files
from agent.fetching.unseal import Unsealer
from skerry.delivery.sealed import make_key, seal_file, seal_key
from skerry.errors import Broken, Rejected, Unavailable
from skerry.wire import topics
from skerry.wire.manifest import CHUNK_BYTES, SEALED_CHUNK_BYTES, describe_file
from tests.device_keys import PRIVATE, PUBLIC

WHO = "watch.gull-1"
DATA = os.urandom(9 * CHUNK_BYTES + 5)
ENTRY = describe_file("model.onnx", DATA)
KEY = make_key()
SEALED = list(seal_file(KEY, DATA, sha256=ENTRY.sha256))
PUBLISHED = hashlib.sha256(b"".join(SEALED)).hexdigest()


class Shelf:
    """Retained messages in a dictionary."""

    def __init__(self, chunks: Sequence[bytes] = SEALED) -> None:
        self.held = {topics.blob(PUBLISHED, number): chunk for number, chunk in enumerate(chunks)}
        self.asked: list[str] = []

    def fetch_retained(self, wanted: Sequence[str], *, timeout_s: float) -> dict[str, bytes]:
        assert timeout_s > 0
        self.asked += wanted
        return {topic: self.held[topic] for topic in wanted if topic in self.held}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """The device's key, as enrolment left it."""
    path = tmp_path / "device.key"
    path.write_bytes(PRIVATE)
    return path


def unsealer(key_file: Path, *, who: str = WHO) -> Unsealer:
    """Return the opener of the test's artifact."""
    return Unsealer(seal_key(KEY, PUBLIC, who=WHO), who=who, key_file=key_file)


def fetch(shelf: Shelf, folder: Path, opener: Unsealer) -> Fetched:
    """Fetch the test's file."""
    return fetch_files(shelf, folder, [ENTRY], sealed={"model.onnx": PUBLISHED}, opener=opener, timeout_s=1.0)


def test_sealed_chunks_become_the_file_and_what_came_is_counted(tmp_path: Path, key_file: Path) -> None:
    with unsealer(key_file) as opener:
        fetched = fetch(Shelf(), tmp_path / "fetch", opener)
        assert opener._chunks._child is not None
        child = opener._chunks._child

    assert fetched == Fetched(complete=True, received=sum(len(chunk) for chunk in SEALED))
    assert (tmp_path / "fetch" / f"{ENTRY.sha256}.part").read_bytes() == DATA
    assert child.poll() is not None


def test_an_interrupted_fetch_asks_only_for_what_is_missing(tmp_path: Path, key_file: Path) -> None:
    half = Shelf(SEALED[:5])
    with unsealer(key_file) as opener, pytest.raises(Unavailable, match="expected chunk 5, got no answer"):
        fetch(half, tmp_path, opener)

    whole = Shelf()
    with unsealer(key_file) as opener:
        assert fetch(whole, tmp_path, opener).complete
    assert whole.asked == [topics.blob(PUBLISHED, number) for number in range(5, 10)]


SWAPPED = [SEALED[1], SEALED[0], *SEALED[2:]]
CUT = [SEALED[0][:-1], *SEALED[1:]]
PLAIN = [DATA[:CHUNK_BYTES], *SEALED[1:]]
LONG = [SEALED[0] + bytes(1 << 19), *SEALED[1:]]
FOREIGN = [next(seal_file(make_key(), DATA, sha256=ENTRY.sha256)), *SEALED[1:]]


@pytest.mark.parametrize("chunks", [SWAPPED, CUT, PLAIN, LONG, FOREIGN], ids=["swapped", "cut", "plain", "long", "key"])
def test_chunks_that_are_not_what_was_sealed_there_are_never_written(
    tmp_path: Path, key_file: Path, chunks: list[bytes]
) -> None:
    with unsealer(key_file) as opener, pytest.raises(Broken, match="got other bytes, repeatedly"):
        fetch(Shelf(chunks), tmp_path, opener)

    assert (tmp_path / f"{ENTRY.sha256}.part").read_bytes()[:CHUNK_BYTES] == bytes(CHUNK_BYTES)


def test_another_device_is_refused_before_anything_is_written(tmp_path: Path, key_file: Path) -> None:
    with unsealer(key_file, who="watch.gull-2") as opener, pytest.raises(Rejected, match=r"key of watch\.gull-2"):
        fetch(Shelf(), tmp_path, opener)

    assert (tmp_path / f"{ENTRY.sha256}.part").read_bytes() == b""


def test_a_device_key_that_is_gone_is_this_machines_fault(tmp_path: Path, key_file: Path) -> None:
    key_file.unlink()
    with unsealer(key_file) as opener, pytest.raises(Broken, match=r"device\.key: expected a key of this device"):
        fetch(Shelf(), tmp_path, opener)


def test_a_child_that_dies_is_this_machines_fault_and_says_no_secret(tmp_path: Path, key_file: Path) -> None:
    with unsealer(key_file) as opener:
        assert opener.open(SEALED[0], sha256=ENTRY.sha256, number=0) == DATA[:CHUNK_BYTES]
        assert opener._chunks._child is not None
        arguments = Path(f"/proc/{opener._chunks._child.pid}/cmdline").read_bytes()
        opener._chunks._child.kill()
        opener._chunks._child.wait()
        with pytest.raises(Broken, match="expected an answer of the process that opens them"):
            opener.open(SEALED[1], sha256=ENTRY.sha256, number=1)
    assert seal_key(KEY, PUBLIC, who=WHO).encode() not in arguments
    assert b"device.key" not in arguments


def test_a_file_without_a_sealed_form_is_refused(tmp_path: Path, key_file: Path) -> None:
    with unsealer(key_file) as opener, pytest.raises(Rejected, match=r"expected where model\.onnx is to be had sealed"):
        fetch_files(Shelf(), tmp_path, [ENTRY], sealed={}, opener=opener, timeout_s=1.0)


def test_memory_does_not_grow_with_the_file(tmp_path: Path, key_file: Path) -> None:
    """A file of 64 chunks more costs neither the agent nor its child a chunk more."""
    data = os.urandom(64 * CHUNK_BYTES)
    entry = describe_file("model.onnx", data)
    shelf = Shelf(list(seal_file(KEY, data, sha256=entry.sha256)))
    with unsealer(key_file) as opener:
        opener.open(SEALED[0], sha256=ENTRY.sha256, number=0)
        before, child_before = _peak("self"), _peak(opener._chunks._child.pid if opener._chunks._child else 0)
        fetch_files(shelf, tmp_path, [entry], sealed={"model.onnx": PUBLISHED}, opener=opener, timeout_s=1.0)
        grown, child_grown = (
            _peak("self") - before,
            _peak(opener._chunks._child.pid if opener._chunks._child else 0) - child_before,
        )

    assert grown < 24 * SEALED_CHUNK_BYTES  # a window of eight, sealed and opened, and its garbage
    assert child_grown < 8 * SEALED_CHUNK_BYTES


def _peak(process: int | str) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


def test_the_resident_agent_imports_neither_tuf_nor_cryptography() -> None:
    heavy = "{'cryptography', 'tuf', 'securesystemslib'}"
    code = f"import sys, agent.__main__, agent.daemon; print(sorted({heavy} & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout == "[]\n"


def test_the_child_leaves_no_core_dump(key_file: Path) -> None:
    with unsealer(key_file) as opener:
        opener.open(SEALED[0], sha256=ENTRY.sha256, number=0)
        assert opener._chunks._child is not None
        assert resource.prlimit(opener._chunks._child.pid, resource.RLIMIT_CORE) == (0, 0)
