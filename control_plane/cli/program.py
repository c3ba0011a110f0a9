"""The verbs of `skerry`, their arguments, and the one place where an error becomes a line and an exit code."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from control_plane.cli import (
    agent,
    alarms,
    broker,
    buffer,
    bundle,
    data,
    emulators,
    fleet,
    groups,
    keys,
    models,
    profiles,
    releases,
    samples,
)
from control_plane.cli.session import Session
from skerry import __version__
from skerry.errors import Broken, Rejected, SkerryError, Unavailable

EXIT_CODES = {Rejected: 2, Unavailable: 3, Broken: 4}


def parser() -> argparse.ArgumentParser:
    """Return the whole command line."""
    top = argparse.ArgumentParser(prog="skerry", description="Operate a Skerry control plane.")
    top.add_argument("--version", action="version", version=f"skerry {__version__}")
    top.add_argument("--home", type=Path, help="home folder of a server on this machine (SKERRY_HOME)")
    top.add_argument("--json", action="store_true", help="print the API's answer as JSON")
    nouns = top.add_subparsers(dest="noun", required=True, metavar="NOUN")
    for noun in (
        keys,
        data,
        profiles,
        emulators,
        models,
        releases,
        fleet,
        alarms,
        samples,
        agent,
        groups,
        broker,
        bundle,
        buffer,
    ):
        noun.add_verbs(nouns)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, or 2, 3, 4 by who must act (the sender, the network, this machine)."""
    options = parser().parse_args(arguments)
    home = options.home or (Path(os.environ["SKERRY_HOME"]) if "SKERRY_HOME" in os.environ else None)
    session = Session(
        home=home,
        url=os.environ.get("SKERRY_URL", ""),
        token=os.environ.get("SKERRY_TOKEN", ""),
        ca=os.environ.get("SKERRY_CA", ""),
        key_passphrase=os.environ.get("SKERRY_KEY_PASSPHRASE", ""),
        as_json=options.json,
    )
    try:
        options.run(options, session)
    except SkerryError as error:
        print(f"skerry: {error}", file=sys.stderr)
        return next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
    except BrokenPipeError:
        # the reader of our output has gone (`skerry events | head`): nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return 0
