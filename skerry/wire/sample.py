"""The body of a `sample` entry: some inputs of one inference, as the model took them.

Layout, version 1: one byte version, 8 bytes of the manifest's SHA-256, then a line of JSON `[window, prediction,
confidence, {name: length}]`, and the tensors' bytes in that order (little-endian, of the manifest's dtype and shape).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from skerry.errors import Rejected

VERSION = 1
MAX_HEAD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a window: `manifest` is the first 16 hex digits of the digest, `inputs` tensors by name."""

    manifest: str
    window: int
    prediction: str = ""
    confidence: float = 0.0
    inputs: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """What the tensors take."""
        return sum(map(len, self.inputs.values()))


def encode_sample(sample: Sample) -> bytes:
    """Encode a sample in version 1."""
    lengths = {name: len(values) for name, values in sample.inputs.items()}
    head = json.dumps([sample.window, sample.prediction, sample.confidence, lengths], separators=(",", ":")).encode()
    return b"".join((bytes([VERSION]), bytes.fromhex(sample.manifest), head, b"\n", *sample.inputs.values()))


def decode_sample(body: bytes) -> Sample:
    """Decode a sample; raises `Rejected` when the body is of another version or not of its length."""
    if len(body) < 10 or body[0] != VERSION:
        raise Rejected(f"sample: expected version {VERSION}, got {body[:1].hex() or 'nothing'}")
    head, newline, values = body[9:].partition(b"\n")
    if not newline or len(head) > MAX_HEAD_BYTES:
        raise Rejected(f"sample: expected a head of at most {MAX_HEAD_BYTES} bytes, got {len(head)}")
    window, prediction, confidence, lengths = _read(head)
    ends = list(accumulate(lengths.values(), initial=0))
    if ends[-1] != len(values):
        raise Rejected(f"sample: expected {ends[-1]} bytes of inputs, got {len(values)}")
    inputs = {name: values[start:end] for name, start, end in zip(lengths, ends, ends[1:], strict=False)}
    return Sample(body[1:9].hex(), window, prediction, confidence, inputs)


def _read(head: bytes) -> tuple[int, str, float, dict[str, int]]:
    try:
        tree: Any = json.loads(head)
        window, prediction, confidence, lengths = tree
        sound = (
            type(window) is int
            and 0 <= window < 1 << 62
            and isinstance(prediction, str)
            and len(prediction.encode()) <= 200
            and isinstance(confidence, int | float)
            and math.isfinite(confidence)
            and isinstance(lengths, dict)
            and all(type(each) is int and each >= 0 for each in lengths.values())
            and "".join(lengths).isprintable()
        )
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise Rejected(f"sample: expected a head of JSON, got {head[:40]!r}") from error
    if not sound:
        raise Rejected(f"sample: expected window, prediction, confidence and lengths, got {head[:60]!r}")
    return window, prediction, float(confidence), lengths
