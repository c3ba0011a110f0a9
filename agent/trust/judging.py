"""What the agent asks its judge about an assignment: by which road metadata comes, and which manifests it holds.

One judgement is for all components of the device (`Judge`), for one signed set of metadata says what each shall run.
"""

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from agent.config import Config
from agent.fetching.fetch import Retained
from agent.identity.folder import Identity, StateFolder
from agent.link.proxy import parse_proxy
from agent.link.tls import client_context
from agent.trust.assignment import ask_child
from agent.trust.floor import read_floor
from agent.trust.metadata import HttpsMetadata, MetadataSource, RetainedMetadata, assigned, by_road
from agent.trust.question import Held, Judgement, Question, Verdict
from skerry.delivery.slots import MANIFEST, NAMES, Slots
from skerry.errors import Broken, Rejected
from skerry.wire.enrolment import Anchor
from skerry.wire.manifest import target_name


class Judge:
    """Judges each assignment once for all components, in whichever thread asks first; the others take what it decided.

    A component that asks again about the same assignment wants a new decision: the last one was "later".
    """

    def __init__(
        self,
        *,
        folder: StateFolder,
        config: Config,
        link: Retained,
        held: Callable[[], Iterable[Held]],
        token: Callable[[], str],
    ) -> None:
        self._anchor = folder.anchor()
        self._folder = folder
        self._config = config
        self._link = link
        self._held = held
        self._token = token
        self._lock = threading.Lock()
        self._about = ""
        self._judgement = Judgement()
        self._told: set[str] = set()
        self.clock: Callable[[], float] = time.time
        # hears each judgement before any component does: some may be new
        self.judged: Callable[[Judgement], None] = lambda _: None

    def decide(self, payload: bytes, component: str) -> tuple[Verdict, bool]:
        """Return the verdict on a component, and whether the director names it no more.

        Raises:
            Broken: the judge gave no verdict, or the disk refused what follows.
        """
        about = hashlib.sha256(payload).hexdigest()
        with self._lock:
            if about != self._about or component in self._told:
                judgement = judge_all(
                    payload,
                    anchor=self._anchor,
                    folder=self._folder,
                    identity=self._read_identity(),
                    config=self._config,
                    link=self._link,
                    held=self._held(),
                    clock=self.clock(),
                    token=self._token,
                )
                self.judged(judgement)
                self._about, self._judgement, self._told = about, judgement, set()
            self._told.add(component)
            found = self._judgement
        return found.of(component), found.whole and component not in found.components

    def _read_identity(self) -> Identity:
        """Read who this device is, each time: a renewal may have learnt that it refuses automatic releases."""
        try:
            return self._folder.identity()
        except (OSError, Rejected) as error:
            raise Broken(f"{self._folder.identity_file}: expected who this device is, got: {error}") from error


def judge_all(
    payload: bytes,
    *,
    anchor: Anchor,
    folder: StateFolder,
    identity: Identity,
    config: Config,
    link: Retained,
    held: Iterable[Held],
    clock: float,
    token: Callable[[], str],
) -> Judgement:
    """Return the judgement on an assignment that arrived; `clock` is what this machine believes, seconds since 1970.

    Raises:
        Broken: the judge gave no verdict.
    """
    try:
        director = assigned(payload)
    except Rejected as error:
        return Judgement(reason=str(error))
    timeout_s = config.fetch_timeout_s
    mqtt = RetainedMetadata(link, project=identity.project, timeout_s=timeout_s)
    https = None if config.metadata == "mqtt" else _https(folder, identity, anchor, token=token, config=config)
    question = Question(
        anchor=anchor,
        device=identity.device,
        folder=str(folder.trust),
        clock=clock,
        held=tuple(held),
        refuse_automatic=identity.refuse_automatic or config.refuse_automatic,
        certificate=folder.credentials.certificate.read_text(encoding="ascii") if folder.has_certificate else "",
    )
    return ask_child(question, by_road(config.metadata, mqtt=mqtt, director=director, https=https))


def held_manifests(slots: Slots) -> Iterator[Held]:
    """Name the manifests in both slots; one whose digest does not hold is not run, so it needs no standing."""
    for name in NAMES:
        digest = slots.pointer.slot(name).manifest
        with contextlib.suppress(Rejected):
            manifest = slots.read_manifest(name)
            path = target_name(manifest.model, manifest.version, manifest.profile, MANIFEST)
            yield Held(path=path, sha256=digest)


def _https(
    folder: StateFolder, identity: Identity, anchor: Anchor, *, token: Callable[[], str], config: Config
) -> MetadataSource:
    # a clock that is wrong must not keep us from being told better
    context = client_context(anchor.server_ca, floor=read_floor(folder.trust))
    return HttpsMetadata(
        identity.server,
        device=identity.device,
        context=context,
        token=token,
        timeout_s=config.fetch_timeout_s,
        proxy=parse_proxy(config.proxy),
    )
