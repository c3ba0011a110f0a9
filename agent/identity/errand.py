"""Errands that need the device's key, each in a short-lived process (`agent.identity.proof_child`); and the token they
bring."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from skerry.errors import Broken, Rejected, SkerryError, Unavailable
from skerry.wire import codec
from skerry.wire.enrolment import Token

EXIT_CODES: dict[type[SkerryError], int] = {Rejected: 2, Unavailable: 3, Broken: 4}
CHILD_TIMEOUT_S = 120.0
T = TypeVar("T")


def run_errand(errand: str, folder: Path, kind: type[T]) -> T:
    """Run `renew`, `token` or `life` on a state folder and return its answer; raises what the errand raised."""
    # -P: the working folder is not searched for modules
    command = [sys.executable, "-P", "-m", "agent.identity.proof_child", errand, "--state", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=CHILD_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Broken(f"{errand}: expected an answer, got: {error}") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        why = lines[-1][:400] if lines else f"{errand}: expected an answer, got exit status {done.returncode}"
        raise next((each for each, code in EXIT_CODES.items() if code == done.returncode), Broken)(why)
    return codec.decode(kind, done.stdout)


class Tokens:
    """The device's token for HTTPS, bought again before it ends; one thread asks."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._token = ""
        self._until = 0.0

    @property
    def held(self) -> str:
        """The token that is held now; empty before the first."""
        return self._token

    def get(self) -> str:
        """Return a token that is good for a while; raises `Rejected`, `Unavailable` or `Broken`."""
        if not self._token or self._clock() >= self._until:
            bought = run_errand("token", self._folder, Token)
            # by the monotonic clock and with a fifth to spare: no clock is compared with the server's
            self._token, self._until = bought.token, self._clock() + bought.expires_s * 0.8
        return self._token
