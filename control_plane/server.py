"""Opens a control plane from its home folder and serves it: HTTPS for devices and operators, loopback HTTP for pages.

Both listeners are one process and one application, whose background work starts once.
"""

import asyncio
import contextlib
import logging
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from control_plane.api.app import create_app
from control_plane.authority import ensure_server_certificate, make_authorities
from control_plane.background import in_background
from control_plane.broker import EmbeddedBroker, check_external
from control_plane.database import open_database, readers, sessions
from control_plane.home import Home, create_home, finish_home, held, open_home, write_secret
from control_plane.link import Outgoing
from control_plane.online_keys import OnlineSigners, make_online_keys
from control_plane.plane import Plane, utc_now
from control_plane.settings import Settings, load_settings, save_settings
from control_plane.store import Blobs
from skerry.errors import Broken

log = logging.getLogger(__name__)

SHUTDOWN_S = 3


def make_home(path: Path, settings: Settings) -> Home:
    """Make a home folder with everything but the offline keys; a half-made one is made again from the start."""
    home = create_home(path)
    save_settings(settings, home.path)
    make_online_keys(home.keys)
    make_authorities(home.ca, settings.project)
    write_secret(home.path / "operator.token", secrets.token_urlsafe(32).encode() + b"\n")
    open_database(home).dispose()
    finish_home(home)
    return home


def open_plane(path: Path) -> Plane:
    """Open the control plane of a home folder; raises `Broken` or `Rejected` when something in it is not right."""
    home = open_home(path)
    settings = load_settings(home.path)
    engine = open_database(home)
    return Plane(
        settings=settings,
        home=home,
        sessions=sessions(engine),
        readers=readers(engine),
        blobs=Blobs(home.blobs),
        signers=OnlineSigners(home.keys),
        outgoing=Outgoing(),
    )


def serve(plane: Plane, *, on_ready: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM; nothing has started when this raises.

    Raises:
        Broken: a port is taken.
        Rejected: another server runs on the same home folder.
        Unavailable: an external broker is not there.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(held(plane.home))
        devices = stack.enter_context(contextlib.closing(_bind(plane, plane.settings.host, "port")))
        pages = stack.enter_context(contextlib.closing(_bind(plane, "127.0.0.1", "pages_port")))
        broker = EmbeddedBroker(plane.home, plane.settings.broker_port) if plane.settings.embedded_broker else None
        if broker is not None:
            stack.callback(broker.stop)
            broker.ensure()
        else:
            check_external(plane.settings)
        asyncio.run(_serve(plane, devices=devices, pages=pages, broker=broker, on_ready=on_ready))


async def _serve(
    plane: Plane,
    *,
    devices: socket.socket,
    pages: socket.socket,
    broker: EmbeddedBroker | None,
    on_ready: Callable[[], None],
) -> None:
    from control_plane.assembly import duties, job_runner, routers

    app = create_app(plane, routers(), background=lambda: in_background(plane, duties(), broker))
    certificate, key = ensure_server_certificate(plane.home.ca, host=plane.settings.host, now=utc_now())
    secure = _Listener(_config(app, certificate=str(certificate), key=str(key)))
    plain = _Listener(_config(app))

    def stop() -> None:
        plane.stopping.set()
        for listener in (secure, plain):
            # a second Ctrl-C does not wait for open requests
            listener.force_exit = listener.should_exit
            listener.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    with job_runner(plane):
        async with app.router.lifespan_context(app), asyncio.TaskGroup() as tasks:
            on_ready()
            tasks.create_task(secure.serve([devices]), name="https")
            tasks.create_task(plain.serve([pages]), name="pages")


class _Listener(uvicorn.Server):
    """A uvicorn server that leaves signals to us: there are two of them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(app: FastAPI, *, certificate: str | None = None, key: str | None = None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        # the application's lifespan is entered once, around both listeners
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )


def _bind(plane: Plane, host: str, setting: str) -> socket.socket:
    port = getattr(plane.settings, setting)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    # a name that cannot be one at all is a UnicodeError
    except (OSError, UnicodeError) as error:
        raise Broken(
            f"host: expected an address of this machine, got {host}: {error}; set host in {plane.home.settings}"
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(256)
    except OSError as error:
        listener.close()
        raise Broken(
            f"{setting}: expected port {port} of {host} to be free, got: {error.strerror}; "
            f"set {setting} in {plane.home.settings}"
        ) from error
    return listener
