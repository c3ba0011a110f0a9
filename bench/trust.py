"""Measures what trust costs on the device: a refresh, the verification of an artifact, and memory after an update.

    python -m bench.trust [--quick]

A refresh is the whole decision on an assignment, as the agent makes it: a process of its own that asks for the metadata
of both repositories, all of it new. Its floor is a process of the same kind, handed the same bytes, that does what no
verifier can do without: one SHA-256 over all of them and one ed25519 check. Starting a bare interpreter is in both, and
is printed apart. Verifying is reading back a slot before it is opened; its floor is `hashlib` over the same files and
one ed25519 check. Memory is the proportional set size of a real agent that commits two versions, one after the other,
on a broker of its own. Ratios are medians of runs in turn; the last line is one JSON object.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import iotcore
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface

from agent.trust.assignment import ask_child
from agent.trust.decision import judge
from agent.trust.metadata import HeldMetadata
from agent.trust.question import DIRECTOR, IMAGE, Question
from skerry.delivery.slots import MANIFEST, Slots
from skerry.runtimes.arrays import pack
from skerry.wire import codec
from skerry.wire.enrolment import Anchor
from skerry.wire.manifest import Manifest, TensorSpec, describe_file, target_name
from skerry.wire.messages import Terms
from tests.conftest import pick_port, wait_for_port
from tests.integration.agent.conftest import BROKER_TOML
from tests.integration.agent.shore import PROJECT, Device, Shore, wait_for
from tests.tuf_repository import TufRepository, now

SEED = 20260
RELEASES, PROFILES, FILES = 20, 4, ("manifest.json", "model.onnx", "golden.npz", "gate.json")
PATH = "models/strokes/20/gateway/manifest.json"
FLOOR = """
import hashlib, sys
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
data = sys.stdin.buffer.read()
hashlib.sha256(data[96:]).digest()
Ed25519PublicKey.from_public_bytes(data[:32]).verify(data[32:96], data[96:])
"""


class Repositories:
    """An image repository of 320 targets and a director, both of whose metadata is new at every round."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.image, self.director = TufRepository(), TufRepository()
        profiles = ("gateway", *(f"class-{number}" for number in range(1, PROFILES)))
        for version in range(1, RELEASES + 1):
            for profile in profiles:
                for name in FILES:
                    path = target_name("strokes", version, profile, name)
                    self.image.add(path, path.encode())
        anchor = Anchor(PROJECT, self.image.root.decode(), self.director.root.decode(), server_ca="")
        clock = now().timestamp()
        self.question = Question(anchor=anchor, device="watch-1", folder=str(folder), clock=clock)

    def next(self) -> dict[tuple[str, str], bytes]:
        """Sign all of it anew; return the files that a refresh reads."""
        self.image.publish()
        issued = now().strftime("%Y-%m-%dT%H:%M:%SZ")
        counter = self.director.targets_version + 1
        terms = Terms(device="watch-1", counter=counter, issued=issued, deployment="d1", release="strokes-20")
        self.director.targets.clear()
        self.director.add(PATH, PATH.encode(), custom=asdict(terms))
        self.director.publish()
        read: dict[tuple[str, str], bytes] = {}
        for which, repository in ((IMAGE, self.image), (DIRECTOR, self.director)):
            names = ("timestamp", f"{repository.snapshot_version}.snapshot", f"{repository.targets_version}.targets")
            read |= {(which, f"{name}.json"): repository.files[f"{name}.json"] for name in names}
        return read


class Held(FetcherInterface):
    """Files of one repository that are in memory already."""

    def __init__(self, files: dict[tuple[str, str], bytes], which: str) -> None:
        self._files, self._which = files, which

    def _fetch(self, url: str) -> Iterator[bytes]:
        data = self._files.get((self._which, url.rsplit("/", 1)[-1]))
        if data is None:
            raise DownloadHTTPError("no such file", 404)
        return iter([data])


