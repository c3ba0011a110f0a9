"""The two builds of a profile, measured on this device: what the director asks of the first devices of a rollout.

    fetch the other build  ->  replay its golden vectors  ->  race both, ABBA, in several children  ->  sign  ->  delete

Nothing here may stop a deployment: whatever goes wrong is written into the evidence. There is one try per deployment,
noted on disk before it begins, so that a device which the measuring brings down is not brought down again.
"""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.deployment.lifecycle import Grant
from agent.fetching.fetch import Chunks, Retained, fetch_files
from agent.fetching.unseal import Opener, Unsealer
from agent.identity.folder import Identity
from agent.identity.signature import sign
from agent.inference.golden import MAX_ARTIFACT_BYTES
from agent.inference.probing import Measured, probe_model
from agent.inference.workers import Given
from skerry.delivery.durable import write_durably
from skerry.delivery.partial import PartialFile
from skerry.delivery.slots import MANIFEST
from skerry.errors import Broken, Rejected, SkerryError, Unavailable
from skerry.runtimes import Refused, find_runtime
from skerry.wire import codec
from skerry.wire.evidence import FAILED, NOT_RUN, PASSED, BuildRun, Evidence, Race, SignedEvidence, signed_bytes
from skerry.wire.manifest import CHUNK_BYTES, FileEntry, Manifest
from skerry.wire.messages import Content

# two children of either order of loading: where a model lies in memory moves it by some 1 % (docs/adr/0701)
ROUNDS = 4
SECONDS = 1.0
PAIRS = 400
STRETCHES = 20
RACE_S = 600.0
_log = logging.getLogger("skerry.agent.second")


@dataclass(frozen=True, slots=True)
class Build:
    """A build as files on the disk."""

    manifest: Manifest
    model: Path
    golden: bytes


@dataclass(frozen=True, slots=True)
class Bench:
    """Where the measuring happens: `folder` is its own, `room_bytes` stay free on its disk."""

    folder: Path
    link: Retained
    identity: Identity
    key: Path
    timeout_s: float
    room_bytes: int
    interrupted: Callable[[], bool]
    https: Chunks | None = None


def measure_both(bench: Bench, grant: Grant, assigned: Build, ran: Measured | Rejected) -> SignedEvidence:
    """Measure the build that was assigned against the other one, and sign what came out; raises nothing of ours.

    Args:
        bench: where.
        grant: names the other build.
        assigned: the build in the slot.
        ran: how that one replayed its golden vectors, or why it did not.
    """
    other = BuildRun(manifest=grant.measure_sha256, golden=NOT_RUN)
    races: tuple[Race, ...] = ()
    why = ""
    try:
        _begin(bench.folder, grant.deployment)
        build = _fetch(bench, grant, assigned.manifest)
        other = _replay(build, grant.measure_sha256)
        if isinstance(ran, Measured) and other.golden == PASSED:
            races = _race(assigned, build, _scratch(bench.folder))
        else:
            why = "not both builds gave their golden vectors"
    except (SkerryError, OSError) as error:
        why = str(error)
        _log.warning("the other build is not measured: %s", why)
    finally:
        shutil.rmtree(_scratch(bench.folder), ignore_errors=True)
    runtime = assigned.manifest.runtime
    found = find_runtime(runtime)
    return _signed(
        bench.key,
        Evidence(
            device=bench.identity.device,
            deployment=grant.deployment,
            release=grant.release,
            assigned=_run(grant.manifest, ran),
            other=other,
            races=races,
            not_run=why[:500],
            runtime=runtime if isinstance(found, Refused) else f"{runtime} {found.version}",
            architecture=bench.identity.architecture,
            simulated=bench.identity.simulated,
        ),
    )


def _begin(folder: Path, deployment: str) -> None:
    """Note the try; raises `Rejected` when it is the second one."""
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "tried"
    if note.exists() and note.read_text() == deployment:
        raise Rejected("expected to measure the other build in one go, got a restart meanwhile")
    write_durably(note, deployment.encode())


def _scratch(folder: Path) -> Path:
    return folder / "files"


def _fetch(bench: Bench, grant: Grant, assigned: Manifest) -> Build:
    """Fetch the manifest of the other build and the two files that it takes to measure it."""
    if not 0 < grant.measure_length <= CHUNK_BYTES:
        raise Rejected(f"manifest: expected 1 to {CHUNK_BYTES} bytes, got {grant.measure_length}")
    sha256 = grant.measure_sha256
    entry = FileEntry(name=MANIFEST, length=grant.measure_length, sha256=sha256, chunks=(sha256,))
    content = grant.measure_content
    if content is None:
        raise Rejected("expected a content key of the other build, got none")
    with Unsealer(content.key, who=bench.identity.who, key_file=bench.key) as opener:
        return _fetch_build(bench, content, opener, entry, assigned)


