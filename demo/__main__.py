"""`make demo`: from nothing to a fleet that noticed that its world had changed, and was brought up to date."""

import argparse
import json
import os
import shutil
import signal
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from demo import figures, story, watch
from demo.fleet import Fleet
from demo.programs import Programs
from demo.relay import Relay
from demo.report_page import write_report_page
from skerry.client import Client
from skerry.errors import Rejected, SkerryError

FOLDER = Path("build/demo")


def main() -> int:
    """Tell the story, write the report, and say whether the story held."""
    options = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    options.add_argument("--keep", action="store_true", help="leave the control plane and the agents up")
    chosen = options.parse_args()
    # the numeric libraries of this process keep to one thread, as those of the programs it starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(highlight=False)
    try:
        return play(console, keep=chosen.keep)
    except SkerryError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def play(console: Console, *, keep: bool) -> int:
    """Found a control plane in an empty folder, tell the story there, write the report."""
    began, began_at = time.monotonic(), datetime.now(UTC)
    folder = emptied(FOLDER)
    windows = watch.load()
    console.print(
        f"{len(windows.x)} windows of 10 wearers, seven exercises; everything goes to {folder}", soft_wrap=True
    )

    home, keys = folder / "server", folder / "offline-keys"
    with Programs(home=home, logs=folder / "logs") as programs:
        broker, pages = found_control_plane(programs, keys)
        token = (home / "operator.token").read_text().strip()
        with Relay(broker) as relay, Client(pages, token) as client:
            fleet = Fleet(programs, client, folder / "devices", windows)
            tale = story.Story(
                folder=folder,
                console=console,
                programs=programs,
                client=client,
                fleet=fleet,
                windows=windows,
                relay=relay,
                began=began,
                began_at=began_at,
                keys=keys,
            )
            try:
                story.tell(tale)
            finally:
                fleet.end()
            result = figures.report(tale, seconds=time.monotonic() - began)
            unmet = figures.unmet(result, expected_flag=story.MOVES_FIRST.name)
            (folder / "report.json").write_text(json.dumps(result, indent=2) + "\n")
            write_report_page(folder / "report.html", result, figures.series(tale))
            show(console, result, unmet, folder)
            if keep:
                stay(console, programs, address=f"{pages}/login?token={token}")
    return 1 if unmet else 0


def emptied(folder: Path) -> Path:
    """Return the folder, absolute and empty, so that a second run begins like the first."""
    folder = folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def found_control_plane(programs: Programs, keys: Path, *, broker_url: str = "embedded") -> tuple[int, str]:
    """Make a home, run the server, hold the key ceremony.

    Return the port of the embedded broker (without a meaning where `broker_url` names another) and the pages' address.
    """
    port, pages, broker = free_ports(3)
    programs.run(
        "skerry-server",
        "init",
        *("--home", str(programs.home)),
        *("--project", "watch"),
        *("--port", str(port)),
        *("--pages-port", str(pages)),
        *("--broker", broker_url),
        *("--broker-port", str(broker)),
    )
    programs.start("server", "skerry-server", "run", "--home", str(programs.home))
    deadline = time.monotonic() + 30
    while True:
        programs.check_running()
        try:
            programs.skerry("health")
            break
        except Rejected:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    # one machine and one command hold all offline keys here; in production they are three of two, on other machines
    programs.skerry("keys", "init", "--out", str(keys), "--keys", "1", "--threshold", "1")
    return broker, f"http://127.0.0.1:{pages}"


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that are free now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def show(console: Console, result: dict[str, object], unmet: list[str], folder: Path) -> None:
    """Print the report as a table, and what did not hold."""
    table = Table(title="What the fleet reported", title_justify="left", show_header=False)
    for key, value in flat(result):
        table.add_row(key, str(value))
    console.print()
    console.print(table)
    console.print(f"report: {folder / 'report.json'}\ncharts: {folder / 'report.html'}", soft_wrap=True)
    for line in unmet:
        console.print(f"[red]not as promised[/red]: {line}", soft_wrap=True)
    if not unmet:
        console.print("[green]every promise of the story was kept[/green]")


def flat(tree: dict[str, object], prefix: str = "") -> list[tuple[str, object]]:
    """Return the leaves of a tree with dotted names."""
    rows: list[tuple[str, object]] = []
    for key, value in tree.items():
        rows += flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return rows


def stay(console: Console, programs: Programs, *, address: str) -> None:
    """Leave everything up until Ctrl-C."""
    console.print(f"\nthe control plane and its eight agents stay up: {address}\nend them with Ctrl-C", soft_wrap=True)
    try:
        programs.wait_for("server")
    except KeyboardInterrupt:
        console.print("ending")


if __name__ == "__main__":
    sys.exit(main())
