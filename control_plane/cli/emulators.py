"""`skerry emulator`: the other machines that builds are run on before they are released, on this machine."""

import argparse
import sys
from pathlib import Path
from typing import Any

from control_plane.cli.session import Session, table

KINDS = ("arm64", "cortex-m")
DEFAULT_FOLDER = Path("~/.cache/skerry/emulators")


def add_verbs(nouns: Any) -> None:
    """Add the verbs of emulators."""
    verbs = nouns.add_parser("emulator", help="arm64 and Cortex-M on this machine").add_subparsers(
        dest="verb", required=True, metavar="VERB"
    )

    prepare = verbs.add_parser("prepare", help="fetch what an emulator needs, and say what it needs of this machine")
    _add_kind(prepare)
    prepare.add_argument("--install", action="store_true", help="install missing Debian packages here, as root")
    prepare.set_defaults(run=_prepare)

    status = verbs.add_parser("status", help="is it ready, in which versions, and what is missing")
    _add_kind(status)
    status.set_defaults(run=_status)


def _add_kind(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("kind", choices=KINDS)
    verb.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help=f"default: {DEFAULT_FOLDER}")


def _prepare(options: argparse.Namespace, session: Session) -> None:
    from converters.emulators import prepare

    def log(line: str) -> None:
        # beside a JSON answer, the story goes where it does not end up in it
        print(line, file=sys.stderr if session.as_json else sys.stdout, flush=True)

    done = prepare(options.kind, options.folder, log, install=options.install)
    session.show(done.to_json(), _text(done))


def _status(options: argparse.Namespace, session: Session) -> None:
    from converters.emulators import status

    found = status(options.kind, options.folder)
    session.show(found.to_json(), _text(found))


def _text(status: Any) -> str:
    rows = [{"what": name, "version": version} for name, version in sorted(status.versions.items())]
    lines = [f"{status.kind}: {'ready' if status.ready else 'not ready'}"]
    lines += [f"  missing: {line}" for line in status.missing]
    return "\n".join([*lines, *([table(rows, ("what", "version"), empty="")] if rows else [])])
