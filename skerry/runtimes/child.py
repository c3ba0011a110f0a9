"""A model in a child process with limits: a crash, a timeout or a memory bomb comes back to the parent as a value.

The parent writes `request.json` and `inputs.npz` into a temporary folder and runs `python -m skerry.runtimes.child
FOLDER`; the child limits itself, loads the model, runs it row by row, in order, in one session (or in one for each
sequence of rows), and writes `outputs.npz` and `result.json`. With a rival in the request, the two are timed in turn
instead (`race_in_child`).

A runtime that cannot live beside ours (`skerry.runtimes.environments`) is run by its own Python, which sees this
package and nothing else of our environment.
"""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import skerry
from skerry.errors import Rejected, SkerryError
from skerry.runtimes.arrays import pack, unpack
from skerry.runtimes.confined import Limits, confine, run_confined
from skerry.runtimes.environments import Found, find_runtime
from skerry.runtimes.resident import bare_rss_bytes, import_runtime, peak_rss_bytes
from skerry.runtimes.rows import run_in_turn, run_rows, timed
from skerry.runtimes.session import Described, Refused, Signature, open_session, read_model
from skerry.wire import codec

if TYPE_CHECKING:
    import numpy as np

    Arrays = dict[str, np.ndarray[Any, Any]]

NO_SIGNATURE = Signature(inputs=(), outputs=())
MAX_RESULT_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, eq=False)
class Ran:
    """What a model did in the child: outputs by name (rows first), and what it cost.

    Latencies are of one inference, in microseconds, 0 without inputs. `peak_rss_bytes` is the most resident memory of
    the whole child, interpreter and runtime included; `growth_bytes` is by how much that is over the child that had
    imported the runtime and read the inputs. `arena_bytes` is what TFLite Micro needs, None elsewhere. `signature` is
    what the runtime says of the model's inputs and outputs.
    """

    outputs: "Arrays"
    latency_p50_us: int
    latency_p99_us: int
    peak_rss_bytes: int
    arena_bytes: int | None
    growth_bytes: int = 0
    signature: Signature = NO_SIGNATURE


@dataclass(frozen=True, slots=True, eq=False)
class Raced:
    """Two models timed in turn in one child: microseconds of each inference, pair by pair, and the model's outputs."""

    outputs: "Arrays"
    model_us: "np.ndarray[Any, Any]"
    rival_us: "np.ndarray[Any, Any]"


def run_in_child(
    runtime: str,
    model: Path | bytes,
    inputs: "Mapping[str, np.ndarray[Any, Any]] | None" = None,
    *,
    starts: Sequence[int] = (0,),
    limits: Limits | None = None,
    python: str | None = None,
) -> Ran | Refused:
    """Load a model in a child process and run it once for every row of `inputs` (by name, rows first).

    A model that is given as bytes reaches the child in memory and is never on a disk. Without inputs it is only loaded.
    `starts` are the rows, in order, that a fresh session begins with, the first among them: a model with a state
    answers by what came before. `python` is the program to run it by; by default the one that has the runtime.
    Returns `Refused` with the reason when the runtime is missing, when the model is refused, crashes the runtime, or
    oversteps the limits.
    """
    limits = limits or Limits()
    with _named(model) as (path, descriptors):
        request = {"model": path, "starts": list(starts)}
        done = _ask(runtime, request, inputs, limits=limits, python=python, descriptors=descriptors)
    if isinstance(done, Refused):
        return done
    result, arrays = done
    try:
        return Ran(
            outputs=arrays,
            latency_p50_us=int(result["latency_p50_us"]),
            latency_p99_us=int(result["latency_p99_us"]),
            peak_rss_bytes=int(result["peak_rss_bytes"]),
            arena_bytes=None if result["arena_bytes"] is None else int(result["arena_bytes"]),
            growth_bytes=int(result["growth_bytes"]),
            signature=codec.from_tree(Signature, result["signature"]),
        )
    # the model may have taken over the child: what it left is judged like any other input
    except (ValueError, KeyError, TypeError, Rejected) as error:
        return Refused(f"expected a result of the model, got {error}")


def race_in_child(
    runtime: str,
    model: Path,
    rival: Path,
    inputs: "Mapping[str, np.ndarray[Any, Any]]",
    *,
    rival_runtime: str = "",
    rival_first: bool = False,
    pairs: int = 400,
    seconds: float = 2.0,
    limits: Limits | None = None,
) -> Raced | Refused:
    """Time two models in one child, warm, one thread, an inference of each in turn, on the same rows.

    Args:
        runtime: of the model, and of the rival unless `rival_runtime` names another one of the same Python.
        model: the candidate's file.
        rival: the file that it is held against.
        inputs: by name, rows first; both models take the same, and rows are used again when they run out.
        rival_runtime: the runtime of the rival.
        rival_first: load and time the rival first: whoever comes second finds another memory layout.
        pairs: the most pairs of inferences.
        seconds: stop after this many, when there are twenty pairs.
        limits: of the child.
    """
    race = {
        "rival": str(rival.resolve()),
        "rival_runtime": rival_runtime or runtime,
        "rival_first": rival_first,
        "pairs": pairs,
        "seconds": seconds,
    }
    done = _ask(runtime, {"model": str(model.resolve()), "race": race}, inputs, limits=limits or Limits(), python=None)
    if isinstance(done, Refused):
        return done
    _, arrays = done
    try:
        model_us, rival_us = arrays.pop("0"), arrays.pop("1")
        outputs = {name.removeprefix("output "): array for name, array in arrays.items()}
        return Raced(outputs=outputs, model_us=model_us, rival_us=rival_us)
    except KeyError as error:
        return Refused(f"expected a result of the race, got none of {error}")


