"""What a daemon is made of: from a state folder, a configuration and a disk to parts that know one another.

Nothing here acts: parts are made, and started by `agent.daemon`.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agent.config import Config
from agent.deployment.unit import Shared
from agent.deployment.units import Units, held_here
from agent.fetching.desired import DesiredFile
from agent.fetching.pace import OwnersPace
from agent.fetching.ranges import HttpsChunks
from agent.identity.errand import Tokens
from agent.identity.folder import Identity, StateFolder
from agent.identity.renewal import Renewal
from agent.link.address import parse_broker
from agent.link.link_note import LinkNote
from agent.link.proxy import parse_proxy
from agent.link.session import Link
from agent.link.tls import client_context
from agent.local.serving import Face, parse_serve
from agent.local.serving_port import Models
from agent.remote.inbox import Requests, Verb
from agent.telling.outbox import OutboxFile
from agent.telling.reporter import Versions
from agent.trust.assignment import Mailbox
from agent.trust.floor import read_floor
from agent.trust.judging import Judge
from agent.upkeep.disk import Disk
from skerry.errors import Broken
from skerry.inference.local_socket import socket_places
from skerry.wire import codec
from skerry.wire.messages import Answer

_log = logging.getLogger("skerry.agent")


@dataclass(frozen=True, slots=True)
class Ground:
    """What everything stands on; `folder` may be the shadow of the one on the disk."""

    folder: StateFolder
    identity: Identity
    config: Config
    disk: Disk

    @property
    def floor(self) -> float:
        """The earliest moment that it can be, in seconds since 1970."""
        return read_floor(self.folder.trust)


def count_start(ground: Ground) -> tuple[int, Versions]:
    """Count this start of the agent, if the disk takes that; return which it is, and the numbers of its reports."""
    if ground.disk.problem:
        last, ago_s = ground.folder.last_start()
        return last, Versions(last, uncounted_s=ago_s)
    starts = ground.folder.starts()
    return starts, Versions(starts)


def make_outbox(ground: Ground) -> OutboxFile:
    """Return the outbox; on a disk that refuses, frozen."""
    quota, frozen = ground.config.quota_bytes, bool(ground.disk.problem)
    return OutboxFile(ground.disk.folder / ground.folder.outbox_file.name, quota_bytes=quota, frozen=frozen)


def make_link(ground: Ground, *, will: Callable[[], bytes], news: Callable[[], None]) -> Link:
    """Return the session with the broker."""
    config, folder = ground.config, ground.folder
    note: Callable[[str], None] = LinkNote(folder.path).keep
    return Link(
        parse_broker(config.broker or ground.identity.broker),
        who=ground.identity.who,
        will=will,
        credentials=folder.credentials,
        floor=lambda: ground.floor,
        on_change=news,
        note=note if not ground.disk.problem else lambda _: None,
        keep_alive_s=config.keep_alive_s,
        reconnect_s=config.reconnect_s,
        proxy=parse_proxy(config.proxy),
    )


def make_renewal(ground: Ground, link: Link) -> Renewal | None:
    """Return who renews the certificate; None where there is none."""
    if not ground.folder.has_certificate:
        return None
    # without TLS the broker asks for no certificate, and its silence says nothing about ours
    tls = parse_broker(ground.config.broker or ground.identity.broker).tls
    return Renewal(
        ground.folder,
        connected=lambda: link.connected or not tls,
        on_renewed=link.reconnect if tls else lambda: None,
        may_keep=lambda: not ground.disk.problem,
    )


def make_units(
    ground: Ground,
    *,
    link: Link,
    outbox: OutboxFile,
    mailbox: Mailbox,
    desired: DesiredFile,
    tokens: Tokens,
    news: Callable[[], None],
    launched: str,
) -> Units:
    """Return the units, with what they share."""
    folder, config, who = ground.folder, ground.config, ground.identity
    metered = Path(config.metered_file) if config.metered_file else None
    judge = Judge(folder=folder, config=config, link=link, held=lambda: held_here(folder, config), token=tokens.get)
    shared = Shared(
        folder=folder,
        identity=who,
        config=config,
        link=link,
        outbox=outbox,
        mailbox=mailbox,
        judge=judge,
        turn=threading.Lock(),
        news=news,
        make_pace=lambda: OwnersPace(
            who.who, wishes=lambda: desired.wishes, metered=lambda: metered is not None and metered.exists()
        ),
        disk=ground.disk,
        https=_make_https(ground, tokens),
    )
    return Units(shared, launched=launched)


def _make_https(ground: Ground, tokens: Tokens) -> HttpsChunks | None:
    server = ground.identity.server
    if not server:
        return None
    anchor = ground.folder.anchor()
    # a new context for each connection: the floor moves
    return HttpsChunks(
        server,
        context=lambda: client_context(anchor.server_ca, floor=ground.floor),
        token=tokens.get,
        proxy=parse_proxy(ground.config.proxy),
    )


def make_requests(ground: Ground, link: Link, verbs: Mapping[str, Verb]) -> Requests:
    """Return who does what is asked of this device from afar."""

    def say(answer: Answer) -> None:
        link.publish("answer", codec.encode(answer))

    return Requests(
        ground.folder.path / "requests",
        verbs=verbs,
        allowed=ground.config.requests,
        say=say,
        now=lambda: max(time.time(), ground.floor),
        problem=ground.disk.problem,
    )


def open_face(ground: Ground, models: Models) -> tuple[Face | None, str]:
    """Let programs on this device ask the models, at the first place that takes a socket; return what is wrong, too.

    A port that another program has is no reason to be without the socket; and where none can be, the port is better
    than nothing.

    Raises:
        Broken: there is neither.
    """
    config = ground.config
    if config.serve == "off":
        return None, ""
    port = parse_serve(config.serve)
    ways: list[tuple[Path | None, int | None]] = [
        (place, wanted)
        for place in socket_places(ground.disk.folder)
        for wanted in ((port, None) if port is not None else (None,))
    ]
    refused: list[Broken] = []
    for place, wanted in [*ways, (None, port)] if port is not None else ways:
        if place is not None:
            # what cannot be made takes no socket either
            with suppress(OSError):
                place.parent.mkdir(mode=0o710, exist_ok=True)
        face = Face(models, keep_bytes=config.serve_keep_bytes)
        try:
            face.start(place, port=wanted)
        except Broken as error:
            refused.append(error)
            continue
        if refused and place != ways[0][0]:
            _log.warning("%s; listening on %s instead", refused[0], place or f"127.0.0.1:{port} alone")
        return face, str(refused[-1]) if wanted != port else ""
    raise refused[0]
