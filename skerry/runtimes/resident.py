"""How much memory a process holds, and how much of that is the bare runtime's; as Linux's /proc tells."""

import contextlib
import importlib
import resource
from pathlib import Path

_MODULES = {
    "onnxruntime": "skerry.runtimes.onnx",
    "litert": "skerry.runtimes.litert",
    "tflite-micro": "skerry.runtimes.micro",
    "tflite-runtime": "tflite_runtime.interpreter",
}
"""What to import for a runtime to be in memory."""


def import_runtime(runtime: str) -> None:
    """Import a runtime, so that its memory is there before the model's; whether it is there is for others to say."""
    with contextlib.suppress(ImportError):
        importlib.import_module(_MODULES[runtime])


def bare_rss_bytes() -> int:
    """Set the peak of this process back to what it holds now, and return that."""
    with contextlib.suppress(OSError):  # no /proc on this system, or a kernel without it
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak_rss_bytes()


def peak_rss_bytes(process: int | str = "self") -> int:
    """Return the most resident memory that a process ever held; 0 where nobody tells."""
    # not ru_maxrss if there is another: Linux carries the parent's peak over fork and exec into it
    try:
        for line in Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if process == "self" else 0
