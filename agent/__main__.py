"""`skerry-agent`: the program on the device.

init     enrol this machine with a join string
request  ask for a bundle, on a machine without a network
install  install a release from a bundle
run      infer, update, tell; until told to stop
status   say what this device runs and what it has not yet said
doctor   say in plain words what is wrong with this device, and who should act
"""

import argparse
import contextlib
import io
import json
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent.config import read_config
from agent.identity.folder import StateFolder
from agent.upkeep.launcher import MANIFEST_VARIABLE, RESTART, Parser
from agent.upkeep.launcher import main as launch
from agent.upkeep.logs import FORMATS, JSON, TEXT, log_to_stderr
from skerry import __version__
from skerry.errors import Broken, Rejected, SkerryError, Unavailable

DEFAULT_STATE = Path("skerry-agent")
EXIT_CODES = {Rejected: 2, Unavailable: 3, Broken: 4}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; errors are one line on stderr and an exit status by who must act."""
    options = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # as on standard error: a path that this locale cannot write is written with escapes
        sys.stdout.reconfigure(errors="backslashreplace")
    device = _device(options.state)
    log_to_stderr(verbose=options.verbose, form=options.log_format, environment=os.environ, device=device)
    # what a device keeps is for its owner alone: keys, and what was observed
    umask = os.umask(0o077)
    verbs = {"init": _init, "request": _request, "install": _install, "run": _run, "status": _status, "doctor": _doctor}
    try:
        return verbs[options.verb](options)
    except SkerryError as error:
        _end(f"{error}", form=options.log_format)
        return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)
    except OSError as error:
        _end(f"{error.filename}: {error.strerror}; check its permissions and the disk", form=options.log_format)
        return EXIT_CODES[Broken]
    except KeyboardInterrupt:
        return 130
    finally:
        os.umask(umask)


def _end(problem: str, *, form: str) -> None:
    if form == JSON:
        logging.getLogger("skerry.agent").error("%s", problem)
    else:
        print(f"skerry-agent: {problem}", file=sys.stderr)


def _init(options: argparse.Namespace) -> int:
    from agent.identity.enrol import enrol
    from agent.link.proxy import parse_proxy

    identity = enrol(
        # other users see the arguments of a process, and a claim token is in the join string
        _from_stdin() if options.join == "-" else options.join,
        profile=options.profile,
        folder=options.state,
        runtime=options.runtime,
        simulated=options.simulate,
        refuse_automatic=options.refuse_automatic,
        wait_s=options.wait,
        # an owner whose network has a proxy puts it there before anything else
        proxy=parse_proxy(read_config(options.state, {}).proxy),
    )
    _encrypt(options)
    simulated = ", simulated" if identity.simulated else ""
    print(f"enrolled as {identity.who} ({identity.profile}, {identity.runtime}{simulated}) in {options.state}")
    return 0


def _from_stdin() -> str:
    # a program that was started with its standard input closed has none
    return sys.stdin.readline(4096).strip() if sys.stdin is not None else ""


def _request(options: argparse.Namespace) -> int:
    from agent.identity.request import make_request
    from skerry.wire.join import parse_join

    pinned = parse_join(options.join).anchor_sha256 if options.join else options.anchor_sha256
    if not re.fullmatch(r"[0-9a-f]{64}", pinned):
        raise Rejected("--anchor-sha256: expected 64 hex digits, as skerry keys status shows them")
    make_request(
        StateFolder(options.state),
        options.out,
        anchor_sha256=pinned,
        profile=options.profile,
        simulated=options.simulate,
        refuse_automatic=options.refuse_automatic,
    )
    _encrypt(options)
    print(f"{options.out}: bring it to the server: skerry bundle create --device NAME --request {options.out.name} ...")
    return 0


def _encrypt(options: argparse.Namespace) -> None:
    from agent.fetching.rest import begin_to_encrypt

    if options.encrypt_at_rest is not None:
        begin_to_encrypt(options.state, options.encrypt_at_rest)


def _install(options: argparse.Namespace) -> int:
    from agent.deployment.install import install

    folder = StateFolder(options.state)
    print(install(options.bundle, folder, config=read_config(folder.path, {})))
    return 0


def _run(options: argparse.Namespace) -> int:
    from agent.daemon import Daemon
    from agent.identity.leaving import is_leaving
    from agent.inference.feeds import open_source
    from agent.upkeep.disk import Disk
    from agent.upkeep.recovery import Recovered, recover
    from agent.upkeep.service import Service
    from agent.upkeep.shadow import shadow_of

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    folder = StateFolder(options.state)
    if is_leaving(folder.path):
        return _leave(folder)
    folder.identity()
    names = {"replay": "replay", "source": "source", "seed": "seed", "rate": "rate", "event_step": "event_step_s"}
    names |= {"window_rows": "window_rows", "broker": "broker"}
    config = read_config(folder.path, {field: getattr(options, name) for name, field in names.items()})
    if options.replay or options.source:
        # whoever types a name is there to mend it; of what is configured, the daemon waits for it
        open_source(config)
    with folder.lock(), contextlib.ExitStack() as stack:
        disk = Disk(folder.path, outbox=folder.outbox_file)
        shadow = stack.enter_context(shadow_of(folder.path)) if disk.problem else None
        place = StateFolder(shadow) if shadow is not None else folder
        recovered = recover(place, config) if shadow is not None or not disk.problem else Recovered()
        if recovered.restart and not disk.problem:
            # the launcher could not tell which version to start, and can now
            return RESTART
        launched = os.environ.get(MANIFEST_VARIABLE, "")
        service = Service.of(os.environ, patience_s=config.infer_timeout_s)
        daemon = Daemon(place, config, launched=launched, service=service, disk=disk, recovered=recovered.lines)
        logging.getLogger("skerry.agent").info("%s, profile %s", daemon.identity.who, daemon.identity.profile)
        status = daemon.run(stop)
    return _leave(folder) if is_leaving(folder.path) else status


def _leave(folder: StateFolder) -> int:
    from agent.identity.leaving import wipe

    with folder.lock():
        wipe(folder.path)
    print(f"decommissioned: {folder.path} was wiped")
    return 0


def _status(options: argparse.Namespace) -> int:
    from agent.deployment.runner import read_state
    from agent.link.link_note import read_note
    from agent.telling.outbox import look

    folder = StateFolder(options.state)
    noted = read_note(folder.path)
    identity, state, outbox = folder.identity(), read_state(folder.lifecycle_file), look(folder.outbox_file)
    beside = {name: read_state(folder.component(name).lifecycle_file) for name in folder.component_names()}
    if options.json:
        tree: dict[str, Any] = {
            "identity": asdict(identity),
            "lifecycle": asdict(state),
            "outbox": outbox.rows,
            "event_clock": outbox.event_clock,
            "link": asdict(noted),
            "components": {name: asdict(each) for name, each in beside.items()},
        }
        print(json.dumps(tree, indent=2))
        return 0
    rows = {
        "device": f"{identity.who} ({identity.profile}, {identity.runtime})",
        "broker": identity.broker,
        "link": noted.problem or "no trouble noted",
        "state": state.phase + (f": {state.reason}" if state.reason else ""),
        "committed": f"{state.good.release} (manifest {state.good.manifest[:16]})"
        if state.good.manifest
        else "nothing",
        "deployment": f"{state.grant.deployment} of {state.grant.release}" if state.grant else "none",
        "not yet heard": ", ".join(f"{count} {kind}" for kind, count in sorted(outbox.rows.items())) or "nothing",
    }
    for name, each in beside.items():
        rows[f"{name:.14}"] = f"{each.good.release or 'nothing'}, {each.phase}" + (
            f": {each.reason}" * bool(each.reason)
        )
    for name, text in rows.items():
        print(f"{name:>14}  {text}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from agent.upkeep.doctor import diagnose, exit_status, show, to_json

    findings = diagnose(options.state)
    print(to_json(findings) if options.json else show(findings))
    return exit_status(findings)


def _device(state: Path) -> str:
    """Return who logs, as far as that is known."""
    try:
        return StateFolder(state).identity().who
    except (SkerryError, OSError):
        return ""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="skerry-agent", description="The program on the device.")
    parser.add_argument("--version", action="version", version=f"skerry-agent {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    init = verbs.add_parser("init", help="enrol this machine with a join string")
    init.add_argument(
        "join", metavar="JOIN", help="https://HOST:PORT#TOKEN:SHA256, in quotes; or - to read it from stdin"
    )
    init.add_argument("--profile", required=True, help="the class of device that the invitation is for")
    init.add_argument("--runtime", default="", help="refuse another runtime than this one")
    init.add_argument("--refuse-automatic", action="store_true", help="run no release that is signed online alone")
    init.add_argument("--wait", type=float, default=600, metavar="SECONDS", help="for an operator (%(default)s)")
    init.add_argument("--simulate", action="store_true", help="run another architecture's profile on this machine")

    request = verbs.add_parser("request", help="ask for a bundle, on a machine without a network")
    request.add_argument("--out", required=True, type=Path, metavar="FILE", help="what to bring to the server")
    request.add_argument("--profile", required=True, help="the class of device that it was named as")
    pin = request.add_mutually_exclusive_group(required=True)
    pin.add_argument("--anchor-sha256", default="", metavar="HEX", help="which server to trust: its anchor's hash")
    pin.add_argument("--join", default="", metavar="JOIN", help="the same, out of a join string; its token is not used")
    request.add_argument("--refuse-automatic", action="store_true", help="run no release that is signed online alone")
    request.add_argument("--simulate", action="store_true", help="run another architecture's profile on this machine")

    for verb in (init, request):
        help_text = "keep artifacts sealed on this disk, with the key in FILE; it is made if it is not there"
        verb.add_argument("--encrypt-at-rest", type=Path, metavar="FILE", help=help_text)

    install = verbs.add_parser("install", help="install a release from a bundle")
    install.add_argument("bundle", type=Path, metavar="FILE", help="what skerry bundle create wrote for this device")

    run = verbs.add_parser("run", help="infer, update, tell; until told to stop")
    run.add_argument("--replay", metavar="FILE", help="inputs: an npz with X (n, ...) or an array per input, and y")
    run.add_argument("--source", metavar="SOURCE", help="replay:FILE, csv:FILE, stdin or mqtt://127.0.0.1:1883/TOPIC")
    run.add_argument("--seed", type=int, help="of the order in which rows are replayed")
    run.add_argument("--rate", type=float, metavar="PER_S", help="inferences per second of the real clock; 0: all out")
    run.add_argument("--event-step", type=float, metavar="S", help="event time per inference; 0: the real clock")
    run.add_argument("--window-rows", type=int, metavar="N", help="inferences per report; default: the monitor's")
    run.add_argument("--broker", metavar="URL", help="another way to the same broker, such as a relay")

    status = verbs.add_parser("status", help="say what this device runs and what it has not yet said")
    doctor = verbs.add_parser("doctor", help="say what is wrong with this device, and who should act")

    for verb in (status, doctor):
        verb.add_argument("--json", action="store_true", help="for programs")
    for verb in (init, request, install, run, status, doctor):
        verb.add_argument("--state", type=Path, default=DEFAULT_STATE, metavar="DIR", help="the state folder")
        verb.add_argument("-v", "--verbose", action="store_true", help="say more")
        verb.add_argument("--log-format", choices=FORMATS, default=TEXT, help="of the lines on standard error")
    return parser


if __name__ == "__main__":
    sys.exit(launch())
