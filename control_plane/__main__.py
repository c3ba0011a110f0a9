"""`skerry-server`: makes a control plane's home folder, and runs it."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from skerry.errors import Rejected, SkerryError, Unavailable

if TYPE_CHECKING:
    from control_plane.plane import Plane

DEFAULT_HOME = Path("~/.local/share/skerry")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code: 2 the sender must act, 3 the network, 4 this machine."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO if options.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # the database holds content keys: nothing in a home folder is for others
    umask = os.umask(0o077)
    try:
        options.run(options)
    except SkerryError as error:
        print(f"skerry-server: {error}", file=sys.stderr)
        return 2 if isinstance(error, Rejected) else 3 if isinstance(error, Unavailable) else 4
    except KeyboardInterrupt:
        return 130
    finally:
        os.umask(umask)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="skerry-server", description="The control plane of Skerry.")
    parser.add_argument("--version", action="version", version=f"skerry-server {version('skerry')}")
    parser.add_argument("--verbose", action="store_true", help="log what happens, not only what goes wrong")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    init = verbs.add_parser("init", help="make the home folder")
    init.add_argument("--project", required=True, help="its name: in topics and in the identities of devices")
    init.add_argument("--host", default="127.0.0.1", help="the address where devices reach it (default: %(default)s)")
    init.add_argument("--port", type=int, default=8443, help="HTTPS, for devices and the API (default: %(default)s)")
    init.add_argument("--pages-port", type=int, default=8080, help="HTTP on 127.0.0.1 (default: %(default)s)")
    init.add_argument("--broker", default="embedded", help="embedded, mqtt://HOST:PORT or mqtts://HOST:PORT")
    init.add_argument("--broker-port", type=int, help="of the embedded broker (default: 1883, or one that is free)")
    init.add_argument("--broker-ca", default="", metavar="FILE", help="CA certificates of the broker, for mqtts")
    init.add_argument("--broker-advertised", default="", metavar="URL", help="what devices are told, where it differs")
    init.set_defaults(run=_init)

    run = verbs.add_parser("run", help="serve until Ctrl-C")
    run.set_defaults(run=_run)
    for verb in (init, run):
        verb.add_argument("--home", type=Path, default=DEFAULT_HOME, help="the home folder (default: %(default)s)")
    return parser


def _init(options: argparse.Namespace) -> None:
    from control_plane.broker import free_port
    from control_plane.server import make_home
    from control_plane.settings import Settings

    settings = Settings(
        project=options.project,
        host=options.host,
        port=options.port,
        pages_port=options.pages_port,
        broker=options.broker,
        broker_port=options.broker_port or free_port(1883),
        broker_ca=str(Path(options.broker_ca).resolve()) if options.broker_ca else "",
        broker_advertised=options.broker_advertised,
    )
    home = make_home(options.home.expanduser(), settings)
    print(f"made {home.path} for the project {settings.project}")
    print(f"next: skerry-server run --home {home.path}")
    print(f"then: skerry --home {home.path} keys init --out FOLDER   (the offline keys: keep them off this machine)")


def _run(options: argparse.Namespace) -> None:
    from control_plane.server import open_plane, serve

    plane = open_plane(options.home.expanduser())
    serve(plane, on_ready=lambda: _show_addresses(plane))
    print("stopped")


def _show_addresses(plane: "Plane") -> None:
    settings, home = plane.settings, plane.home
    # a terminal is the operator's own; anything else may be a log that others read
    token = home.operator_token() if sys.stdout.isatty() else f"$(cat {home.path / 'operator.token'})"
    print(f"project  {settings.project}")
    print(f"devices  {settings.url}")
    print(f"pages    {settings.pages_url}/login?token={token}")
    print(
        f"broker   {settings.device_broker_url}" + (" (embedded; identity: none)" if settings.embedded_broker else "")
    )
    if not home.anchor.exists():
        print(f"next     skerry --home {home.path} keys init --out FOLDER")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
