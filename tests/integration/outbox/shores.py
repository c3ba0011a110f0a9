"""A control plane's real link on a thread of its own."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from control_plane.ingest import handle
from control_plane.link import Link as ShoreLink
from control_plane.plane import Plane


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
