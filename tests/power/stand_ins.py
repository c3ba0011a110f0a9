"""Stands in for what a restart in process cannot afford a thousand times: child processes, and running a model.

The judge is the real one, in this process. Chunks are opened by looking them up. No model is loaded: what a model would
do is known from its manifest's digest, for the artifacts are those of the recording. Everything that touches the state
folder is the agent's own.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self, cast
from unittest.mock import patch

from tuf.api.exceptions import DownloadError, DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface

from agent.inference.loading import Loader
from agent.inference.probing import Measured
from agent.inference.supervisor import Running
from agent.inference.trial import Decision
from agent.inference.workers import Worker
from agent.trust.decision import judge
from agent.trust.metadata import Bounded, Bounds, MetadataSource
from agent.trust.question import DIRECTOR, IMAGE, Judgement, Question
from skerry.delivery.slots import Slots
from skerry.errors import Unavailable
from skerry.wire.manifest import Manifest
from skerry.wire.messages import VERSION
from tests.power.world import World


class _Fetcher(FetcherInterface):
    def __init__(self, source: MetadataSource, repository: str) -> None:
        self._source = source
        self._repository = repository

    def _fetch(self, url: str) -> Iterator[bytes]:
        raise NotImplementedError(url)

    def download_bytes(self, url: str, max_length: int) -> bytes:
        name = url.rsplit("/", 1)[-1]
        try:
            data = self._source.fetch(self._repository, name, limit=max_length)
        except Unavailable as error:
            raise DownloadError(str(error)) from error
        if data is None:
            raise DownloadHTTPError(name, 404)
        return data


def judge_here(question: Question, source: MetadataSource, *, bounds: Bounds | None = None) -> Judgement:
    """Judge as `agent.trust.trust_child` does, without a process for it."""
    bounded = Bounded(source, bounds or Bounds())
    return judge(question, image=_Fetcher(bounded, IMAGE), director=_Fetcher(bounded, DIRECTOR))


def _unsealer(opened: Mapping[bytes, bytes]) -> type[Any]:
    class Unsealer:
        def __init__(self, _content_key: str, **_: object) -> None: ...

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...

        def open(self, sealed: bytes, **_: object) -> bytes | None:
            return opened.get(sealed)

    return Unsealer


class Loop:
    """An engine that runs nothing: it knows what runs, and how a trial of it ends."""

    alive = True
    tried = unkept = ""
    beats = inferences = trial_latency_us = 0
    problem = source_problem = ""
    event_time = 1.0

    def __init__(self, bad: Collection[str], on_decision: Callable[[str, Decision], None]) -> None:
        self._bad = bad
        self._on_decision = on_decision
        self.running: Any = None

    @property
    def word(self) -> str:
        """Whatever is to run does."""
        return "none" if self.running is None else "up"

    def switch(self, running: Any, *, trial: Any = None) -> None:
        """Note what runs; a trial ends at once."""
        self.running = running
        if running is not None and trial is not None:
            passed = running.digest not in self._bad
            self._on_decision(running.digest, Decision(passed, reason="" if passed else "too slow"))

    def roll_back(self, _digest: str) -> bool:
        """Nothing is up beside a trial."""
        return False

    def commit(self) -> None:
        """Nothing is counted here."""

    def stop(self) -> None:
        """There is no thread."""


class _Loader(Loader):
    """Loads what is in a slot as the agent does, up to the worker."""

    def __init__(self, slots: Slots, *, rest_key_file: str) -> None:
        super().__init__(slots, rest_key_file=rest_key_file)
        self.start = lambda _: cast("Worker", SimpleNamespace(close=lambda: None))

    def open_replayed(self, name: str, manifest: Manifest) -> Running:
        return self.open(name, manifest)


@contextmanager
def standing_in(world: World) -> Iterator[None]:
    """Put the stand-ins into the agent's modules."""
    bad = {each.manifest for each in world.assigned if each.bad}

    def make_engine(*, on_decision: Callable[[str, Decision], None], **_: object) -> Loop:
        return Loop(bad, on_decision)

    def ask_version(command: Sequence[str], *, what: str) -> str:
        # of the version in this environment, which lies beside its Python
        said = {"package": str(Path(command[0]).parent.parent / "agent"), "wire": VERSION}
        return json.dumps(said)

    replaced = {
        "agent.trust.judging.ask_child": judge_here,
        "agent.fetching.delivery.Unsealer": _unsealer(world.opened),
        "agent.deployment.effects.probe_model": lambda *_, **__: Measured(latency_p50_us=1, peak_rss_bytes=1),
        "agent.deployment.effects.Loader": _Loader,
        "agent.deployment.unit.Engine": make_engine,
        "agent.upkeep.own_update._ask": ask_version,
    }
    with ExitStack() as stack:
        for name, stand_in in replaced.items():
            stack.enter_context(patch(name, stand_in))
        yield
