"""LiteRT (TFLite's successor) behind the session port."""

from ai_edge_litert.interpreter import Interpreter

from skerry.runtimes.tflite import TfliteSession


def open_litert(data: bytes, *, threads: int) -> TfliteSession:
    """Load a model; raises `Rejected` when LiteRT refuses it."""
    return TfliteSession(Interpreter, data, threads=threads, runtime="LiteRT")
