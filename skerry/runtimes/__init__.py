"""Probe a runtime, load a model in a child, run it, measure it.

    probe("onnxruntime")                                  # RuntimeInfo, or Refused with the extra to install
    find_runtime("tflite-runtime")                        # Found: by which Python a child can run it, or Refused
    run_in_child("onnxruntime", path, {"window": rows})   # first load of an unknown file: Ran, or Refused
    race_in_child("litert", path, float_path, rows)       # two models timed in turn in one child: Raced, or Refused
    open_session("onnxruntime", path)                     # a model that has passed: in this process

Importing this package imports none of it: what a name stands for is imported when it is asked for, so that a program
that only opens a session has nothing in memory of children and environments, and none has NumPy before a model.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
_HOMES = {
    **dict.fromkeys(("Raced", "Ran", "race_in_child", "run_in_child"), "child"),
    "Limits": "confined",
    **dict.fromkeys(("Found", "find_runtime", "prepare_environment"), "environments"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'session')}"), name)
