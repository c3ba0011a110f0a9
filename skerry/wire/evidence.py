"""What a canary device says of the two builds of its profile: both replayed, timed in turn, signed with its own key.

The signature is over the text as it was sent, with a line in front that says what was signed: the same key also proves
the device's identity, and nothing that it signs for one purpose may serve another.
"""

import math
from dataclasses import dataclass

PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
MAX_RACES = 8
MAX_PAIRS = 64
_PURPOSE = b"skerry-evidence-1\n"


@dataclass(frozen=True, slots=True)
class BuildRun:
    """How one build did in a child process on the device: `manifest` is the SHA-256 of its manifest.

    `golden` is passed (it gave its golden vectors), failed or "not run", and `reason` says why not. The latency is the
    median of those inferences.
    """

    manifest: str
    golden: str
    reason: str = ""
    latency_p50_us: int = 0
    peak_rss_bytes: int = 0

    def __post_init__(self) -> None:
        if self.golden not in (PASSED, FAILED, NOT_RUN):
            raise ValueError(f"expected {PASSED}, {FAILED} or {NOT_RUN}, got {self.golden!r:.40}")


@dataclass(frozen=True, slots=True)
class Race:
    """One child process in which both builds inferred in turn, warm, on one thread, in the order A B, B A, A B.

    Pair by pair the medians, in microseconds, of the same stretch of inferences of either build.
    """

    assigned_us: tuple[float, ...]
    other_us: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.assigned_us) <= MAX_PAIRS or len(self.assigned_us) != len(self.other_us):
            got = f"{len(self.assigned_us)} and {len(self.other_us)}"
            raise ValueError(f"expected equally many latencies of both builds, 1 to {MAX_PAIRS}, got {got}")
        if not all(math.isfinite(each) and each > 0 for each in (*self.assigned_us, *self.other_us)):
            raise ValueError("expected latencies above 0 us, got others")


@dataclass(frozen=True, slots=True)
class Evidence:
    """Both builds on one device: the one that it was assigned, and the other. `not_run` says why there are no races."""

    device: str
    deployment: str
    release: str
    assigned: BuildRun
    other: BuildRun
    races: tuple[Race, ...] = ()
    not_run: str = ""
    runtime: str = ""
    architecture: str = ""
    simulated: bool = False
    v: int = 1

    def __post_init__(self) -> None:
        if len(self.races) > MAX_RACES:
            raise ValueError(f"expected at most {MAX_RACES} races, got {len(self.races)}")


@dataclass(frozen=True, slots=True)
class SignedEvidence:
    """Body (JSON) of an outbox entry of kind `evidence`: the JSON of an `Evidence`, and its signature.

    `signature` is the base64 of ECDSA (P-256, SHA-256, DER) by the device's key; empty where the device could not sign.
    """

    text: str
    signature: str
    v: int = 1


def signed_bytes(text: str) -> bytes:
    """Return what the signature of an evidence is over."""
    return _PURPOSE + text.encode()
