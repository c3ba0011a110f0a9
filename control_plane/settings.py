"""Owns the settings of a control plane: one frozen dataclass, read from `settings.toml` and checked once."""

import dataclasses
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from control_plane.authority import DEVICE_LIFE
from control_plane.home import write_secret
from skerry.errors import Broken, Rejected
from skerry.wire.topics import check_name

EMBEDDED = "embedded"
BROKER_PRESETS = ("mosquitto", "emqx", "embedded", "128k-cloud")
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
# of the 64 characters of a certificate's common name, PROJECT.DEVICE, this leaves 31 to the device
MAX_PROJECT = 32
# a device renews over the network, on a machine that may be busy
MIN_CERTIFICATE_LIFE_S = 30
MAX_CERTIFICATE_LIFE_S = 365 * 86400
MAX_SAMPLE_DAYS = 3650
MAX_MB = 1 << 30


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator decides.

    `host` and `port` are where devices and remote operators come in (HTTPS); `pages_port` is plain HTTP on 127.0.0.1.
    `broker` is `embedded` (on 127.0.0.1:`broker_port`) or `mqtt://HOST:PORT` or `mqtts://HOST:PORT`, whose CA
    certificates are in the file `broker_ca`; `broker_advertised`, where given, is the address that devices are told
    instead, which may be `wss://HOST/PATH`. `broker_folder` is what `skerry broker config` wrote, where the revocation
    list is kept current, and `broker_reload` the command that makes the broker read it (where empty: SIGHUP to the
    process in its pid file); `crl_url`, where given, stands in certificates for brokers that fetch the list from there
    (`GET /v1/crl` has it).
    `certificate_life_s` is how long a device's certificate lives; it is renewed at two thirds of that.
    `broker_preset` says what the broker allows (`control_plane.transport`); where empty, what Mosquitto or the embedded
    one does; `broker_retained_mb`, where not 0, how many megabytes of retained messages it may hold instead. With
    `over_budget` = `refuse` a release that it has no room for is refused, with `https` its devices fetch it over HTTPS
    alone. Above `https_above_mb` megabytes times devices of a rollout HTTPS is the first road.
    `upload_limit_bytes` caps the body of a request.
    Samples of inputs are kept for `sample_days`, and of a device and of all together so many megabytes at most: the
    oldest go first (`control_plane.sample_retention`).
    """

    project: str
    host: str = "127.0.0.1"
    port: int = 8443
    pages_port: int = 8080
    broker: str = EMBEDDED
    broker_port: int = 1883
    broker_ca: str = ""
    broker_advertised: str = ""
    broker_folder: str = ""
    broker_reload: str = ""
    crl_url: str = ""
    certificate_life_s: int = int(DEVICE_LIFE.total_seconds())
    broker_preset: str = ""
    broker_retained_mb: int = 0
    over_budget: str = "refuse"
    https_above_mb: int = 100_000
    upload_limit_bytes: int = 256 << 20
    sample_days: int = 90
    sample_device_mb: int = 64
    sample_fleet_mb: int = 4096

    def __post_init__(self) -> None:
        check_name(self.project, "project")
        for name in ("port", "pages_port", "broker_port"):
            if not 0 < getattr(self, name) < 65536:
                raise Rejected(f"{name}: expected a port from 1 to 65535, got {getattr(self, name)}")
        if len(self.project) > MAX_PROJECT:
            raise Rejected(f"project: expected at most {MAX_PROJECT} characters, got {len(self.project)}")
        ports = [self.port, self.pages_port, *([self.broker_port] if self.embedded_broker else [])]
        if len(set(ports)) < len(ports):
            raise Rejected(f"ports: expected different ones, got {', '.join(map(str, ports))}")
        _check_life(self.certificate_life_s)
        if self.broker != EMBEDDED:
            _check_broker(self.broker, "broker")
        self._check_delivery()
        for name, most in (("sample_days", MAX_SAMPLE_DAYS), ("sample_device_mb", MAX_MB), ("sample_fleet_mb", MAX_MB)):
            if not 1 <= getattr(self, name) <= most:
                raise Rejected(f"{name}: expected 1 to {most}, got {getattr(self, name)}")
        if self.crl_url and urlsplit(self.crl_url).scheme not in ("http", "https"):
            raise Rejected(f"crl_url: expected http://..., got {self.crl_url!r}")
        if self.broker_advertised:
            _check_broker(self.broker_advertised, "broker_advertised", web=True)
            if self.embedded_broker and not self.broker_advertised.startswith("mqtt:"):
                raise Rejected(
                    "broker_advertised: expected mqtt:// on loopback for the embedded broker, which knows no "
                    "identities behind TLS either, got mqtts://; see: skerry broker config"
                )

    def _check_delivery(self) -> None:
        if self.broker_preset not in ("", *BROKER_PRESETS):
            raise Rejected(
                f"broker_preset: expected one of {', '.join(BROKER_PRESETS)}, got {self.broker_preset!r:.40}"
            )
        if self.over_budget not in ("refuse", "https"):
            raise Rejected(f"over_budget: expected refuse or https, got {self.over_budget!r:.40}")
        for name in ("broker_retained_mb", "https_above_mb"):
            if getattr(self, name) < 0:
                raise Rejected(f"{name}: expected 0 or more, got {getattr(self, name)}")

    @property
    def embedded_broker(self) -> bool:
        """Whether the control plane runs the broker itself."""
        return self.broker == EMBEDDED

    @property
    def broker_url(self) -> str:
        """The broker's address as the control plane uses it."""
        return f"mqtt://127.0.0.1:{self.broker_port}" if self.embedded_broker else self.broker

    @property
    def public_broker_url(self) -> str:
        """The broker's address without the control plane's user and password."""
        parts = urlsplit(self.broker_url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    @property
    def device_broker_url(self) -> str:
        """The broker's address as devices are told."""
        return self.broker_advertised or self.public_broker_url

    @property
    def identity(self) -> str:
        """What the broker knows of who speaks: one with TLS the device's `certificate`, the embedded one `none`."""
        return "certificate" if self.device_broker_url.startswith(("mqtts:", "wss:")) else "none"

    @property
    def url(self) -> str:
        """The address in join strings."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"https://{host}:{self.port}"

    @property
    def pages_url(self) -> str:
        """The address of the pages, on this machine."""
        return f"http://127.0.0.1:{self.pages_port}"


def load_settings(home: Path) -> Settings:
    """Read and check the settings of a home folder.

    Raises:
        Broken: the file cannot be read or is not TOML, or holds a key that means nothing here.
        Rejected: a value is out of its range.
    """
    path = home / "settings.toml"
    try:
        tree = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Broken(f"{path}: expected settings in TOML, got: {error}") from error
    fields = {field.name: field for field in dataclasses.fields(Settings)}
    for name, value in tree.items():
        if name not in fields:
            raise Broken(f"{path}: expected one of {', '.join(fields)}, got {name!r}; remove it")
        if type(value) is not fields[name].type:
            raise Broken(f"{path}: {name}: expected {getattr(fields[name].type, '__name__', '')}, got {value!r}")
    if "project" not in tree:
        raise Broken(f"{path}: expected project = NAME, got none")
    return Settings(**tree)


def save_settings(settings: Settings, home: Path) -> None:
    """Write the settings of a home folder as TOML, for this user alone: a broker's address may hold a password."""
    # a TOML basic string is a JSON string, and so are the integers: no writer is needed for flat settings
    lines = [f"{name} = {json.dumps(value)}" for name, value in dataclasses.asdict(settings).items()]
    text = "# Skerry control plane; restart skerry-server after a change.\n" + "\n".join(lines) + "\n"
    write_secret(home / "settings.toml", text.encode())


def _check_life(life_s: int) -> None:
    if not MIN_CERTIFICATE_LIFE_S <= life_s <= MAX_CERTIFICATE_LIFE_S:
        expected = f"{MIN_CERTIFICATE_LIFE_S} to {MAX_CERTIFICATE_LIFE_S} seconds"
        raise Rejected(f"certificate_life_s: expected {expected}, got {life_s}")


def _check_broker(url: str, name: str, *, web: bool = False) -> None:
    """Raise `Rejected` unless it is the URL of a broker, with `web` maybe one that is reached over WebSockets."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    # without the user and the password that may stand before the host
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    over_web = web and parts.scheme in ("ws", "wss")
    if not (over_web or (parts.scheme in ("mqtt", "mqtts") and port)) or not parts.hostname:
        also = ", wss://HOST/PATH" if web else ""
        raise Rejected(f"{name}: expected embedded, mqtt://HOST:PORT or mqtts://HOST:PORT{also}, got {shown}")
    if parts.scheme in ("mqtt", "ws") and parts.hostname not in LOOPBACK:
        raise Rejected(
            f"{name}: expected {parts.scheme}s:// off this machine, got {shown} (no identity, and nothing secret)"
        )
