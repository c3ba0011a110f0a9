"""Telling the agent, over its unix socket: what is to be counted, and who died inside a model.

Each request has a connection of its own: on one that is kept, a request that got no answer may have been counted or
not. So a batch is sent once, and is either counted or known to be lost.
"""

import http.client
import json
from enum import Enum
from pathlib import Path

from skerry.errors import Broken
from skerry.inference.local_socket import connect_first
from skerry.local.marker import Crash
from skerry.local.tally import Batch

_TIMEOUT_S = 5.0
_OBSERVATIONS, _CRASHED = "/skerry/v1/observations", "/skerry/v1/crashed"


class Heard(Enum):
    """What became of a batch."""

    COUNTED = "counted"
    LATER = "later"  # nobody there, or no room there: nothing was counted, and it may be sent again
    LOST = "lost"  # refused, or no answer came


class Agent:
    """The agent of one state folder, as far as programs here have something to tell it."""

    def __init__(self, state: Path, *, timeout_s: float = _TIMEOUT_S) -> None:
        self._state = state
        self._timeout_s = timeout_s

    def observe(self, manifest: str, batch: Batch, *, dropped: int) -> Heard:
        """Have rows counted; `dropped` is how many more there were since the last batch that was counted."""
        head = json.dumps({"manifest": manifest, "width": batch.width, "dropped": dropped})
        return self._post(_OBSERVATIONS, head.encode() + b"\n" + batch.data)

    def crashed(self, crash: Crash) -> bool:
        """Tell of a crash; False when it is to be told again."""
        body = json.dumps({"manifest": crash.manifest, "reason": crash.reason[:500]})
        return self._post(_CRASHED, body.encode()) is not Heard.LATER

    def _post(self, path: str, body: bytes) -> Heard:
        connection = http.client.HTTPConnection("localhost", timeout=self._timeout_s)
        try:
            try:
                connection.sock = connect_first(self._state, timeout_s=self._timeout_s)
            except (OSError, Broken):
                return Heard.LATER
            connection.request("POST", path, body, {"Content-Type": "application/octet-stream"})
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return Heard.LOST
        finally:
            connection.close()
        if status == http.client.SERVICE_UNAVAILABLE:
            return Heard.LATER
        return Heard.COUNTED if status < http.client.MULTIPLE_CHOICES else Heard.LOST
