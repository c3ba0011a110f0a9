"""Owns the embedded broker: a child process that listens on 127.0.0.1 alone, and its configuration.

It knows no identities and keeps nothing on disk: for one machine, and filled anew at each connect of the link. Of an
external broker this module only finds out, at the start, whether it is there.
"""

import socket
from pathlib import Path
from urllib.parse import urlsplit

from iotcore import Broker

from control_plane.home import Home
from control_plane.settings import Settings
from skerry.delivery.durable import write_durably
from skerry.errors import Broken, Unavailable
from skerry.wire.codec import MAX_BYTES

CONNECT_TIMEOUT_S = 5.0

# Retained messages live in the broker's memory and are replayed from there; its logs hold what is in flight to slow
# readers: 8 segments of 1 MiB per filter bound it, and a reader that falls further behind asks again.
_CONFIG = """\
id = 0

[router]
id = 0
max_connections = 10010
max_outgoing_packet_count = 200
max_segment_size = 1048576
max_segment_count = 8

[v5.1]
name = "skerry"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1

[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = {max_bytes}
max_inflight_count = 100
dynamic_filters = true
"""


class EmbeddedBroker:
    """The child process; `ensure` starts it, also again after it has died."""

    def __init__(self, home: Home, port: int) -> None:
        self._home = home
        self._port = port
        self._broker: Broker | None = None

    def ensure(self) -> None:
        """Start the broker unless it runs; returns when it accepts connections.

        Raises:
            Broken: the port is taken, or the broker does not come up.
        """
        if self._broker is not None and self._broker.is_running:
            return
        write_durably(self._home.broker_config, _CONFIG.format(port=self._port, max_bytes=MAX_BYTES).encode())
        self._broker = Broker(config_path=str(self._home.broker_config))
        try:
            self._broker.start()
        except OSError as error:
            raise Broken(
                f"broker: expected port {self._port} of 127.0.0.1 to be free, got one in use; "
                f"set broker_port in {self._home.settings}"
            ) from error
        except RuntimeError as error:
            raise Broken(f"broker: expected it to start on port {self._port}, got: {error}") from error

    def stop(self) -> None:
        """Stop the broker; safe to call twice."""
        if self._broker is not None:
            self._broker.stop()


def check_external(settings: Settings) -> None:
    """Connect to an external broker once, at the start: later outages are waited for, a wrong address is not.

    Raises:
        Unavailable: nothing accepts connections there.
        Broken: the file of its CA certificates is not there.
    """
    if settings.broker_ca and not Path(settings.broker_ca).is_file():
        raise Broken(f"broker_ca: expected a file of CA certificates, got none at {settings.broker_ca}; set broker_ca")
    parts = urlsplit(settings.broker_url)
    try:
        socket.create_connection((parts.hostname, parts.port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise Unavailable(
            f"broker: expected one at {settings.public_broker_url}, got: {error}; start it, or set broker"
        ) from error


def free_port(preferred: int) -> int:
    """Return `preferred` if 127.0.0.1 has it free, another free port otherwise."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise Broken("ports: expected a free one on 127.0.0.1, got none")
