"""What the agent asks its judge about an assignment: by which road metadata comes, and which manifests it holds."""

import contextlib
from collections.abc import Callable, Iterator

from agent.assignment import ask_child
from agent.config import Config
from agent.fetch import Retained
from agent.floor import read_floor
from agent.identity import Identity, StateFolder
from agent.metadata import HttpsMetadata, MetadataSource, RetainedMetadata, assigned, by_road
from agent.question import Held, Question, Verdict
from agent.tls import client_context
from skerry.delivery.slots import MANIFEST, NAMES, Slots
from skerry.errors import Rejected
from skerry.wire.manifest import target_name
from skerry.wire.messages import Anchor


def judge_assignment(
    payload: bytes,
    *,
    anchor: Anchor,
    folder: StateFolder,
    identity: Identity,
    config: Config,
    link: Retained,
    slots: Slots,
    clock: float,
    token: Callable[[], str],
) -> Verdict:
    """Return the verdict on an assignment that arrived; `clock` is what this machine believes, seconds since 1970.

    Raises:
        Broken: the judge gave no verdict.
    """
    try:
        director = assigned(payload)
    except Rejected as error:
        return Verdict(ok=False, reason=str(error))
    timeout_s = config.fetch_timeout_s
    mqtt = RetainedMetadata(link, project=identity.project, timeout_s=timeout_s)
    https = None if config.metadata == "mqtt" else _https(folder, identity, anchor, token=token, timeout_s=timeout_s)
    question = Question(
        anchor=anchor,
        device=identity.device,
        folder=str(folder.trust),
        clock=clock,
        held=tuple(held_manifests(slots)),
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
    folder: StateFolder, identity: Identity, anchor: Anchor, *, token: Callable[[], str], timeout_s: float
) -> MetadataSource:
    # a clock that is wrong must not keep us from being told better
    context = client_context(anchor.server_ca, floor=read_floor(folder.trust))
    return HttpsMetadata(identity.server, device=identity.device, context=context, token=token, timeout_s=timeout_s)
