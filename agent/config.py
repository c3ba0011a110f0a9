"""The agent's configuration: one frozen dataclass, TOML in, checked once."""

import math
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.metadata import ROADS
from skerry.errors import Rejected
from skerry.wire import codec


@dataclass(frozen=True, slots=True)
class Config:
    """What an owner may set, in `config.toml` of the state folder or by options of `run`.

    `rate` is inferences per second of the real clock (0: as fast as the machine can), `event_step_s` event time per
    inference (0: the event clock is the real one), `window_rows` inferences per report (0: what the monitor says),
    `save_rows` how many rows of the open window a power cut may cost. `metadata` is the road of TUF metadata, and
    `refuse_automatic` refuses releases that no offline key has signed. `rest_key_file` is the key that artifacts are
    sealed with on this disk (`agent.rest`). `metered_file` is a file that exists while the link is metered; its owner's
    network manager makes and removes it.
    """

    replay: str = ""
    seed: int = 0
    rate: float = 10.0
    event_step_s: float = 0.0
    window_rows: int = 0
    save_rows: int = 50
    quota_bytes: int = 4 << 20
    report_every_s: float = 2.0
    ack_timeout_s: float = 5.0
    fetch_timeout_s: float = 5.0
    retry_s: float = 2.0
    retry_most_s: float = 60.0
    broker: str = ""
    metadata: str = "mqtt"
    refuse_automatic: bool = False
    rest_key_file: str = ""
    metered_file: str = ""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if isinstance(getattr(self, name), float) and not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name}: expected a finite number, got {getattr(self, name)}")
        for name in ("rate", "event_step_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        for name in ("save_rows", "report_every_s", "ack_timeout_s", "fetch_timeout_s", "retry_s", "retry_most_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")
        if self.metadata not in ROADS:
            raise ValueError(f"metadata: expected one of {', '.join(ROADS)}, got {self.metadata!r}")
        if self.window_rows < 0:
            raise ValueError(f"window_rows: expected 0 or more, got {self.window_rows}")
        if self.quota_bytes < 512 * 1024:
            raise ValueError(f"quota_bytes: expected at least {512 * 1024}, got {self.quota_bytes}")


def read_config(folder: Path, options: dict[str, Any]) -> Config:
    """Return the configuration of a state folder; `options` that are not None win over its `config.toml`."""
    path = folder / "config.toml"
    tree: dict[str, Any] = {}
    if path.exists():
        try:
            tree = tomllib.loads(path.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise Rejected(f"{path}: expected TOML, got: {error}") from error
        unknown = sorted(tree.keys() - set(Config.__slots__))
        if unknown:
            raise Rejected(f"{path}: expected settings among {', '.join(Config.__slots__)}, got {', '.join(unknown)}")
    config = codec.from_tree(Config, tree)
    try:
        return replace(config, **{name: value for name, value in options.items() if value is not None})
    except ValueError as error:
        raise Rejected(f"options: {error}") from error
