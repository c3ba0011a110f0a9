"""Says what this installation is made of: versions of the tools that make models, and the revision of our own code."""

import functools
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from skerry import __version__

CONVERTERS = ("ai-edge-litert", "flatbuffers", "numpy", "onnx", "onnxruntime", "scikit-learn", "tflite-micro")
_SOURCE = Path(__file__).resolve().parent.parent


@functools.cache
def toolchain() -> dict[str, str]:
    """Return versions by name: Python, skerry, its `revision`, and of what converts models whatever is installed."""
    found = {"python": platform.python_version(), "skerry": __version__, "revision": revision(_SOURCE)}
    for name in CONVERTERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def revision(source: Path) -> str:
    """Return the git revision of a checkout, `-dirty` where files were changed, elsewhere the package's version."""
    if not (source / ".git").exists():
        return __version__
    # `--exclude *` leaves tags out: the hash alone names a revision for good
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return __version__
    return said.stdout.strip() or __version__
