"""Many damaged models, each in a process of its own with limits: the runtimes are imported once, then forked.

    python forked.py FOLDER        # FOLDER/*.onnx and *.tflite; writes FOLDER/outcomes.json

What `import_model` does to one file in a fresh child (normalise, load, run a row of zeros) is done here in a fork, so
that a thousand files take seconds. An outcome is "ran", "refused: ...", "crashed: SIGNAL" or "timeout".
"""

import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np
from ai_edge_litert import interpreter as _litert  # noqa: F401 # loaded once, before the forks

from converters.fold import run, zeros_of
from converters.normalise import normalise
from converters.tflite_face import read_face
from skerry.errors import Rejected
from skerry.runtimes import open_session

ADDRESS_SPACE = 4 << 30
CPU_S = 60
BATCH = 50


def serve(file: Path) -> str:
    """Normalise, load and run one file; returns what came of it."""
    data = file.read_bytes()
    try:
        if file.suffix == ".onnx":
            import onnx

            model = onnx.ModelProto.FromString(normalise(data))
            run(model, zeros_of(model.graph))
        else:
            face = read_face(data)
            session = open_session("litert", file)
            session.run({spec.name: np.zeros(spec.shape, spec.dtype) for spec in face.inputs})
    except Rejected as error:
        return f"refused: {error}"
    except MemoryError:
        return "refused: more memory than there is"
    return "ran"


def in_forks(files: list[Path]) -> dict[str, str]:
    """Serve files in forks with limits: one fork goes on until a file ends it, then another takes the rest."""
    outcomes: dict[str, str] = {}
    while waiting := [file for file in files if file.name not in outcomes][:BATCH]:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            _serve_all(waiting, write)
        os.close(write)
        with os.fdopen(read, encoding="utf-8", errors="replace") as pipe:
            served = [json.loads(line) for line in pipe]
        outcomes |= dict(served)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            ended = waiting[len(served)].name
            outcomes[ended] = f"crashed: {signal.Signals(os.WTERMSIG(status)).name}"
    return outcomes


def _serve_all(files: list[Path], write: int) -> None:
    for what, most in ((resource.RLIMIT_AS, ADDRESS_SPACE), (resource.RLIMIT_CPU, CPU_S), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(what, (most, most))
    for file in files:
        try:
            outcome = serve(file)
        except BaseException:  # noqa: BLE001 # whatever it is, it is a finding, and this process must not go on
            outcome = "raised: " + traceback.format_exc()[-500:]
        os.write(write, json.dumps([file.name, outcome[:2000]]).encode() + b"\n")
    os._exit(0)


def main() -> None:
    """Serve every file of a folder."""
    folder = Path(sys.argv[1])
    started = time.monotonic()
    files = sorted(file for file in folder.iterdir() if file.suffix in {".onnx", ".tflite"})
    outcomes = in_forks(files)
    result = {"outcomes": outcomes, "seconds": time.monotonic() - started}
    (folder / "outcomes.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
