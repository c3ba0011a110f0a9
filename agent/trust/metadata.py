"""Where TUF metadata comes from: one small port, and a source for each road. Nothing here is trusted, only bounded.

    source = Routed(image=RetainedMetadata(link, project="watch", timeout_s=5.0), director=assigned(payload))
    source = Bounded(source)                 # bytes a file, bytes, requests and seconds altogether
    source.fetch("image", "timestamp.json", limit=16384)      # bytes, or None: there is no such file

File names are as TUF's client asks for them (`timestamp.json`, `5.snapshot.json`, `2.root.json`).
"""

import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from agent.fetching.fetch import Retained
from agent.link.https import call, problem
from agent.link.proxy import Proxy
from agent.trust.question import DIRECTOR, IMAGE
from skerry.errors import Rejected, Unavailable
from skerry.wire import codec, topics
from skerry.wire.messages import Assign, Index

ROADS = ("mqtt", "https", "both")
_NAME = re.compile(r"[A-Za-z0-9._%~-]{1,200}\.json")
_ROOT = re.compile(r"([0-9]{1,9})\.root\.json")


class MetadataSource(Protocol):
    """Whoever can fetch a metadata file of the `image` repository or of the device's own `director`."""

    def fetch(self, repository: str, name: str, *, limit: int) -> bytes | None:
        """Return a file, or None when the repository has none of that name.

        Raises:
            Unavailable: it did not come, or is longer than `limit` bytes: another road or another time may do.
        """


@dataclass(frozen=True, slots=True)
class HeldMetadata:
    """Files that are here already, by repository and name: an assignment's, or those of an offline bundle."""

    files: Mapping[tuple[str, str], bytes]

    def fetch(self, repository: str, name: str, *, limit: int) -> bytes | None:
        """Return a file that is held, under its name with or without a version."""
        data = self.files.get((repository, name))
        version, _, unversioned = name.partition(".")
        # an assignment names its roles without versions; a root is only ever asked for by version
        if data is None and version.isdecimal() and unversioned != "root.json":
            data = self.files.get((repository, unversioned))
        return None if data is None else _within(data, name, limit)


def assigned(payload: bytes) -> HeldMetadata:
    """Return the director's files in an assignment; raises `Rejected` when it cannot be read."""
    metadata = codec.decode(Assign, payload).metadata
    return HeldMetadata({(DIRECTOR, f"{role}.json"): text.encode() for role, text in metadata.items()})


class RetainedMetadata:
    """The image repository as retained on the broker; the index, unsigned, says which roots there are."""

    def __init__(self, link: Retained, *, project: str, timeout_s: float) -> None:
        self._link = link
        self._project = project
        self._timeout_s = timeout_s
        self._index: Index | None = None

    def fetch(self, repository: str, name: str, *, limit: int) -> bytes | None:
        """Return what is retained; a topic that answers nothing within the timeout has no file."""
        if repository != IMAGE:
            return None
        root = _ROOT.fullmatch(name)
        # a topic without a message answers nothing: for the root after the newest that would cost the whole timeout
        if root and int(root[1]) > self._read_index().root:
            return None
        data = self._retained(name.removesuffix(".json"))
        # an empty retained message is the notice that a superseded file was deleted
        return _within(data, name, limit) if data else None

    def _read_index(self) -> Index:
        if self._index is None:
            data = self._retained("index")
            if data is None:
                raise Unavailable("image repository: expected its index on the broker, got no answer")
            try:
                self._index = codec.decode(Index, data)
            except Rejected as error:
                # it is not signed: what it says wrong is no reason to refuse what the director signed
                raise Unavailable(f"image repository: {error}") from error
        return self._index

    def _retained(self, role: str) -> bytes | None:
        topic = topics.tuf(self._project, role)
        return self._link.fetch_retained([topic], timeout_s=self._timeout_s).get(topic)


