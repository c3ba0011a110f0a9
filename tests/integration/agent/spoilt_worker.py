"""A worker whose runtime spoils marked models: the program that the tests of crashes and hangs start instead.

A model with `MARK crash` in its file ends the process by SIGSEGV on an input that begins with 7, one with `MARK hang`
never answers it; with `MARK load` in it, loading is enough. Golden vectors begin with something else.
"""

import os
import signal
import time
from typing import Any

from agent.inference.worker import run
from skerry.runtimes.session import Described, open_session

POISON = 7.0


class Spoilt:
    """A session that does what the mark in its model says."""

    def __init__(self, data: bytes, session: Described) -> None:
        self._crashes, self._hangs = b"MARK crash" in data, b"MARK hang" in data
        self._session = session
        self.signature, self.close = session.signature, session.close

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if next(iter(inputs.values())).flat[0] == POISON:
            if self._crashes:
                os.kill(os.getpid(), signal.SIGSEGV)
            while self._hangs:
                time.sleep(1)
        return self._session.run(inputs)


def opening(runtime: str, data: bytes) -> Described:
    """Open a session, or end."""
    if b"MARK load" in data:
        os.kill(os.getpid(), signal.SIGSEGV)
    return Spoilt(data, open_session(runtime, data))


if __name__ == "__main__":
    run(opening)
