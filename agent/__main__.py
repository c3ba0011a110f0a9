"""`skerry-agent`: the program on the device.

init     enrol this machine with a join string
run      infer, update, tell; until told to stop
status   say what this device runs and what it has not yet said
"""

import argparse
import json
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent.config import read_config
from agent.identity import StateFolder
from skerry import __version__
from skerry.errors import Broken, Rejected, SkerryError, Unavailable

DEFAULT_STATE = Path("skerry-agent")
EXIT_CODES = {Rejected: 2, Unavailable: 3, Broken: 4}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; errors are one line on stderr and an exit status by who must act."""
    options = _parser().parse_args(argv)
    _log_to_stderr(verbose=options.verbose)
    verbs = {"init": _init, "run": _run, "status": _status}
    try:
        return verbs[options.verb](options)
    except SkerryError as error:
        print(f"skerry-agent: {error}", file=sys.stderr)
        return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)
    except OSError as error:
        print(f"skerry-agent: {error.filename}: {error.strerror}; check its permissions and the disk", file=sys.stderr)
        return EXIT_CODES[Broken]
    except KeyboardInterrupt:
        return 130


def _init(options: argparse.Namespace) -> int:
    from agent.enrol import enrol

    identity = enrol(
        options.join,
        profile=options.profile,
        folder=options.state,
        runtime=options.runtime,
        simulated=options.simulate,
    )
    simulated = ", simulated" if identity.simulated else ""
    print(f"enrolled as {identity.who} ({identity.profile}, {identity.runtime}{simulated}) in {options.state}")
    return 0


def _run(options: argparse.Namespace) -> int:
    from agent.daemon import Daemon

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    folder = StateFolder(options.state)
    folder.identity()
    names = {"replay": "replay", "seed": "seed", "rate": "rate", "event_step": "event_step_s"}
    names |= {"window_rows": "window_rows", "broker": "broker"}
    config = read_config(folder.path, {field: getattr(options, name) for name, field in names.items()})
    with folder.lock():
        daemon = Daemon(folder, config)
        logging.getLogger("skerry.agent").info("%s, profile %s", daemon.identity.who, daemon.identity.profile)
        return daemon.run(stop)


def _status(options: argparse.Namespace) -> int:
    from agent.outbox import look
    from agent.runner import read_state

    folder = StateFolder(options.state)
    identity, state, outbox = folder.identity(), read_state(folder.lifecycle_file), look(folder.outbox_file)
    if options.json:
        tree: dict[str, Any] = {
            "identity": asdict(identity),
            "lifecycle": asdict(state),
            "outbox": outbox.rows,
            "event_clock": outbox.event_clock,
        }
        print(json.dumps(tree, indent=2))
        return 0
    rows = {
        "device": f"{identity.who} ({identity.profile}, {identity.runtime})",
        "broker": identity.broker,
        "state": state.phase + (f": {state.reason}" if state.reason else ""),
        "committed": f"{state.good.release} (manifest {state.good.manifest[:16]})"
        if state.good.manifest
        else "nothing",
        "deployment": f"{state.grant.deployment} of {state.grant.release}" if state.grant else "none",
        "not yet heard": ", ".join(f"{count} {kind}" for kind, count in sorted(outbox.rows.items())) or "nothing",
    }
    for name, text in rows.items():
        print(f"{name:>14}  {text}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="skerry-agent", description="The program on the device.")
    parser.add_argument("--version", action="version", version=f"skerry-agent {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    init = verbs.add_parser("init", help="enrol this machine with a join string")
    init.add_argument("join", metavar="JOIN", help="https://HOST:PORT#TOKEN:SHA256, in quotes")
    init.add_argument("--profile", required=True, help="the class of device that the invitation is for")
    init.add_argument("--runtime", default="", help="refuse another runtime than this one")
    init.add_argument("--simulate", action="store_true", help="run another architecture's profile on this machine")

    run = verbs.add_parser("run", help="infer, update, tell; until told to stop")
    run.add_argument("--replay", metavar="FILE", help="inputs: an npz with X (n, ...) or an array per input, and y")
    run.add_argument("--seed", type=int, help="of the order in which rows are replayed")
    run.add_argument("--rate", type=float, metavar="PER_S", help="inferences per second of the real clock; 0: all out")
    run.add_argument("--event-step", type=float, metavar="S", help="event time per inference; 0: the real clock")
    run.add_argument("--window-rows", type=int, metavar="N", help="inferences per report; default: the monitor's")
    run.add_argument("--broker", metavar="URL", help="another way to the same broker, such as a relay")

    status = verbs.add_parser("status", help="say what this device runs and what it has not yet said")
    status.add_argument("--json", action="store_true", help="for programs")

    for verb in (init, run, status):
        verb.add_argument("--state", type=Path, default=DEFAULT_STATE, metavar="DIR", help="the state folder")
        verb.add_argument("-v", "--verbose", action="store_true", help="say more")
    return parser


def _log_to_stderr(*, verbose: bool) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
    )


if __name__ == "__main__":
    sys.exit(main())
