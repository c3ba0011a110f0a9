"""The embedded broker knows nobody, so it is on loopback and nowhere else."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from control_plane.broker import EmbeddedBroker
from control_plane.home import create_home


@pytest.fixture
def port(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[int]:
    """The port of an embedded broker that runs."""
    chosen = free_port()
    broker = EmbeddedBroker(create_home(tmp_path / "home"), chosen)
    broker.ensure()
    yield chosen
    broker.stop()


def _listening(port: int) -> set[str]:
    """Return the addresses that listen on a port, as the kernel has them: hexadecimal, in the machine's order."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].rpartition(":")[0] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}


def test_it_listens_on_loopback_alone(port: int) -> None:
    assert _listening(port) == {"0100007F"}


def test_no_other_address_of_this_machine_answers(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=2):
        pass
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", port), timeout=2)
