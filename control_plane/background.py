"""What the server does without being asked: the MQTT link, the reconcilers' clock, renewing metadata, running jobs."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from control_plane import clones, crl, publication, publisher, rotation, sample_retention, trust_status
from control_plane.broker import EmbeddedBroker
from control_plane.link import Handler, Link
from control_plane.plane import Plane
from skerry.errors import SkerryError

log = logging.getLogger(__name__)

TICK_S = 0.5
RENEW_S = timedelta(minutes=10).total_seconds()
BROKER_S = 30.0
PUBLISH_S = 5.0


@dataclass(frozen=True, slots=True)
class Duties:
    """What is called: `handle` for each message of a device, each of `ticks` twice a second."""

    handle: Handler
    ticks: Sequence[Callable[[Plane], object]] = ()


@contextlib.asynccontextmanager
async def in_background(plane: Plane, duties: Duties, broker: EmbeddedBroker | None) -> AsyncIterator[None]:
    """Run the link and the clocks while the body runs; the broker, where it is ours, is stopped last."""
    link = Link(
        plane,
        handle=duties.handle,
        on_connect=publisher.republish_current,
        ensure_broker=broker.ensure if broker else None,
    )
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(link.run(), name="link"),
                # a clock each: deciding on the drift of a large fleet takes seconds, and rollouts go on meanwhile
                *(tasks.create_task(_every(plane, TICK_S, tick), name=tick.__name__) for tick in duties.ticks),
                tasks.create_task(_every(plane, PUBLISH_S, publication.tend), name="chunks"),
                tasks.create_task(_every(plane, RENEW_S, publisher.renew), name="renewal"),
                tasks.create_task(_every(plane, RENEW_S, trust_status.sound), name="alarms"),
                tasks.create_task(_every(plane, RENEW_S, rotation.tidy), name="old keys"),
                tasks.create_task(_every(plane, RENEW_S, sample_retention.keep), name="old samples"),
                tasks.create_task(_every(plane, RENEW_S, clones.settle), name="clones"),
                tasks.create_task(_every(plane, BROKER_S, crl.keep), name="broker"),
            ]
            yield
            plane.stopping.set()
            for task in running:
                task.cancel()
    finally:
        plane.stopping.set()
        if broker is not None:
            await asyncio.to_thread(broker.stop)


async def _every(plane: Plane, period_s: float, call: Callable[[Plane], object]) -> None:
    while True:
        await asyncio.to_thread(_guarded, call, plane)
        await asyncio.sleep(period_s)


def _guarded(call: Callable[[Plane], object], plane: Plane) -> None:
    try:
        call(plane)
    except SkerryError as error:
        log.error("%s: %s", call.__name__, error)
    except Exception:  # one failed turn must not end the clock: the next one starts from the database again
        log.exception("%s failed; the next turn comes", call.__name__)
