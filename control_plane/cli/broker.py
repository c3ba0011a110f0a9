"""`skerry broker`: the configuration of a broker that knows who is who, on the server's machine."""

import argparse
from pathlib import Path
from typing import Any

from control_plane.cli.session import DEFAULT_HOME, Session


def add_verbs(nouns: Any) -> None:
    """Add the verbs of the broker."""
    verbs = nouns.add_parser("broker", help="the broker").add_subparsers(dest="verb", required=True, metavar="VERB")

    config = verbs.add_parser("config", help="write a broker's configuration, and have this server use it")
    config.add_argument("broker", choices=("mosquitto", "emqx"))
    config.add_argument("--out", required=True, type=Path, metavar="DIR", help="where the broker reads it")
    config.add_argument("--host", default="", help="what devices call the broker (default: the server's host)")
    config.add_argument("--listen", default="0.0.0.0:8883", metavar="ADDR:PORT", help="for devices (%(default)s)")
    config.add_argument(
        "--control",
        default="127.0.0.1:1884",
        metavar="ADDR:PORT",
        help="for the control plane: on loopback, or by TLS (%(default)s)",
    )
    config.add_argument("--devices", type=int, default=1000, metavar="N", help="size of the fleet (%(default)s)")
    config.add_argument("--user", default="", help="who runs the broker (default: mosquitto where root asks, or you)")
    config.set_defaults(run=_config)


def _config(options: argparse.Namespace, session: Session) -> None:
    from control_plane import broker_config
    from control_plane.home import open_home
    from control_plane.settings import load_settings

    home = open_home((session.home or DEFAULT_HOME).expanduser())
    settings = load_settings(home.path)
    plan = broker_config.Plan(
        project=settings.project,
        name=options.host or settings.host,
        folder=options.out.expanduser().resolve(),
        user=options.user or broker_config.broker_user(),
        devices=broker_config.parse_listener(options.listen, option="listen"),
        control=broker_config.parse_listener(options.control, option="control"),
        fleet=options.devices,
    )
    used = broker_config.configure(options.broker, home, settings, plan)
    answer = {
        "folder": str(plan.folder),
        "devices": used.device_broker_url,
        "control_plane": used.public_broker_url,
        "settings": str(home.settings),
    }
    start = {
        "mosquitto": f"mosquitto -c {plan.folder}/mosquitto.conf",
        "emqx": f'write  include "{plan.folder}/emqx.conf"  at the end of EMQX\'s etc/emqx.conf, and start it',
    }
    lines = [
        f"{options.broker} in {plan.folder}: devices at {answer['devices']}, this server at {answer['control_plane']}",
        f"next: {start[options.broker]}   (as the user {plan.user})",
        f"then: start skerry-server again; {home.settings} names this broker now",
    ]
    session.show(answer, "\n".join(lines))
