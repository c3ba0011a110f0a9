"""The legacy `tflite-runtime` 2.14 behind the session port, for boards on 32-bit ARM that LiteRT has no wheel for.

It wants NumPy 1 and Python 3.11: with NumPy 2 it imports and then fails at the first interpreter. Run as a program, by
the Python in question, this file builds an interpreter and prints the runtime's version; nothing of Skerry is imported.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skerry.runtimes.tflite import TfliteSession

# one float32 tensor of one element that is input and output, no operator: written once with LiteRT's schema
SMALLEST = bytes.fromhex(
    "1800000054464c3300000e00140010000c000800000004000e000000100000001c000000840000000300000001000000"
    "08000000040004000400000001000000100000000c00140010000c00080004000c000000100000001000000014000000"
    "18000000000000000100000000000000010000000000000001000000100000000c000c0008000000000004000c000000"
    "080000000c0000000100000078000000010000000100000000000000"
)


def open_tflite_runtime(data: bytes, *, threads: int) -> "TfliteSession":
    """Load a model; raises `Rejected` when the runtime refuses it."""
    from tflite_runtime.interpreter import Interpreter  # type: ignore[import-not-found,unused-ignore] # not installed

    from skerry.runtimes.tflite import TfliteSession

    return TfliteSession(Interpreter, data, threads=threads, runtime="tflite-runtime")


def main() -> None:
    """Build an interpreter, run it once, and print the version; any failure is the answer."""
    import importlib.metadata

    from tflite_runtime.interpreter import Interpreter  # type: ignore[import-not-found,unused-ignore] # not installed

    interpreter = Interpreter(model_content=SMALLEST)
    interpreter.allocate_tensors()
    interpreter.invoke()
    print(importlib.metadata.version("tflite-runtime"))


if __name__ == "__main__":
    main()
