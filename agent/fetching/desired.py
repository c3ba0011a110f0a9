"""The desired configuration on the device: kept durably before the broker hears that it arrived, counted by version.

One that cannot be obeyed is refused as a whole and the last one stays; the twin says the version that is obeyed, and
what of the newest one is not.
"""

import logging
from dataclasses import fields
from pathlib import Path

from agent.fetching.pace import Wishes
from skerry.delivery.checked import add_sum, check_sum
from skerry.delivery.durable import write_durably
from skerry.errors import Rejected
from skerry.wire import codec
from skerry.wire.messages import Desired

_log = logging.getLogger("skerry.agent.desired")


class DesiredFile:
    """The last configuration that could be obeyed; one thread offers, any reads."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "desired.json"
        self.version = 0
        self.wishes = Wishes()
        self.problem = ""
        self.refused = ""
        if self._file.exists():
            # one that an older agent kept and this one cannot obey: without any, until it comes again
            self._take(self._file.read_bytes())

    def offer(self, payload: bytes) -> bool:
        """Obey a configuration from now on; False for one that is known, older or refused, or for a cleared topic.

        Raises:
            Broken: the disk refused; nothing has changed.
        """
        version = self.version
        if not payload:
            return False
        try:
            desired, wishes = _read(payload)
        except Rejected as error:
            self._refuse(error)
            return False
        # a broker that was restored from a copy may say what was said long ago
        if desired.version <= version:
            return False
        write_durably(self._file, add_sum(payload))
        self.wishes, self.version, self.problem = wishes, desired.version, ""
        self.refused = _left_out(desired)
        return True

    def _take(self, payload: bytes) -> None:
        try:
            # a version that rot has raised would make this device deaf to those in between
            desired, self.wishes = _read(check_sum(payload))
            self.version, self.refused = desired.version, _left_out(desired)
        except Rejected as error:
            self._refuse(error)

    def _refuse(self, error: Rejected) -> None:
        self.problem = f"desired configuration: {error}"
        self.refused = str(error)
        _log.warning("%s", self.problem)


def _left_out(desired: Desired) -> str:
    """Say what of a configuration is followed by nobody here: a newer control plane knows more than this agent."""
    unknown = sorted(desired.config.keys() - {each.name for each in fields(Wishes)})
    return f"version {desired.version}: {', '.join(unknown)} is not known to this agent"[:200] if unknown else ""


def _read(payload: bytes) -> tuple[Desired, Wishes]:
    desired = codec.decode(Desired, payload)
    # what it does not know, an older agent leaves out: the version says what was heard, not what was understood
    return desired, codec.from_tree(Wishes, desired.config)
