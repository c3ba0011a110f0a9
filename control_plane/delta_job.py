"""The job that makes deltas: one task per pair of files, each tried on the spot, for what it makes must be the target.

A delta that is not much shorter than the file packed by itself is not worth a device's work, and is not kept.
"""

import hashlib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from control_plane import events, jobs
from control_plane.home import Home
from control_plane.schema.delivery import MadeDelta
from control_plane.store import Blobs
from skerry.errors import SkerryError
from skerry.wire.manifest import CHUNK_BYTES

PACKED_SHARE = 0.95
"""Of the file: above it the packed form is not offered."""
DELTA_SHARE = 0.8
"""Of the file packed by itself: above it a delta is not offered."""
MAX_CHUNKS = 1000
"""Their hashes stand in the assignment, which is one message."""


def tasks(parameters: jobs.Parameters) -> list[jobs.Parameters]:
    """Make one task per pair."""
    return [{"source": source, "target": target} for source, target in parameters["pairs"]]


def work(home: str, task: jobs.Parameters, log: Callable[[str], None]) -> jobs.Result:
    """Make one delta and keep it as a blob, in a worker process; what cannot be made is a result too."""
    blobs = Blobs(Home(Path(home)).blobs)
    target = blobs.get(task["target"])
    result: jobs.Result = {**task, "full": len(target), "length": 0, "sha256": "", "chunks": [], "reason": ""}
    try:
        delta = _make(blobs.get(task["source"]) if task["source"] else b"", target)
    except SkerryError as error:
        return {**result, "reason": str(error)}
    except Exception as error:  # noqa: BLE001 -- model files are of all kinds, and without a delta the file itself is sent
        log(f"{task['target'][:16]}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return {**result, "reason": f"it cannot be made: {type(error).__name__}"}
    if delta is None:
        return {**result, "reason": "too much of it is not tensors"}
    if len(delta) > MAX_CHUNKS * CHUNK_BYTES:
        return {**result, "length": len(delta), "reason": f"longer than {MAX_CHUNKS} chunks"}
    chunks = [
        hashlib.sha256(delta[start : start + CHUNK_BYTES]).hexdigest() for start in range(0, len(delta), CHUNK_BYTES)
    ]
    return {**result, "length": len(delta), "sha256": blobs.put(delta), "chunks": chunks}


def finish(session: Session, task: jobs.Parameters, results: list[jobs.Result], now: datetime) -> jobs.Result:  # noqa: ARG001 -- what jobs hand over
    """Write what came of each pair, and say in one line what the release's deltas save."""
    packed = {each["target"]: each["length"] for each in results if not each["source"] and each["sha256"]}
    for each in results:
        whole = _packed_length(session, each, packed)
        most = DELTA_SHARE * whole if each["source"] else PACKED_SHARE * each["full"]
        if each["sha256"] and each["length"] > most:
            each["reason"] = f"{each['length']} bytes where {whole} are the whole file"
        worth = each["sha256"] != "" and not each["reason"]
        session.merge(
            MadeDelta(
                source=each["source"],
                target=each["target"],
                sha256=each["sha256"] if worth else "",
                length=each["length"],
                chunks=each["chunks"] if worth else [],
                reason=each["reason"],
            )
        )
    _tell(session, task["release"], results)
    return {"release": task["release"], "made": [_told(each) for each in results]}


def _make(source: bytes, target: bytes) -> bytes | None:
    from converters.tensor_map import tensor_map
    from skerry.delivery.delta import make_delta

    # it has been applied once when it is returned, and gave the target
    return make_delta(
        source,
        target,
        source_tensors=tensor_map(source) if source else (),
        target_tensors=tensor_map(target),
    )


def _packed_length(session: Session, result: jobs.Result, packed: dict[str, int]) -> int:
    """The least that the file costs without a delta."""
    made = session.get(MadeDelta, ("", result["target"]))
    alone = packed.get(result["target"]) or (made.length if made is not None and made.sha256 else 0)
    return min(alone, int(result["full"])) if alone and result["source"] else int(result["full"])


def _tell(session: Session, release: str, results: list[jobs.Result]) -> None:
    between = [each for each in results if each["source"]]
    worth = [each for each in between if not each["reason"]]
    text = f"{release}: {len(worth)} of {len(between)} deltas between versions are worth sending"
    if worth:
        sent, full = sum(each["length"] for each in worth), sum(each["full"] for each in worth)
        text += f", {sent} bytes instead of {full}"
    refused = [each for each in between if each["reason"]]
    if refused:
        text += f"; {refused[0]['reason']}"
    events.record(session, "delta", release, text, made=[_told(each) for each in results])


def _told(result: jobs.Result) -> dict[str, Any]:
    return {name: result[name] for name in ("source", "target", "length", "full", "reason")}


KIND = jobs.Kind(tasks=tasks, work=work, finish=finish)
