"""Probe a runtime, load a model in a child, run it, measure it.

    probe("onnxruntime")                                  # RuntimeInfo, or Refused with the extra to install
    find_runtime("tflite-runtime")                        # Found: by which Python a child can run it, or Refused
    run_in_child("onnxruntime", path, {"window": rows})   # first load of an unknown file: Ran, or Refused
    race_in_child("litert", path, float_path, rows)       # two models timed in turn in one child: Raced, or Refused
    open_session("onnxruntime", path)                     # a model that has passed: in this process

Importing this package imports no NumPy and no runtime: each adapter imports its own.
"""

from skerry.runtimes.child import Raced, Ran, race_in_child, run_in_child
from skerry.runtimes.confined import Limits
from skerry.runtimes.environments import Found, find_runtime, prepare_environment
from skerry.runtimes.session import Refused, RuntimeInfo, Session, Signature, Tensor, open_session, probe

__all__ = [
    "Found",
    "Limits",
    "Raced",
    "Ran",
    "Refused",
    "RuntimeInfo",
    "Session",
    "Signature",
    "Tensor",
    "find_runtime",
    "open_session",
    "prepare_environment",
    "probe",
    "race_in_child",
    "run_in_child",
]
