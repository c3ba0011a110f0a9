"""Probe a runtime, load a model in a child, run it, measure it.

    probe("onnxruntime")                                  # RuntimeInfo, or Refused with the extra to install
    run_in_child("onnxruntime", path, {"window": rows})   # first load of an unknown file: Ran, or Refused
    open_session("onnxruntime", path)                     # a model that has passed: in this process

Importing this package imports no NumPy and no runtime: each adapter imports its own.
"""

from skerry.runtimes.child import Limits, Ran, run_in_child
from skerry.runtimes.session import Refused, RuntimeInfo, Session, open_session, probe

__all__ = ["Limits", "Ran", "Refused", "RuntimeInfo", "Session", "open_session", "probe", "run_in_child"]
