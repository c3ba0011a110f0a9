"""Writes the configuration of a broker of the operator's own, ready to start: identities, rules, limits.

Two listeners, for a listener takes one authority of client certificates and asks for one or for none:

- devices: TLS, a certificate of the device CA and of nothing else; user name and client id are its common name,
  `PROJECT.DEVICE`, whatever the device says;
- the control plane: its password, on loopback, or over TLS where another address is asked for. Its user name has no
  dot in it, so no certificate of the device CA can be it.

Mosquitto grants every SUBSCRIBE and judges each message when it delivers it; the rules are the same for both brokers.
"""

import base64
import hashlib
import json
import os
import pwd
import secrets
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from control_plane import crl
from control_plane.authority import ensure_server_certificate, load_authority
from control_plane.home import Home, write_secret
from control_plane.link import CONTROL_PLANE
from control_plane.plane import utc_now
from control_plane.settings import EMBEDDED, Settings, save_settings
from control_plane.sites import QUEUED_MESSAGES, Sites, queue_lines, read_sites, site_acl
from skerry.delivery.durable import write_durably
from skerry.errors import Broken, Rejected
from skerry.wire.codec import MAX_BYTES
from skerry.wire.topics import ROOT

BROKERS = ("mosquitto", "emqx")
MAX_DEVICES = 1_000_000
# while a session is taken over there are two connections of a device, and a fleet that returns does so at once
SPARE_CONNECTIONS = 64
KEEPALIVE_S = 120
# as paho's and as the link's own
IN_FLIGHT = 100
SAVE_S = 30
# the password is 256 random bits: stretching adds nothing, and the broker would pay for it at each connect
PASSWORD_ROUNDS = 101