def _fetch_build(bench: Bench, content: Content, opener: Opener, entry: FileEntry, assigned: Manifest) -> Build:
    manifest = codec.decode(Manifest, _fetch_files(bench, [entry], content, opener)[MANIFEST])
    mine, theirs = (
        (each.model, each.version, each.profile, each.runtime, each.inputs) for each in (assigned, manifest)
    )
    if mine != theirs:
        raise Rejected(f"manifest: expected the other build of {_name(assigned)}, got one of {_name(manifest)}")
    entries = [manifest.file(name) for name in (manifest.model_file, manifest.golden_file)]
    total = sum(each.length for each in entries)
    if total > MAX_ARTIFACT_BYTES:
        raise Rejected(f"manifest: expected at most {MAX_ARTIFACT_BYTES} bytes of files, got {total}")
    free = shutil.disk_usage(bench.folder).free
    if free < 2 * total + bench.room_bytes:
        raise Broken(f"expected {2 * total + bench.room_bytes} bytes free for the other build, got {free}")
    files = _fetch_files(bench, entries, content, opener)
    model = _scratch(bench.folder) / manifest.model_file
    model.write_bytes(files[manifest.model_file])
    return Build(manifest=manifest, model=model, golden=files[manifest.golden_file])


def _fetch_files(bench: Bench, entries: list[FileEntry], content: Content, opener: Opener) -> dict[str, bytes]:
    folder = _scratch(bench.folder)
    fetched = fetch_files(
        bench.link,
        folder,
        entries,
        sealed=content.files,
        opener=opener,
        timeout_s=bench.timeout_s,
        interrupted=bench.interrupted,
        https=bench.https,
        roads=content.roads,
    )
    if not fetched.complete:
        raise Unavailable("expected to fetch the other build in one go, got an interruption")
    return {entry.name: PartialFile(folder, entry).finish() for entry in entries}


def _replay(build: Build, sha256: str) -> BuildRun:
    try:
        given = Given(codec.encode(build.manifest), build.manifest.runtime, build.model, build.golden)
        ran = probe_model(given, build.manifest)
    except Rejected as error:
        return _run(sha256, error)
    return _run(sha256, ran)


def _race(assigned: Build, other: Build, folder: Path) -> tuple[Race, ...]:
    golden = folder / "race.npz"
    golden.write_bytes(assigned.golden)
    request = {
        "runtime": assigned.manifest.runtime,
        "model": str(assigned.model.absolute()),
        "rival": str(other.model.absolute()),
        "golden": str(golden.absolute()),
        "manifest": codec.encode(assigned.manifest).decode(),
        "rounds": ROUNDS,
        "pairs": PAIRS,
        "seconds": SECONDS,
        "stretches": STRETCHES,
    }
    try:
        # -P: the working folder is not searched for modules
        command = [sys.executable, "-P", "-m", "agent.deployment.race_child"]
        done = subprocess.run(
            command, input=json.dumps(request).encode(), stdout=subprocess.PIPE, timeout=RACE_S, check=True
        )
        said: dict[str, Any] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise Broken(f"expected a race of both builds, got {type(error).__name__}") from error
    if "refused" in said:
        raise Rejected(str(said["refused"]))
    return tuple(Race(assigned_us=tuple(mine), other_us=tuple(theirs)) for mine, theirs in said["races"])


def _run(sha256: str, ran: Measured | Rejected) -> BuildRun:
    if isinstance(ran, Rejected):
        return BuildRun(manifest=sha256, golden=FAILED, reason=str(ran)[:500])
    return BuildRun(
        manifest=sha256, golden=PASSED, latency_p50_us=ran.latency_p50_us, peak_rss_bytes=ran.peak_rss_bytes
    )


def _signed(key: Path, evidence: Evidence) -> SignedEvidence:
    text = codec.encode(evidence).decode()
    try:
        return SignedEvidence(text=text, signature=sign(key, signed_bytes(text)))
    except Broken as error:
        # sent all the same: the control plane says that it came, and does not count it
        _log.warning("%s", error)
        return SignedEvidence(text=text, signature="")


def _name(manifest: Manifest) -> str:
    return f"{manifest.model} {manifest.version} for {manifest.profile} on {manifest.runtime}"
