"""Writes the configuration of a site's broker: a Mosquitto on a gateway, bridged to the broker of this server.

What a bridge needs at both ends is written together, so that nobody copies lines by hand: the site's folder, to be
brought to the gateway, and this server's own broker, where `skerry broker config mosquitto` wrote it.

A gateway is enrolled as a device. The bridge shows the certificate of that device, from the state folder of its agent,
which renews it; no key of it is ever here. What the server's CA signs for the site is the certificate of its listener.
"""

import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from control_plane import crl
from control_plane.authority import check_common_name, ensure_server_certificate, load_authority
from control_plane.broker_config import (
    KEEPALIVE_S,
    SAVE_S,
    SPARE_CONNECTIONS,
    Listener,
    check_path,
    mosquitto_acl,
    patterns,
)
from control_plane.home import Home, write_secret
from control_plane.plane import utc_now
from control_plane.settings import Settings
from control_plane.sites import Sites, queue_lines, read_sites, site_acl, write_sites
from skerry.delivery.durable import write_durably
from skerry.errors import Broken, Rejected
from skerry.wire.codec import MAX_BYTES
from skerry.wire.topics import ROOT, check_name, identity

MAX_DEVICES = 1000
"""Two lines and two subscriptions each, and a subscription is a packet: beyond it a site deserves a server."""
RETRY_S = (2, 60)
CENTRAL_ACL = "central-acl"
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_QUEUE = re.compile(r"^max_queued_messages .*\nmax_queued_bytes .*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Uplink:
    """Where the bridge connects to: a name that stands in the certificate of that broker, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class SitePlan:
    """What a site's configuration is made for.

    `gateway` is the device that the gateway is enrolled as, `devices` those behind it. `name` is what they call the
    gateway: it stands in its certificate. `folder` and `state` are where the gateway has these files and the state
    folder of its agent; `user` runs the site's broker, and may read both.
    """

    project: str
    gateway: str
    name: str
    uplink: Uplink
    listen: Listener
    folder: Path
    state: Path
    user: str
    devices: tuple[str, ...]

    def __post_init__(self) -> None:
        check_name(self.gateway, "site")
        for each in self.devices:
            check_name(each, "devices")
        for each in (self.gateway, *self.devices):
            check_common_name(identity(self.project, each))
        if not _HOST.fullmatch(self.name) and not _is_ipv6(self.name):
            raise Rejected(f"host: expected a name or an address of the gateway, got {self.name!r:.80}")
        if not 1 <= len(self.devices) <= MAX_DEVICES:
            raise Rejected(f"devices: expected 1 to {MAX_DEVICES} names such as a,b,c, got {len(self.devices)}")
        twice = sorted(each for each in self.devices if [self.gateway, *self.devices].count(each) > 1)
        if twice:
            raise Rejected(f"devices: expected each name once, and not the gateway's, got {twice[0]} twice")
        check_path(self.folder, option="installed-in")
        check_path(self.state, option="state")
        if not _USER.fullmatch(self.user):
            raise Rejected(f"user: expected a user of the gateway, got {self.user!r:.40}")


@dataclass(frozen=True, slots=True)
class Central:
    """This server's Mosquitto, whose files have changed: in which folder, and whether to start it again or to HUP it.

    A reload makes it take its `acl`, but not its queue (tried with 2.0.11, and its manual says otherwise).
    """

    folder: Path
    restart: bool


def parse_uplink(text: str, settings: Settings) -> Uplink:
    """Return where a bridge connects to: `HOST:PORT`, or where the devices of this server do; raises `Rejected`."""
    if not text:
        parts = urlsplit(settings.device_broker_url)
        if parts.scheme != "mqtts":
            raise Rejected(
                f"bridge-to: expected a broker with TLS, got {settings.device_broker_url}; "
                "configure this server's first: skerry broker config mosquitto --out DIR"
            )
        text = f"{parts.hostname}:{parts.port}"
    host, _, port = text.rpartition(":")
    if not _HOST.fullmatch(host):
        # Mosquitto takes all that follows the first colon of an address for the port
        raise Rejected(f"bridge-to: expected HOST:PORT with a name or an IPv4 address, got {text!r:.80}")
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise Rejected(f"bridge-to: expected a port from 1 to 65535, got {port!r:.20}")
    return Uplink(host, int(port))


def configure_site(home: Home, settings: Settings, plan: SitePlan, out: Path) -> Central | None:
    """Write the site's files into `out`, and let this server's broker know the site.

    Returns this server's Mosquitto, which is to take its files; None where it has none of ours: then whoever runs that
    broker adds the lines of `central-acl`. Called again for the same site it renews what is due, and the list of its
    devices is the new one.

    Raises:
        Rejected: another site has one of the devices, or this server's broker has a file that was changed by hand.
        Broken: a folder cannot be written.
    """
    sites = read_sites(home)
    for other, names in sites.items():
        both = {plan.gateway, *plan.devices} & {other, *names}
        if other != plan.gateway and both:
            raise Rejected(f"devices: expected each at one site, got {min(both)}, which {other} has; see --forget")
    sites[plan.gateway] = list(plan.devices)
    central = _central_files(settings, sites)
    _write_site(home, settings, plan, out)
    write_sites(home, sites)
    return _tell_central(settings, central)


def forget_site(home: Home, settings: Settings, gateway: str) -> Central | None:
    """Take from a gateway what it may do beyond what any device may; returns and raises as `configure_site`."""
    sites = read_sites(home)
    if gateway not in sites:
        raise Rejected(f"site: expected one of {', '.join(sorted(sites)) or 'none'}, got {gateway!r:.80}")
    del sites[gateway]
    central = _central_files(settings, sites)
    write_sites(home, sites)
    return _tell_central(settings, central)


def site_files(plan: SitePlan) -> dict[str, str]:
    """Return the text files of a site's Mosquitto 2.0 or later by name."""
    folder, who = plan.folder, identity(plan.project, plan.gateway)
    config = f"""\
# Mosquitto 2.0 or later on the gateway {plan.gateway}, for the project {plan.project}.
# Start it with: mosquitto -c {folder}/mosquitto.conf
user {plan.user}
pid_file {folder}/mosquitto.pid
log_dest stderr
log_type error
log_type warning
log_type notice

allow_anonymous false
allow_zero_length_clientid false
acl_file {folder}/acl

# as the control plane's broker has them; what devices say in a long outage and does not fit is said again
max_packet_size {MAX_BYTES}
max_keepalive {KEEPALIVE_S}
set_tcp_nodelay true

# what came over the uplink is not to come again because the gateway was started anew
persistence true
persistence_location {folder}/
autosave_interval {SAVE_S}

# the site's devices: each is what its certificate says, and checks ours against the server's CA
listener {plan.listen.port} {plan.listen.host}
max_connections {len(plan.devices) + SPARE_CONNECTIONS}
cafile {folder}/device-ca.pem
crlfile {folder}/{crl.FILE}
certfile {folder}/server.pem
keyfile {folder}/server.key
tls_version tlsv1.2
require_certificate true
use_identity_as_username true
use_username_as_clientid true

# the uplink: the gateway shows its own certificate, which its agent renews; a bridge reads it whenever it connects
connection uplink
address {plan.uplink}
remote_clientid {who}
bridge_cafile {folder}/server-ca.pem
bridge_certfile {plan.state}/device.crt
bridge_keyfile {plan.state}/device.key
bridge_protocol_version mqttv50
# what is said during an outage waits, at both ends
cleansession false
# its state would be a topic that nobody may write
notifications false
restart_timeout {RETRY_S[0]} {RETRY_S[1]}

# once for all of the site: chunks, a lost one of which is asked for again, and metadata, of which the last counts
topic {ROOT}/blob/+/+ in 0
topic {ROOT}/tuf/{plan.project}/+ in 1

# what is said to each of the site's devices, and by it; the first is the gateway itself
"""
    for each in (plan.gateway, *plan.devices):
        own = f"{ROOT}/d/{identity(plan.project, each)}"
        config += f"topic {own}/down/+ in 1\ntopic {own}/up/+ out 1\n"
    return {
        "mosquitto.conf": config,
        "acl": patterns(plan.project),
        CENTRAL_ACL: site_acl(plan.project, {plan.gateway: plan.devices}),
    }


def _write_site(home: Home, settings: Settings, plan: SitePlan, out: Path) -> None:
    now = utc_now()
    try:
        out.mkdir(parents=True, exist_ok=True, mode=0o700)
        out.chmod(0o700)
    except OSError as error:
        raise Broken(f"{out}: expected a folder to write, got: {error.strerror}; choose another --out") from error
    ensure_server_certificate(home.ca, host=plan.name, now=now, out=out)
    device_ca = load_authority(home.ca, "device")
    write_durably(out / "device-ca.pem", device_ca.pem.encode())
    write_durably(out / "server-ca.pem", load_authority(home.ca, "server").pem.encode())
    write_durably(out / crl.FILE, _revoked(settings) or crl.build(device_ca, {}, now=now))
    for name, text in site_files(plan).items():
        write_secret(out / name, text.encode())


def _revoked(settings: Settings) -> bytes:
    """The list that this server's broker has, if it has one."""
    file = Path(settings.broker_folder) / crl.FILE
    return file.read_bytes() if settings.broker_folder and file.exists() else b""


def _central_files(settings: Settings, sites: Sites) -> dict[str, str]:
    """What changes at this server's Mosquitto; nothing where it has none that was written here."""
    file = Path(settings.broker_folder) / "mosquitto.conf"
    if not settings.broker_folder or not file.exists():
        return {}
    text, count = _QUEUE.subn(queue_lines(settings, sites), file.read_text())
    if count != 1:
        raise Rejected(
            f"{file}: expected max_queued_messages and max_queued_bytes once, one after the other, got them {count} "
            "times; write it again: skerry broker config mosquitto --out DIR"
        )
    return {"acl": mosquitto_acl(settings.project, sites), "mosquitto.conf": text}


def _tell_central(settings: Settings, files: dict[str, str]) -> Central | None:
    if not files:
        return None
    folder = Path(settings.broker_folder)
    restart = (folder / "mosquitto.conf").read_text() != files["mosquitto.conf"]
    for name, text in files.items():
        write_secret(folder / name, text.encode())
    crl.hand_over(folder, *files)
    return Central(folder, restart=restart)


def _is_ipv6(text: str) -> bool:
    try:
        return ip_address(text).version == 6
    except ValueError:
        return False