class HttpsMetadata:
    """Both repositories from the server's HTTPS port; `token` returns the device's bearer token for the director."""

    def __init__(
        self,
        server: str,
        *,
        device: str,
        context: ssl.SSLContext,
        token: Callable[[], str],
        timeout_s: float,
        proxy: Proxy | None = None,
    ) -> None:
        self._server = server
        self._device = device
        self._context = context
        self._token = token
        self._timeout_s = timeout_s
        self._proxy = proxy

    def fetch(self, repository: str, name: str, *, limit: int) -> bytes | None:
        """Return what the server has; 404 is an answer, everything else that is not 200 is none."""
        where = f"director/{self._device}" if repository == DIRECTOR else "image"
        try:
            headers = {"Authorization": f"Bearer {self._token()}"} if repository == DIRECTOR else {}
            answer = call(
                self._server,
                "GET",
                f"/v1/tuf/{where}/{name}",
                context=self._context,
                headers=headers,
                limit=limit,
                timeout_s=self._timeout_s,
                proxy=self._proxy,
            )
        except Rejected as error:
            # no token for us, another certificate, too many bytes: whoever sits in between can deny, and no more
            raise Unavailable(str(error)) from error
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise Unavailable(
                f"{name}: expected status 200 from {self._server}, got {answer.status}: {problem(answer)}"
            )
        return answer.body


@dataclass(frozen=True, slots=True)
class Routed:
    """One source for each repository."""

    image: MetadataSource
    director: MetadataSource

    def fetch(self, repository: str, name: str, *, limit: int) -> bytes | None:
        """Ask the one that the repository belongs to."""
        source = self.director if repository == DIRECTOR else self.image
        return source.fetch(repository, name, limit=limit)


@dataclass(frozen=True, slots=True)
class Either:
    """A second road for what the first does not have."""

    first: MetadataSource
    second: MetadataSource

    def fetch(self, repository: str, name: str, *, limit: int) -> bytes | None:
        """Ask the first, and the second where that has nothing or does not answer."""
        try:
            data = self.first.fetch(repository, name, limit=limit)
        except Unavailable:
            return self.second.fetch(repository, name, limit=limit)
        # the first road's word that there is no newer root is final: asking twice would cost every refresh a request
        if data is not None or _ROOT.fullmatch(name):
            return data
        return self.second.fetch(repository, name, limit=limit)


def by_road(
    road: str, *, mqtt: MetadataSource, director: MetadataSource, https: MetadataSource | None = None
) -> MetadataSource:
    """Return the source for one of `ROADS`; `director` is the assignment that came by MQTT, `https` has both.

    Over `https` the assignment is no more than the news that there is one.
    """
    if https is None or road == "mqtt":
        return Routed(image=mqtt, director=director)
    if road == "https":
        return https
    return Routed(image=Either(mqtt, https), director=Either(director, https))


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one decision may cost, whatever the other side sends."""

    file_bytes: int = 1 << 20
    total_bytes: int = 8 << 20
    total_s: float = 60.0
    requests: int = 600  # 256 rotations of each root, and some delegations


class Bounded:
    """A source that stops when a bound is reached; `clock` counts seconds."""

    def __init__(
        self, source: MetadataSource, bounds: Bounds | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._source = source
        self._bounds = bounds or Bounds()
        self._clock = clock
        self._began = clock()
        self._bytes = 0
        self._requests = 0

    def fetch(self, repository: str, name: str, *, limit: int) -> bytes | None:
        """Fetch within what is left; raises `Unavailable` when a bound is reached, and for names no file can have."""
        bounds = self._bounds
        if not _NAME.fullmatch(name):
            raise Unavailable(f"{repository} repository: expected a name of a metadata file, got {name[:60]!r}")
        self._requests += 1
        if self._requests > bounds.requests:
            raise Unavailable(f"{repository} repository: expected at most {bounds.requests} files, got asked for more")
        limit = min(limit, bounds.file_bytes, bounds.total_bytes - self._bytes)
        data = self._source.fetch(repository, name, limit=limit)
        took = self._clock() - self._began
        if took > bounds.total_s:
            raise Unavailable(f"{repository} repository: expected {name} within {bounds.total_s:g} s, got {took:.0f} s")
        if data is not None:
            self._bytes += len(_within(data, name, limit))
        return data


def _within(data: bytes, name: str, limit: int) -> bytes:
    if len(data) > limit:
        raise Unavailable(f"{name}: expected at most {limit} bytes, got {len(data)}")
    return data