def refresh_cost(folder: Path, rounds: int) -> dict[str, float]:
    """Time the decision in a process of its own beside its floor, and what both have in common."""
    repositories = Repositories(folder)
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    times: dict[str, list[float]] = {
        name: [] for name in ("refresh", "nothing_new", "floor", "start", "inside", "bare")
    }
    size = 0
    for number in range(rounds + 1):
        files = repositories.next()
        together = b"".join(files.values())
        signature = key.sign(together)
        size = len(together)

        def decide(files: dict[tuple[str, str], bytes] = files) -> None:
            verdict = ask_child(repositories.question, HeldMetadata(files)).of("")
            assert verdict.ok, verdict

        def floor(payload: bytes = public + signature + together) -> None:
            subprocess.run([sys.executable, "-P", "-c", FLOOR], input=payload, check=True)

        def inside(files: dict[tuple[str, str], bytes] = files, number: int = number) -> None:
            question = Question(**{**_fields(repositories.question), "folder": str(folder / f"inside-{number}")})
            assert judge(question, image=Held(files, IMAGE), director=Held(files, DIRECTOR)).of("").ok

        def bare(data: bytes = together, signature: bytes = signature) -> None:
            hashlib.sha256(data).digest()
            key.public_key().verify(signature, data)

        work: dict[str, Callable[[], None]] = {"refresh": decide, "nothing_new": decide, "floor": floor, "bare": bare}
        work |= {"inside": inside, "start": lambda: _run(["-c", "pass"])}
        for name, each in work.items():
            took = _timed(each)
            if number:  # the first round warms the disk's cache
                times[name].append(took)
    mid = {name: median(each) for name, each in times.items()}
    # of runs in turn, the ratio of each pair: a busy machine slows both of a pair
    ratio = median(ours / floor for ours, floor in zip(times["refresh"], times["floor"], strict=True))
    return {
        "refresh_over_floor": round(ratio, 2),
        "metadata_bytes": float(size),
        "refresh_ms": _ms(mid["refresh"]),
        "refresh_nothing_new_ms": _ms(mid["nothing_new"]),
        "refresh_floor_ms": _ms(mid["floor"]),
        "process_start_ms": _ms(mid["start"]),
        "refresh_without_process_ms": _ms(mid["inside"]),
        "floor_without_process_ms": _ms(mid["bare"]),
    }


def verify_cost(folder: Path, rounds: int, size: int) -> dict[str, float]:
    """Time the check of a whole artifact in its slot, beside `hashlib` over the same files and one ed25519 check."""
    model = np.random.default_rng(SEED).bytes(size)
    files = {"model.onnx": model, "golden.npz": b"golden", "gate.json": b"{}"}
    manifest = Manifest(
        model="strokes",
        version=1,
        profile="gateway",
        runtime="onnxruntime",
        model_file="model.onnx",
        golden_file="golden.npz",
        gate_file="gate.json",
        inputs=(TensorSpec("window", (1, 100, 6), "float32"),),
        outputs=(),
        labels=("rest",),
        tolerances={},
        observe={},
        monitor={},
        files=tuple(describe_file(name, data) for name, data in files.items()),
        latency_budget_ms=1.0,
        created="2026-01-01T00:00:00Z",
    )
    data = codec.encode(manifest)
    slots = Slots(folder)
    name = slots.stage({**files, MANIFEST: data}, release="strokes-1", deployment="d1")
    paths = [slots.folder(name) / each for each in (*files, MANIFEST)]
    key = Ed25519PrivateKey.generate()
    signature = key.sign(data)

    def floor() -> None:
        for path in paths:
            with path.open("rb") as file:
                hashlib.file_digest(file, "sha256")
        key.public_key().verify(signature, data)

    pairs = [(_timed(lambda: slots.read(name)), _timed(floor)) for _ in range(rounds + 1)][1:]
    ours, theirs = (median(each) for each in zip(*pairs, strict=True))
    return {
        "verify_over_floor": round(median(one / other for one, other in pairs), 3),
        "artifact_mb": size / (1 << 20),
        "verify_ms": _ms(ours),
        "verify_floor_ms": _ms(theirs),
    }