@contextlib.contextmanager
def _named(model: Path | bytes) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield a path of a model for the child, and the descriptors that it needs for that."""
    if isinstance(model, Path):
        yield str(model.resolve()), ()
        return
    descriptor = os.memfd_create("model")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(model)
        yield f"/dev/fd/{descriptor}", (descriptor,)
    finally:
        os.close(descriptor)


def _ask(
    runtime: str,
    request: dict[str, Any],
    inputs: "Mapping[str, np.ndarray[Any, Any]] | None",
    *,
    limits: Limits,
    python: str | None,
    descriptors: tuple[int, ...] = (),
) -> "tuple[dict[str, Any], Arrays] | Refused":
    found = Found(python=python, version="") if python else find_runtime(runtime)
    if isinstance(found, Refused):
        return found
    with tempfile.TemporaryDirectory(prefix="skerry-child-") as name:
        folder = Path(name)
        whole = {"runtime": runtime, **request, **asdict(limits)}
        (folder / "request.json").write_text(json.dumps(whole), encoding="utf-8")
        if inputs is not None:
            (folder / "inputs.npz").write_bytes(pack(inputs))
        refused = _spawn(folder, limits, python=found.python, descriptors=descriptors)
        return refused or _read_result(folder)


def _spawn(folder: Path, limits: Limits, *, python: str, descriptors: tuple[int, ...]) -> Refused | None:
    environment = {}
    if python != sys.executable:
        # another Python is lent this package by a link, and nothing that lies beside it
        (folder / "path").mkdir()
        (folder / "path" / "skerry").symlink_to(Path(skerry.__file__).resolve().parent)
        environment["PYTHONPATH"] = str(folder / "path")
    failure = run_confined(
        "skerry.runtimes.child", folder, limits, python=python, environment=environment, descriptors=descriptors
    )
    if failure is None:
        return None
    if failure.timeout:
        return Refused(f"expected the model to be done in {limits.wall_s:g} s, got a timeout")
    if failure.crash:
        return Refused(f"expected the model to run, got a crash of the runtime by {failure.crash}")
    return Refused(f"expected the model to run, got {failure.said}")


def _read_result(folder: Path) -> "tuple[dict[str, Any], Arrays] | Refused":
    try:
        with (folder / "result.json").open("rb") as file:
            result = json.loads(file.read(MAX_RESULT_BYTES))
        if "refused" in result:
            return Refused(str(result["refused"]))
        return result, unpack((folder / "outputs.npz").read_bytes(), what="outputs")
    # as in `run_in_child`: hostile until read
    except (OSError, ValueError, TypeError, Rejected) as error:
        return Refused(f"expected a result of the model, got {error}")


def main() -> None:
    """Serve one request: the program of the child."""
    folder = Path(sys.argv[1])
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    confine(request)
    try:
        race = request.get("race")
        result = _serve_race(folder, request, race) if race else _serve(folder, request)
    except SkerryError as error:
        result = {"refused": str(error)}
    except MemoryError:
        result = {
            "refused": f"expected a model that fits {request['address_space_bytes']} bytes, got one that does not"
        }
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def _serve(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    runtime, model = request["runtime"], Path(request["model"])
    inputs = _inputs(folder)
    import_runtime(runtime)
    bare = bare_rss_bytes()
    session = _open(runtime, model)
    signature = session.signature()
    outputs, latencies = run_rows(
        session, inputs, starts=request.get("starts", [0]), fresh=lambda: _open(runtime, model)
    )
    peak = peak_rss_bytes()
    (folder / "outputs.npz").write_bytes(pack(outputs))
    arena = None
    if runtime == "tflite-micro" and inputs:
        from skerry.runtimes.micro import least_arena

        arena = least_arena(read_model(model), {name: rows[:1] for name, rows in inputs.items()})
    p50, p99 = timed(latencies)
    return {
        "latency_p50_us": p50,
        "latency_p99_us": p99,
        "peak_rss_bytes": peak,
        "growth_bytes": max(peak - bare, 0),
        "arena_bytes": arena,
        "signature": asdict(signature),
    }


def _serve_race(folder: Path, request: dict[str, Any], race: dict[str, Any]) -> dict[str, Any]:
    inputs = _inputs(folder)
    entries = [(request["runtime"], Path(request["model"])), (race["rival_runtime"], Path(race["rival"]))]
    if race["rival_first"]:
        entries.reverse()
    sessions = [_open(runtime, model) for runtime, model in entries]
    outputs, times = run_in_turn(
        sessions, inputs, watched=int(race["rival_first"]), pairs=race["pairs"], seconds=race["seconds"]
    )
    if race["rival_first"]:
        times.reverse()
    arrays = {str(index): each for index, each in enumerate(times)}
    (folder / "outputs.npz").write_bytes(pack({f"output {name}": each for name, each in outputs.items()} | arrays))
    return {}


def _inputs(folder: Path) -> "Arrays":
    file = folder / "inputs.npz"
    return unpack(file.read_bytes(), what="inputs") if file.exists() else {}


def _open(runtime: str, model: Path) -> Described:
    if runtime == "tflite-micro":
        from skerry.runtimes.micro import MicroSession

        return MicroSession(read_model(model))
    return open_session(runtime, model)


if __name__ == "__main__":
    main()
