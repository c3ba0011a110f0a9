"""The agent's configuration: one frozen dataclass, TOML in, checked once."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agent.link.backoff import Backoff
from agent.link.proxy import parse_proxy
from agent.trust.metadata import ROADS
from skerry.errors import Rejected
from skerry.wire import codec
from skerry.wire.manifest import MAX_SAMPLE_BYTES, MAX_SAMPLE_ROWS
from skerry.wire.requests import VERBS

DEFAULT = "default"
MOST_S = 7 * 86400.0
"""Longer than anybody waits, and shorter than what a lock of the platform can wait."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What one component may take of this device, in bytes; 0 is no limit.

    `disk_bytes` is for its slots, `memory_bytes` by how much the worker with its model may grow during a trial.
    """

    disk_bytes: int = 0
    memory_bytes: int = 0

    def __post_init__(self) -> None:
        for name in ("disk_bytes", "memory_bytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")

    def least_memory(self, other: int) -> int:
        """Return the smaller one of two limits of memory, of which either may be none."""
        return min(filter(None, (self.memory_bytes, other)), default=0)


@dataclass(frozen=True, slots=True)
class Config:
    """What an owner may set, in `config.toml` of the state folder or by options of `run`.

    `rate` is inferences per second of the real clock (0: as fast as the machine can), `event_step_s` event time per
    inference (0: the event clock is the real one), `window_rows` inferences per report (0: what the monitor says),
    `save_rows` how many rows of the open window a power cut may cost. `metadata` is the road of TUF metadata, and
    `refuse_automatic` refuses releases that no offline key has signed. `rest_key_file` is the key that artifacts are
    sealed with on this disk (`agent.fetching.rest`). `metered_file` is a file that exists while the link is metered;
    its owner's network manager makes and removes it. `requests` are the remote requests that its owner allows
    (`skerry.wire.requests`). `source` is where inputs come from (`agent.inference.feeds`; `replay` is its older form),
    `serve` where the model can be asked (`unix`, HOST:PORT on loopback, or `off`), `serve_keep_bytes` the room for
    results of equal inputs (0: none is kept), and an inference that takes longer than
    `infer_timeout_s` is a hang. `resume_bytes_s` bounds the rate at which the outbox is emptied after an outage (0: no
    limit), and `sample_rows` and `sample_bytes` what may be kept of a window's inputs, where the manifest allows any.
    `proxy` is the way out of a network that has one (`agent.link.proxy`), `keep_alive_s` the silence after which the
    link is tried (shorter than a NAT's memory); over `reconnect_s` seconds the devices that lost a broker spread their
    first attempts. `budgets` are limits of components by name, `default` that of all others, and `sources` what
    `source` is for the one without a name.
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
    source: str = ""
    serve: str = "unix"
    serve_keep_bytes: int = 0
    infer_timeout_s: float = 30.0
    requests: tuple[str, ...] = VERBS
    resume_bytes_s: int = 4096
    sample_rows: int = MAX_SAMPLE_ROWS
    sample_bytes: int = MAX_SAMPLE_BYTES
    budgets: dict[str, Budget] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    proxy: str = field(default="", repr=False)
    keep_alive_s: int = 60
    reconnect_s: float = 10.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if isinstance(getattr(self, name), float) and not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name}: expected a finite number, got {getattr(self, name)}")
        for name in ("rate", "event_step_s", "serve_keep_bytes", "resume_bytes_s", "sample_rows", "sample_bytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        self._check_times()
        self._check_link()
        if self.metadata not in ROADS:
            raise ValueError(f"metadata: expected one of {', '.join(ROADS)}, got {self.metadata!r}")
        if not set(self.requests) <= set(VERBS):
            raise ValueError(f"requests: expected some of {', '.join(VERBS)}, got {', '.join(self.requests)!r:.80}")
        if self.serve != "off":
            # here: whoever only reads a configuration need not load the local face with it
            from agent.local.serving import parse_serve

            parse_serve(self.serve)
        if self.window_rows < 0:
            raise ValueError(f"window_rows: expected 0 or more, got {self.window_rows}")
        if self.quota_bytes < 512 * 1024:
            raise ValueError(f"quota_bytes: expected at least {512 * 1024}, got {self.quota_bytes}")

    def _check_times(self) -> None:
        times = ("report_every_s", "ack_timeout_s", "fetch_timeout_s", "retry_s", "retry_most_s", "infer_timeout_s")
        for name in ("save_rows", *times):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")
        most = max(times, key=self.__getattribute__)
        if getattr(self, most) > MOST_S:
            raise ValueError(f"{most}: expected at most {MOST_S:g} s, got {getattr(self, most):g}")

    def _check_link(self) -> None:
        if not 15 <= self.keep_alive_s <= 1200:
            raise ValueError(f"keep_alive_s: expected 15 to 1200, got {self.keep_alive_s}")
        Backoff(self.reconnect_s)
        parse_proxy(self.proxy)

    def budget(self, component: str) -> Budget:
        """Return what a component may take."""
        return self.budgets.get(component or DEFAULT, self.budgets.get(DEFAULT, Budget()))


def read_config(folder: Path, options: dict[str, Any]) -> Config:
    """Return the configuration of a state folder; `options` that are not None win over its `config.toml`."""
    path = folder / "config.toml"
    tree: dict[str, Any] = {}
    if path.exists():
        import tomllib  # half a megabyte that a device without such a file does not need

        try:
            # some editors begin a file with the mark of its byte order
            tree = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise Rejected(f"{path}: expected TOML, got: {error}") from error
        _check_settings(tree, Config, where=f"{path}")
        budgets = tree.get("budgets")
        for name, budget in budgets.items() if isinstance(budgets, dict) else ():
            _check_settings(budget, Budget, where=f"{path}: budgets.{name}")
    try:
        config = codec.from_tree(Config, tree)
    except Rejected as error:
        # whoever wrote the file knows nothing of a class
        problem = str(error).removeprefix("Config").lstrip(".: ")
        raise Rejected(f"{path}: {problem}") from error
    try:
        return replace(config, **{name: value for name, value in options.items() if value is not None})
    except ValueError as error:
        raise Rejected(f"options: {error}") from error


def _check_settings(tree: Any, kind: type[Config | Budget], *, where: str) -> None:
    known = kind.__slots__
    unknown = sorted(tree.keys() - set(known)) if isinstance(tree, dict) else []
    if unknown:
        raise Rejected(f"{where}: expected settings that there are, got {', '.join(unknown)}; try {', '.join(known)}")