@dataclass(frozen=True, slots=True)
class Listener:
    """An address that a broker listens on."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return ip_address(self.host).is_loopback

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a configuration is made for.

    `name` is what devices call the broker: it stands in its certificate. `folder` is where the files are when the
    broker reads them; `user` runs it.
    """

    project: str
    name: str
    folder: Path
    user: str
    devices: Listener
    control: Listener
    fleet: int = 1000

    def __post_init__(self) -> None:
        if not 1 <= self.fleet <= MAX_DEVICES:
            raise Rejected(f"devices: expected 1 to {MAX_DEVICES}, got {self.fleet}")
        if self.devices.port == self.control.port:
            raise Rejected(f"ports: expected different ones, got {self.devices.port} twice; give --control")
        check_path(self.folder, option="out")

    @property
    def connections(self) -> int:
        """How many devices may be connected at once."""
        return self.fleet + max(SPARE_CONNECTIONS, self.fleet // 10)


def parse_listener(text: str, *, option: str) -> Listener:
    """Parse `ADDRESS:PORT`, with an IPv6 address in brackets; raises `Rejected`."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        ip_address(host)
        number = int(port)
    except ValueError as error:
        raise Rejected(f"{option}: expected ADDRESS:PORT, got {text!r}") from error
    if not 0 < number < 65536:
        raise Rejected(f"{option}: expected a port from 1 to 65535, got {number}")
    return Listener(host, number)


def check_path(path: Path, *, option: str) -> None:
    """Refuse a path that cannot stand in a broker's configuration; raises `Rejected`."""
    if any(not each.isprintable() or each in '"\\' for each in str(path)):
        raise Rejected(f"{option}: expected a path without quotes and control characters, got {str(path)!r}")


def broker_user() -> str:
    """Return who runs the broker unless told: Debian's user where root prepares it, whoever asks otherwise."""
    return "mosquitto" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


def configure(broker: str, home: Home, settings: Settings, plan: Plan) -> Settings:
    """Write the configuration of `broker` into the plan's folder, and the server's settings that go with it.

    Called again for the same folder it keeps the password, and renews what is due.

    Raises:
        Rejected: the server has another broker already, or a certificate cannot hold the name.
        Broken: the folder cannot be written, or given to the user who runs the broker.
    """
    if settings.broker != EMBEDDED and settings.broker_folder != str(plan.folder):
        raise Rejected(
            f"broker: expected embedded or the broker of {plan.folder}, got {settings.public_broker_url}; "
            f'set broker = "embedded" in {home.settings} first'
        )
    password = (urlsplit(settings.broker).password if settings.broker_folder else "") or secrets.token_urlsafe(32)
    now = utc_now()
    try:
        plan.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        plan.folder.chmod(0o700)
    except OSError as error:
        raise Broken(
            f"{plan.folder}: expected a folder to write, got: {error.strerror}; choose another --out"
        ) from error
    ensure_server_certificate(home.ca, host=plan.name, now=now, out=plan.folder)
    device_ca = load_authority(home.ca, "device")
    write_durably(plan.folder / "device-ca.pem", device_ca.pem.encode())
    if not (plan.folder / crl.FILE).exists():
        write_durably(plan.folder / crl.FILE, crl.build(device_ca, {}, now=now))
    sites = read_sites(home)
    texts = (
        mosquitto_files(plan, password, queue=queue_lines(settings, sites), sites=sites)
        if broker == "mosquitto"
        else emqx_files(plan, password)
    )
    for name, text in texts.items():
        write_secret(plan.folder / name, text.encode())
    _hand_over(plan)

    loopback = plan.control.loopback
    scheme = "mqtt" if loopback else "mqtts"
    control = plan.control if loopback else f"{in_url(plan.name)}:{plan.control.port}"
    used = replace(
        settings,
        broker=f"{scheme}://{CONTROL_PLANE}:{password}@{control}",
        broker_ca=str(home.ca / "server-ca.pem"),
        broker_advertised=f"mqtts://{in_url(plan.name)}:{plan.devices.port}",
        broker_folder=str(plan.folder),
        crl_url=(settings.crl_url or f"{settings.pages_url}/v1/crl") if broker == "emqx" else settings.crl_url,
        broker_reload=settings.broker_reload or _RELOAD[broker],
    )
    save_settings(used, home.path)
    return used


def mosquitto_files(plan: Plan, password: str, *, queue: str, sites: Sites) -> dict[str, str]:
    """Return the text files of a Mosquitto 2.0 or later by name."""
    folder = plan.folder
    tls = f"certfile {folder}/server.pem\nkeyfile {folder}/server.key\ntls_version tlsv1.2\n"
    config = f"""\
# Mosquitto 2.0 or later, for the project {plan.project}. Start it with: mosquitto -c {folder}/mosquitto.conf
# {plan.connections} connections want as many open files (LimitNOFILE= in the unit).
user {plan.user}
pid_file {folder}/mosquitto.pid
log_dest stderr
log_type error
log_type warning
log_type notice

allow_anonymous false
allow_zero_length_clientid false
acl_file {folder}/acl
password_file {folder}/passwords

max_packet_size {MAX_BYTES}
max_inflight_messages {IN_FLIGHT}
{queue}
max_keepalive {KEEPALIVE_S}
set_tcp_nodelay true

# a kill costs what came after the last save; the control plane publishes what is current whenever it connects
persistence true
persistence_location {folder}/
autosave_interval {SAVE_S}

# devices
listener {plan.devices.port} {plan.devices.host}
max_connections {plan.connections}
cafile {folder}/device-ca.pem
crlfile {folder}/{crl.FILE}
{tls}require_certificate true
use_identity_as_username true
use_username_as_clientid true

# the control plane
listener {plan.control.port} {plan.control.host}
max_connections {SPARE_CONNECTIONS}
{"" if plan.control.loopback else tls}"""
    return {
        "mosquitto.conf": config,
        "acl": mosquitto_acl(plan.project, sites),
        "passwords": f"{CONTROL_PLANE}:{_mosquitto_hash(password)}\n",
    }


def mosquitto_acl(project: str, sites: Sites) -> str:
    """Return the `acl` of the Mosquitto of this server, with what its sites need."""
    more = site_acl(project, sites)
    return (
        patterns(project)
        + f"""
user {CONTROL_PLANE}
topic write {ROOT}/d/+/down/+
topic read {ROOT}/d/+/up/+
topic write {ROOT}/tuf/{project}/+
topic write {ROOT}/blob/+/+
"""
        + (f"\n{more}" if more else "")
    )


def patterns(project: str) -> str:
    """Return the lines of an `acl` that say what any device may do, on this server's Mosquitto and on a site's."""
    return f"""\
# For every user; Mosquitto remarks that the last two name none, and applies them all the same.
pattern read {ROOT}/d/%u/down/+
pattern write {ROOT}/d/%u/up/+
pattern read {ROOT}/tuf/{project}/+
pattern read {ROOT}/blob/+/+
"""


def emqx_files(plan: Plan, password: str) -> dict[str, str]:
    """Return the text files of an EMQX 5.6 or later by name; JSON is HOCON, so the configuration is written as JSON.

    EMQX fetches the revocation list from the address in each certificate (`crl_url`), and refuses one without.
    """
    folder = plan.folder
    files: dict[str, Any] = {"certfile": f"{folder}/server.pem", "keyfile": f"{folder}/server.key"}
    server = {**files, "versions": ["tlsv1.3", "tlsv1.2"]}
    control = {"bind": str(plan.control), "max_connections": SPARE_CONNECTIONS, "enable_authn": True}
    if not plan.control.loopback:
        control["ssl_options"] = {**server, "verify": "verify_none"}
    config = {
        "mqtt": {
            "peer_cert_as_username": "cn",
            "peer_cert_as_clientid": "cn",
            "max_packet_size": f"{MAX_BYTES}B",
            "max_inflight": IN_FLIGHT,
            "max_mqueue_len": QUEUED_MESSAGES,
            "max_clientid_len": 64,
            "server_keepalive": KEEPALIVE_S,
        },
        "listeners": {
            "tcp": {"default": {"enable": False, "bind": "127.0.0.1:1883"}},
            "ws": {"default": {"enable": False, "bind": "127.0.0.1:8083"}},
            "wss": {"default": {"enable": False, "bind": "127.0.0.1:8084"}},
            "ssl": {
                "default": {
                    "bind": str(plan.devices),
                    "max_connections": plan.connections,
                    "enable_authn": False,
                    "tcp_options": {"nodelay": True},
                    "ssl_options": {
                        **server,
                        "cacertfile": f"{folder}/device-ca.pem",
                        "verify": "verify_peer",
                        "fail_if_no_peer_cert": True,
                        "enable_crl_check": True,
                    },
                }
            },
        },
        "crl_cache": {"refresh_interval": "1m"},
        "authentication": [
            {
                "mechanism": "password_based",
                "backend": "built_in_database",
                "user_id_type": "username",
                "bootstrap_file": f"{folder}/passwords.csv",
                "bootstrap_type": "plain",
            }
        ],
        "authorization": {
            "no_match": "deny",
            "deny_action": "ignore",
            "sources": [{"type": "file", "enable": True, "path": f"{folder}/acl.conf"}],
        },
        "retainer": {"enable": True, "max_payload_size": f"{MAX_BYTES}B", "backend": {"storage_type": "disc"}},
    }
    config["listeners"]["tcp" if plan.control.loopback else "ssl"]["control"] = control  # type: ignore[index] # one literal
    public = f'"{ROOT}/tuf/{plan.project}/+", "{ROOT}/blob/+/+"'
    acl = f"""\
{{allow, {{username, "{CONTROL_PLANE}"}}, publish, ["{ROOT}/d/+/down/+", {public}]}}.
{{allow, {{username, "{CONTROL_PLANE}"}}, subscribe, ["{ROOT}/d/+/up/+", "{ROOT}/blob/+/+"]}}.
{{deny, {{username, "{CONTROL_PLANE}"}}, all, ["#"]}}.
{{allow, all, subscribe, ["{ROOT}/d/${{username}}/down/+", {public}]}}.
{{allow, all, publish, ["{ROOT}/d/${{username}}/up/+"]}}.
{{deny, all}}.
"""
    header = f"# EMQX 5.6 or later, for the project {plan.project}: include it at the end of etc/emqx.conf.\n"
    return {
        "emqx.conf": header + json.dumps(config, indent=2) + "\n",
        "acl.conf": acl,
        "passwords.csv": f"user_id,password,is_superuser\n{CONTROL_PLANE},{password},false\n",
    }


# Mosquitto's own is SIGHUP to the process in its pid file
_RELOAD = {"mosquitto": "", "emqx": "emqx ctl pem_cache clean"}


def _mosquitto_hash(password: str) -> str:
    """Return what `mosquitto_passwd` writes: PBKDF2 of SHA-512."""
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, PASSWORD_ROUNDS, 64)
    return f"$7${PASSWORD_ROUNDS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def _hand_over(plan: Plan) -> None:
    """Give the folder to the user who runs the broker; only root can, and only root need."""
    if os.geteuid() != 0:
        return
    try:
        who = pwd.getpwnam(plan.user)
    except KeyError as error:
        raise Broken(
            f"user: expected one of this machine, got {plan.user}; install the broker first, or give --user"
        ) from error
    os.chown(plan.folder, who.pw_uid, who.pw_gid, follow_symlinks=False)
    crl.hand_over(plan.folder, *(path.name for path in plan.folder.iterdir()))


def in_url(host: str) -> str:
    """Return a host as it stands in an address."""
    return f"[{host}]" if ":" in host else host
