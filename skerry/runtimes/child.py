"""A model in a child process with limits: a crash, a timeout or a memory bomb comes back to the parent as a value.

The parent writes `request.json` and `inputs.npz` into a temporary folder and runs `python -m skerry.runtimes.child
FOLDER`; the child limits itself, loads the model, runs it row by row and writes `outputs.npz` and `result.json`.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry.errors import Rejected, SkerryError
from skerry.runtimes.arrays import pack, unpack
from skerry.runtimes.session import Refused, Session, open_session, probe, read_model

if TYPE_CHECKING:
    import numpy as np

    Arrays = dict[str, np.ndarray[Any, Any]]

WARM_UP_ROWS = 10
MAX_RESULT_BYTES = 64 * 1024
PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "LANG", "LC_ALL", "TMPDIR")
"""What the child sees of the environment: a hostile model has no business with passphrases and tokens."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a child may use: address space and output files in bytes, CPU and wall clock in seconds."""

    address_space_bytes: int = 4 << 30
    file_bytes: int = 256 << 20
    cpu_s: int = 60
    wall_s: float = 90.0


@dataclass(frozen=True, slots=True, eq=False)
class Ran:
    """What a model did in the child: outputs by name (rows first), and what it cost.

    Latencies are of one inference, in microseconds, 0 without inputs. `peak_rss_bytes` is the most resident memory of
    the whole child, interpreter and runtime included. `arena_bytes` is what TFLite Micro needs, None elsewhere.
    """

    outputs: "Arrays"
    latency_p50_us: int
    latency_p99_us: int
    peak_rss_bytes: int
    arena_bytes: int | None


def run_in_child(
    runtime: str,
    model: Path,
    inputs: "Mapping[str, np.ndarray[Any, Any]] | None" = None,
    *,
    limits: Limits | None = None,
) -> Ran | Refused:
    """Load a model in a child process and run it once for every row of `inputs` (by name, rows first).

    Without inputs it is only loaded. Returns `Refused` with the reason when the runtime is missing, when the model is
    refused, crashes the runtime, or oversteps the limits.
    """
    found = probe(runtime)
    if isinstance(found, Refused):
        return found
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="skerry-child-") as name:
        folder = Path(name)
        request = {"runtime": runtime, "model": str(model.resolve()), **asdict(limits)}
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        if inputs is not None:
            (folder / "inputs.npz").write_bytes(pack(inputs))
        failure = _spawn(folder, limits)
        return failure or _read_result(folder)


def _spawn(folder: Path, limits: Limits) -> Refused | None:
    # -P: the working folder is not searched for modules; one thread: a measurement is of one core
    command = [sys.executable, "-P", "-m", "skerry.runtimes.child", str(folder)]
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with (folder / "stderr").open("wb") as stderr:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            code = child.wait(timeout=limits.wall_s)
        except subprocess.TimeoutExpired:
            return Refused(f"expected the model to be done in {limits.wall_s:g} s, got a timeout")
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    if code == 0:
        return None
    if code < 0:
        return Refused(f"expected the model to run, got a crash of the runtime by {signal.Signals(-code).name}")
    with (folder / "stderr").open("rb") as stderr:
        stderr.seek(-min(4096, os.fstat(stderr.fileno()).st_size), os.SEEK_END)
        lines = stderr.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
    return Refused(f"expected the model to run, got exit code {code}: {last[:200]}")


def _read_result(folder: Path) -> Ran | Refused:
    try:
        with (folder / "result.json").open("rb") as file:
            result = json.loads(file.read(MAX_RESULT_BYTES))
        if "refused" in result:
            return Refused(str(result["refused"]))
        return Ran(
            outputs=unpack((folder / "outputs.npz").read_bytes(), what="outputs"),
            latency_p50_us=int(result["latency_p50_us"]),
            latency_p99_us=int(result["latency_p99_us"]),
            peak_rss_bytes=int(result["peak_rss_bytes"]),
            arena_bytes=None if result["arena_bytes"] is None else int(result["arena_bytes"]),
        )
    # the model may have taken over the child: what it left is judged like any other input
    except (OSError, ValueError, KeyError, TypeError, Rejected) as error:
        return Refused(f"expected a result of the model, got {error}")


def main() -> None:
    """Serve one request: the program of the child."""
    folder = Path(sys.argv[1])
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    _limit(request)
    try:
        result = _serve(folder, request["runtime"], Path(request["model"]))
    except SkerryError as error:
        result = {"refused": str(error)}
    except MemoryError:
        result = {
            "refused": f"expected a model that fits {request['address_space_bytes']} bytes, got one that does not"
        }
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def _limit(request: dict[str, Any]) -> None:
    for what, most in (
        (resource.RLIMIT_AS, request["address_space_bytes"]),
        (resource.RLIMIT_FSIZE, request["file_bytes"]),
        (resource.RLIMIT_CPU, request["cpu_s"]),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (limit, limit))


def _serve(folder: Path, runtime: str, model: Path) -> dict[str, Any]:
    inputs_file = folder / "inputs.npz"
    inputs = unpack(inputs_file.read_bytes(), what="inputs") if inputs_file.exists() else {}
    session = _open(runtime, model)
    outputs, latencies = _run_rows(session, inputs)
    (folder / "outputs.npz").write_bytes(pack(outputs))
    peak = _peak_rss_bytes()
    arena = None
    if runtime == "tflite-micro" and inputs:
        from skerry.runtimes.micro import least_arena

        arena = least_arena(read_model(model), {name: rows[:1] for name, rows in inputs.items()})
    timed = sorted(latencies[WARM_UP_ROWS:] or latencies) or [0]
    return {
        "latency_p50_us": timed[len(timed) // 2],
        "latency_p99_us": timed[len(timed) * 99 // 100],
        "peak_rss_bytes": peak,
        "arena_bytes": arena,
    }


def _open(runtime: str, model: Path) -> Session:
    if runtime == "tflite-micro":
        from skerry.runtimes.micro import MicroSession

        return MicroSession(read_model(model))
    return open_session(runtime, model)


def _run_rows(session: Session, inputs: "Arrays") -> "tuple[Arrays, list[int]]":
    """Run every row as a batch of one; returns outputs with rows first, and microseconds per inference."""
    import numpy as np

    lengths = {len(rows) for rows in inputs.values()}
    if len(lengths) > 1:
        raise Rejected(f"inputs: expected equally many rows of each, got {sorted(lengths)}")
    results, latencies = [], []
    for index in range(lengths.pop() if lengths else 0):
        row = {name: rows[index : index + 1] for name, rows in inputs.items()}
        started = time.perf_counter_ns()
        results.append(session.run(row))
        latencies.append((time.perf_counter_ns() - started) // 1000)
    if not results:
        return {}, latencies
    return {name: np.concatenate([result[name] for result in results]) for name in results[0]}, latencies


def _peak_rss_bytes() -> int:
    # not ru_maxrss: Linux carries the parent's peak over fork and exec into it
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # no /proc on this system
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
