"""Is an installed runtime one that we run with: by its version, and by whether it can be imported at all?"""

import re
import subprocess
from importlib import metadata

from skerry.errors import Broken
from skerry.runtimes import Found

IMPORT_S = 10.0
_DISTRIBUTIONS = {"onnxruntime": ("onnxruntime", "onnx"), "litert": ("ai-edge-litert", "litert")}
_MODULES = {
    "onnxruntime": "onnxruntime",
    "litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
}


def check_runtime(runtime: str, found: Found) -> None:
    """Raise `Broken` when it is too old or too new, or cannot be imported; the message says what to install."""
    distribution, extra = _DISTRIBUTIONS.get(runtime, ("", ""))
    remedy = f"pip install 'skerry[{extra}]'" if extra else f"skerry profile prepare, for {runtime}"
    for bound in _bounds(distribution):
        if not within(found.version, bound):
            raise Broken(f"expected {runtime}{bound}, got {found.version}; {remedy}")
    module = _MODULES.get(runtime, "")
    # a wheel of another architecture is installed without a word; -P: nothing is imported from the working folder
    command = [found.python, "-P", "-c", f"import {module}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=IMPORT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise Broken(
            f"expected {runtime} to be imported within {IMPORT_S:g} s, got nothing; is the disk slow?"
        ) from error
    if done.returncode:
        last = ([line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"])[-1]
        raise Broken(
            f"expected to import {runtime} {found.version}, got: {last.strip()[:160]}; {remedy}, for this machine"
        )


def within(version: str, bound: str) -> bool:
    """Say whether a version lies within one bound such as `>=1.20` or `<2.4`; what cannot be compared is let pass."""
    match = re.fullmatch(r"(>=|<)([0-9.]+)", bound)
    mine = _numbers(version)
    if match is None or not mine:
        return True
    limit = _numbers(match[2])
    width = max(len(mine), len(limit))
    mine, limit = (each + (0,) * (width - len(each)) for each in (mine, limit))
    return mine >= limit if match[1] == ">=" else mine < limit


def _bounds(distribution: str) -> list[str]:
    """Return what the installed Skerry itself says of a distribution: each extra has its bounds there."""
    try:
        wanted = metadata.requires("skerry") or []
    except metadata.PackageNotFoundError:
        return []
    for requirement in wanted:
        name, _, _ = requirement.partition(";")
        if distribution and re.match(rf"{re.escape(distribution)}(?![\w-])", name):
            return [each.strip() for each in name[len(distribution) :].split(",") if each.strip()]
    return []


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()
