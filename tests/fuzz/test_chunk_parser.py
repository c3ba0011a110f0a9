"""What judges chunks, opens sealed ones and reads the bitmap of a file on its way, against bytes of any kind.

A fixed number of rounds; `SKERRY_FUZZ_ROUNDS` asks for more.
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from skerry.delivery.chunks import Arrival, Outcome, Progress, accept
from skerry.delivery.partial import PartialFile
from skerry.delivery.sealed import make_key, open_chunk, seal_chunk
from skerry.errors import Broken, Rejected
from skerry.wire.manifest import CHUNK_BYTES, FileEntry

SEED = 11
ROUNDS = int(os.environ.get("SKERRY_FUZZ_ROUNDS", "400"))
DATA = np.random.default_rng(SEED).bytes(2 * CHUNK_BYTES + 321)
CHUNKS = [DATA[at : at + CHUNK_BYTES] for at in range(0, len(DATA), CHUNK_BYTES)]
ENTRY = FileEntry(
    "model.onnx", len(DATA), hashlib.sha256(DATA).hexdigest(), tuple(hashlib.sha256(c).hexdigest() for c in CHUNKS)
)


def _damaged(data: bytes, random: np.random.Generator) -> bytes:
    match int(random.integers(6)):
        case 0:
            return b""
        case 1:
            return data[: int(random.integers(len(data)))]
        case 2:
            return data + random.bytes(int(random.integers(1, 100)))
        case 3:
            return data * int(random.integers(2, 9))
        case 4:
            return random.bytes(len(data))
        case _:
            at = int(random.integers(len(data)))
            return data[:at] + bytes([data[at] ^ 1 << int(random.integers(8))]) + data[at + 1 :]


def test_a_damaged_sealed_chunk_never_opens_and_never_counts() -> None:
    random = np.random.default_rng(SEED)
    key = make_key()
    sealed = [seal_chunk(key, chunk, sha256=ENTRY.sha256, number=at) for at, chunk in enumerate(CHUNKS)]
    for _ in range(ROUNDS):
        true, claimed = (int(each) for each in random.integers(len(CHUNKS), size=2))
        came = _damaged(sealed[true], random) if true == claimed or random.random() < 0.5 else sealed[true]
        with pytest.raises(Rejected, match=r"^[^\n]*$"):
            open_chunk(key, came, sha256=ENTRY.sha256, number=claimed)
        _, outcome = accept(Progress(ENTRY), claimed, Arrival(len(came), None))
        assert outcome is (Outcome.CORRUPT if came else Outcome.EMPTY)


def test_only_true_chunks_are_ever_written(tmp_path: Path) -> None:
    random = np.random.default_rng(SEED)
    for _ in range(ROUNDS // 20):
        file = PartialFile(tmp_path, ENTRY)
        for _ in range(20):
            at = int(random.integers(-2, len(CHUNKS) + 2))
            true = CHUNKS[at % len(CHUNKS)]
            data = true if random.random() < 0.3 else _damaged(true, random)
            outcome = file.add({at: Arrival(len(data), data)})[at]
            assert outcome is not Outcome.STORED or data == true
        held = file.path.read_bytes()
        for at, chunk in enumerate(CHUNKS):
            if file.progress.holds(at):
                assert held[at * CHUNK_BYTES :][: len(chunk)] == chunk
        assert len(held) <= len(DATA)
        if file.progress.complete:
            assert file.finish() == DATA
        file.drop()


def test_a_damaged_bitmap_costs_a_fetch_and_never_the_file(tmp_path: Path) -> None:
    random = np.random.default_rng(SEED)
    file = PartialFile(tmp_path, ENTRY)
    file.add({0: Arrival(CHUNK_BYTES, CHUNKS[0])})
    (note,) = tmp_path.glob("*.map")
    good = note.read_bytes()
    lies = [
        json.dumps({"have": "f" * 50, "received": 1, "corrupt": 0}).encode(),
        b"[]",
        b"null",
        b"{}",
        b'{"have": "-1"}',
    ]
    for damaged in [*lies, *(_damaged(good, random) for _ in range(ROUNDS // 4))]:
        note.write_bytes(damaged)
        progress = PartialFile(tmp_path, ENTRY).progress
        assert 0 <= progress.have < 1 << len(ENTRY.chunks)
        assert 0 <= progress.held_bytes <= ENTRY.length
    # a bitmap that lies is found out by the file's own digest, and what is not there is fetched anew
    note.write_bytes(lies[0])
    liar = PartialFile(tmp_path, ENTRY)
    assert liar.progress.complete
    with pytest.raises(Broken):
        liar.finish()
    assert not PartialFile(tmp_path, ENTRY).progress.complete
