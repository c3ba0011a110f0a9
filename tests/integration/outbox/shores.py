"""A control plane's real link on a thread of its own, and a device that is what `agent.daemon` makes of its parts."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from agent.config import Config
from agent.link.address import parse_broker
from agent.link.session import Link
from agent.link.tls import Credentials
from agent.telling.outbox import OutboxFile
from agent.telling.publisher import Publisher
from control_plane.ingest import handle
from control_plane.link import Link as ShoreLink
from control_plane.plane import Plane
from skerry.wire import codec, topics
from skerry.wire.messages import Reported

WHO = topics.identity("watch", "gull")


@contextlib.contextmanager
def listening(plane: Plane) -> Iterator[None]:
    """Let the control plane listen to its broker."""
    link = ShoreLink(plane, handle=handle, on_connect=lambda _plane: None)
    loop = asyncio.new_event_loop()
    task = loop.create_task(link.run())

    def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)

    thread = threading.Thread(target=run, name="shore")
    thread.start()
    try:
        yield
    finally:
        plane.stopping.set()
        loop.call_soon_threadsafe(task.cancel)
        thread.join(20)
        loop.close()


class Device:
    """A device with an outbox and a link: says how it is, then what it has to say."""

    def __init__(self, folder: Path, outbox: OutboxFile, *, port: int, config: Config) -> None:
        self.outbox = outbox
        self.news = threading.Event()
        self.publisher = Publisher(
            outbox, ack_timeout_s=config.ack_timeout_s, rate_bytes_s=lambda: config.resume_bytes_s
        )
        self.link = Link(
            parse_broker(f"mqtt://127.0.0.1:{port}"),
            who=WHO,
            will=lambda: self.reported(online=False),
            credentials=Credentials(folder / "ca", folder / "certificate", folder / "key"),
            on_change=self.news.set,
            reconnect_s=0.3,
        )

    def reported(self, *, online: bool) -> bytes:
        """Return the twin's reported half, as a device that waits for nothing says it."""
        return codec.encode(
            Reported(
                version=1,
                online=online,
                state="committed",
                agent="0.2",
                profile="x86-64-gateway",
                runtime="onnxruntime 1.20",
                architecture="x86_64",
                outbox_depth=self.outbox.depth,
            )
        )

    def converse(self, connections: int) -> int:
        """Do one turn of the daemon's main thread; return how many connections there have been."""
        if self.link.connections != connections:
            connections = self.link.connections
            self.publisher.connected(again=True)
            self.link.publish("reported", self.reported(online=True), retain=True)
        while not self.link.heard.empty():
            heard = self.link.heard.get()
            if heard.name == "ack":
                self.publisher.acknowledged(heard.payload)
            heard.settle()
        self.publisher.tick(self.link)
        self.news.wait(0.25)
        self.news.clear()
        return connections