def memory_cost(folder: Path, settle_s: float) -> dict[str, float]:
    """Return the growth of a real agent's memory over an update, and over the one after it."""
    with _shore(folder) as shore:
        arrays: dict[str, Any] = {"X": np.random.default_rng(SEED).normal(size=(60, 100, 6)).astype(np.float32)}
        (folder / "recording.npz").write_bytes(pack(arrays))
        device = Device(shore, "watch-1", folder / "watch-1", folder / "recording.npz")
        for version in (1, 2, 3):
            shore.release(version)
        try:
            device.start(rate=50.0)
            sizes = []
            for version in (1, 2, 3):
                end = shore.ends(device.name, shore.assign(device.name, version), timeout_s=60)
                assert end.state == "committed", end
                time.sleep(settle_s)
                sizes.append(_pss_mb(device))
        finally:
            device.kill()
    before, after, later = sizes
    return {
        "rss_growth_mb": round(after - before, 2),
        "rss_growth_of_the_next_mb": round(later - after, 2),
        "agent_pss_mb": round(before, 1),
    }


@contextmanager
def _shore(folder: Path) -> Iterator[Shore]:
    port = pick_port()
    config = folder / "broker.toml"
    config.write_text(BROKER_TOML.format(port=port))
    with iotcore.Broker(config_path=str(config)):
        wait_for_port(port)
        shore = Shore(port, folder)
        try:
            yield shore
        finally:
            shore.close()


def _pss_mb(device: Device) -> float:
    """Return the proportional set size of the agent, which has no other process left by now."""
    process = device._process  # noqa: SLF001 -- the tests' device has no other use for it
    assert process is not None
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_for(lambda: not children.read_text().strip(), why="the agent's own children to end")
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1024


def _fields(question: Question) -> dict[str, Any]:
    return {name: getattr(question, name) for name in question.__slots__}


def _run(words: list[str]) -> None:
    subprocess.run([sys.executable, "-P", *words], check=True)


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


def main() -> None:
    """Measure, print for people, and end with one line for programs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds; ends within 50 s on two cores")
    quick: bool = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = refresh_cost(folder / "trust", 5 if quick else 15)
        figures |= verify_cost(folder / "slots", 7 if quick else 25, (16 if quick else 64) << 20)
        figures |= memory_cost(folder, 2.0 if quick else 5.0)

    titles = {
        "metadata_bytes": "metadata of a refresh, bytes: 320 targets, both repositories, all new",
        "refresh_ms": "refresh: a process that decides, ms",
        "refresh_nothing_new_ms": "  the same where only the timestamps had to be asked for, ms",
        "refresh_floor_ms": "floor: a process that hashes the same bytes and checks one ed25519, ms",
        "process_start_ms": "  of both, starting a bare interpreter, ms",
        "refresh_without_process_ms": "  the decision alone, all imported, ms",
        "floor_without_process_ms": "  the floor alone, all imported, ms",
        "refresh_over_floor": "refresh over floor",
        "artifact_mb": "artifact, MiB",
        "verify_ms": "reading back its slot: all digests and the manifest, ms",
        "verify_floor_ms": "floor: hashlib over the same files and one ed25519 check, ms",
        "verify_over_floor": "verify over floor",
        "agent_pss_mb": "agent with a committed model, PSS in MiB",
        "rss_growth_mb": "  more after an update, MiB",
        "rss_growth_of_the_next_mb": "  more after the next one, MiB",
    }
    for key, title in titles.items():
        print(f"{title:74s} {figures[key]:12g}")
    print(json.dumps({"bench": "trust", "quick": quick, "figures": figures}))


if __name__ == "__main__":
    main()
