"""Normalising a stranger's file in a child process with limits: parsers in C++ may crash, folding may want memory.

    normalise_in_child(data, shapes={})      # bytes, or Rejected with the reason

The parent writes `model` and `request.json` into a temporary folder and runs `python -m converters.import_child
FOLDER`; the child limits itself and writes `normalised` or `refused`.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from converters.checks import MAX_MODEL_BYTES, printable
from skerry.errors import Rejected
from skerry.runtimes import Limits

LIMITS = Limits(address_space_bytes=2 << 30, file_bytes=2 * MAX_MODEL_BYTES, cpu_s=60, wall_s=90.0)
PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "LANG", "LC_ALL", "TMPDIR")


def normalise_in_child(data: bytes, *, shapes: Mapping[str, tuple[int, ...]], limits: Limits = LIMITS) -> bytes:
    """Return `converters.normalise.normalise(data, shapes=shapes)`, computed where it can do no harm.

    Raises:
        Rejected: the model is refused, crashes the child, or oversteps the limits; in one line.
    """
    with tempfile.TemporaryDirectory(prefix="skerry-import-") as name:
        folder = Path(name)
        (folder / "model").write_bytes(data)
        request = {
            "shapes": {key: list(shape) for key, shape in shapes.items()},
            "address_space_bytes": limits.address_space_bytes,
            "file_bytes": limits.file_bytes,
            "cpu_s": limits.cpu_s,
        }
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        _spawn(folder, wall_s=limits.wall_s)
        if (folder / "normalised").is_file():
            return _read(folder / "normalised", most=limits.file_bytes)
        if (folder / "refused").is_file():
            raise Rejected(_read(folder / "refused", most=4096).decode(errors="replace"))
        raise Rejected("model file: expected a model that can be normalised, got a child that said nothing")


def _read(file: Path, *, most: int) -> bytes:
    with file.open("rb") as opened:
        return opened.read(most)


def _spawn(folder: Path, *, wall_s: float) -> None:
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with (folder / "stderr").open("wb") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "converters.import_child", str(folder)],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            start_new_session=True,
        )
    try:
        code = child.wait(timeout=wall_s)
    except subprocess.TimeoutExpired as error:
        raise Rejected(f"model file: expected to be normalised in {wall_s:g} s, got a timeout") from error
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if code:
        lines = _read(folder / "stderr", most=1 << 20).decode(errors="replace").splitlines()
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
        got = f"a crash by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}: {last[:160]}"
        raise Rejected(f"model file: expected a model that can be normalised, got {got}")


def main() -> None:
    """Serve one request: the program of the child."""
    folder = Path(sys.argv[1])
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    for what, most in (
        (resource.RLIMIT_AS, request["address_space_bytes"]),
        (resource.RLIMIT_FSIZE, request["file_bytes"]),
        (resource.RLIMIT_CPU, request["cpu_s"]),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (limit, limit))
    # after the limits: what is imported here reads the file
    from converters.normalise import normalise

    shapes = {name: tuple(shape) for name, shape in request["shapes"].items()}
    try:
        out = normalise((folder / "model").read_bytes(), shapes=shapes)
    except Rejected as error:
        (folder / "refused").write_text(printable(str(error), most=1000), encoding="utf-8")
    except MemoryError:
        (folder / "refused").write_text("model file: expected one that fits in memory, got more", encoding="utf-8")
    else:
        (folder / "normalised").write_bytes(out)


if __name__ == "__main__":
    main()
