"""`skerry broker`: the configuration of a broker that knows who is who, here or at a site, on the server's machine."""

import argparse
from pathlib import Path
from typing import Any

from control_plane.cli.session import DEFAULT_HOME, Session
from skerry.errors import Rejected

_SITE_ONLY = {"bridge_to": "--bridge-to", "installed_in": "--installed-in", "state": "--state", "forget": "--forget"}


def add_verbs(nouns: Any) -> None:
    """Add the verbs of the broker."""
    verbs = nouns.add_parser("broker", help="the broker").add_subparsers(dest="verb", required=True, metavar="VERB")

    config = verbs.add_parser(
        "config", help="write a broker's configuration, and have this server use it; or, with --site, that of a gateway"
    )
    config.add_argument("broker", choices=("mosquitto", "emqx"))
    config.add_argument("--out", type=Path, metavar="DIR", help="where to write it; the broker reads it there")
    config.add_argument(
        "--host", default="", help="what devices call the broker (default: the server's host; a site's must be given)"
    )
    config.add_argument("--listen", default="0.0.0.0:8883", metavar="ADDR:PORT", help="for devices (%(default)s)")
    config.add_argument(
        "--control",
        default="",
        metavar="ADDR:PORT",
        help="for the control plane: on loopback, or by TLS (127.0.0.1:1884)",
    )
    config.add_argument(
        "--devices", default="", metavar="N", help="size of the fleet (1000); with --site, the names: a,b,c"
    )
    config.add_argument("--user", default="", help="who runs the broker (default: mosquitto where root asks, or you)")
    site = config.add_argument_group("the broker of a site, which bridges to this server's")
    site.add_argument("--site", default="", metavar="NAME", help="the device that the gateway is enrolled as")
    site.add_argument("--bridge-to", default="", metavar="HOST:PORT", help="default: where this server's devices go")
    site.add_argument("--installed-in", default="", metavar="DIR", help="where the gateway has it (default: --out)")
    site.add_argument(
        "--state", default="", metavar="DIR", help="state folder of the gateway's agent (/var/lib/skerry-agent)"
    )
    site.add_argument("--forget", action="store_true", help="let the gateway carry nothing for others any more")
    config.set_defaults(run=_config)


def _config(options: argparse.Namespace, session: Session) -> None:
    if options.site:
        _site(options, session)
        return
    given = [option for name, option in _SITE_ONLY.items() if getattr(options, name)]
    if given:
        raise Rejected(f"{given[0]}: expected it with --site NAME, got none")
    _own(options, session)


def _own(options: argparse.Namespace, session: Session) -> None:
    from control_plane import broker_config
    from control_plane.home import open_home
    from control_plane.settings import load_settings

    home = open_home((session.home or DEFAULT_HOME).expanduser())
    settings = load_settings(home.path)
    plan = broker_config.Plan(
        project=settings.project,
        name=options.host or settings.host,
        folder=_out(options),
        user=options.user or broker_config.broker_user(),
        devices=broker_config.parse_listener(options.listen, option="listen"),
        control=broker_config.parse_listener(options.control or "127.0.0.1:1884", option="control"),
        fleet=_size(options.devices or "1000"),
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


def _site(options: argparse.Namespace, session: Session) -> None:
    from control_plane import broker_config, site_config
    from control_plane.home import open_home
    from control_plane.settings import load_settings

    if options.broker != "mosquitto":
        raise Rejected(f"broker: expected mosquitto at a site, got {options.broker}")
    if options.control:
        raise Rejected("--control: expected none with --site, got one; the control plane is behind the bridge")
    home = open_home((session.home or DEFAULT_HOME).expanduser())
    settings = load_settings(home.path)
    if options.forget:
        central = site_config.forget_site(home, settings, options.site)
        answer = {"site": options.site, "central": str(central.folder) if central else ""}
        session.show(answer, "\n".join([f"site {options.site}: forgotten", *_take(central, "the lines of this site")]))
        return
    if not options.host:
        raise Rejected("--host: expected what the site's devices call the gateway, got none")
    out = _out(options)
    plan = site_config.SitePlan(
        project=settings.project,
        gateway=options.site,
        name=options.host,
        uplink=site_config.parse_uplink(options.bridge_to, settings),
        listen=broker_config.parse_listener(options.listen, option="listen"),
        folder=_on_gateway(options.installed_in or str(out), option="installed-in"),
        state=_on_gateway(options.state or "/var/lib/skerry-agent", option="state"),
        user=options.user or broker_config.broker_user(),
        devices=tuple(each.strip() for each in options.devices.split(",") if each.strip()),
    )
    central = site_config.configure_site(home, settings, plan, out)
    answer = {
        "folder": str(out),
        "devices": f"mqtts://{broker_config.in_url(plan.name)}:{plan.listen.port}",
        "bridge_to": str(plan.uplink),
        "central": str(central.folder) if central else "",
    }
    lines = [
        f"site {plan.gateway} in {out}: {len(plan.devices)} devices at {answer['devices']}, bridged to {plan.uplink}",
        *_take(central, f"what {out / site_config.CENTRAL_ACL} has"),
        f"then: bring the folder to {plan.folder} on the gateway, and start: mosquitto -c {plan.folder}/mosquitto.conf",
        f'      (as {plan.user}, who may read {plan.state}); its devices: broker = "{answer["devices"]}"',
    ]
    session.show(answer, "\n".join(lines))


def _take(central: Any, what: str) -> list[str]:
    """Say how this server's broker comes to know; `what` changes where that is not a Mosquitto of ours."""
    if central is None:
        return [f"next: this server's broker is none that was configured here: change in its acl {what} by hand"]
    if central.restart:
        return [f"next: start the broker of {central.folder} again: its acl and its queue are new"]
    return [f"next: kill -HUP $(cat {central.folder}/mosquitto.pid)   (this server's broker: its acl is new)"]


def _out(options: argparse.Namespace) -> Path:
    if options.out is None:
        raise Rejected("--out: expected a folder to write, got none")
    return Path(options.out).expanduser().resolve()


def _on_gateway(text: str, *, option: str) -> Path:
    path = Path(text)
    if not path.is_absolute():
        raise Rejected(f"--{option}: expected an absolute path on the gateway, got {text!r:.80}")
    return path


def _size(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise Rejected(f"--devices: expected a number, or names together with --site, got {text!r:.80}")
    return int(text)
