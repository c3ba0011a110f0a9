"""`skerry profile`: the classes of device that ship with Skerry, one of them in full, and is this file a right one?

All of it is read from this machine: no server is asked. `prepare` makes the environment of a runtime that cannot
live beside ours, so that builds for it can be measured here.
"""

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from control_plane.cli.session import Session, table
from firmware_profiles import list_profiles, load_profile, load_profile_file
from skerry.runtimes import Found, Refused, find_runtime, prepare_environment
from skerry.runtimes.environments import REQUIREMENTS
from skerry.wire.profile import Profile, accepts_version


def add_verbs(nouns: Any) -> None:
    """Add the verbs of profiles."""
    verbs = nouns.add_parser("profile", help="classes of device").add_subparsers(
        dest="verb", required=True, metavar="VERB"
    )
    verbs.add_parser("list", help="all profiles").set_defaults(run=_list)

    show = verbs.add_parser("show", help="a profile: device, limits and budgets")
    show.add_argument("name")
    show.set_defaults(run=_show)

    check = verbs.add_parser("check", help="is this file a profile? says the line and what was expected")
    check.add_argument("file", type=Path)
    check.set_defaults(run=_check)

    prepare = verbs.add_parser("prepare", help="make the environment of a profile's runtime, where it needs its own")
    prepare.add_argument("name")
    prepare.set_defaults(run=_prepare)


def _list(options: argparse.Namespace, session: Session) -> None:
    profiles = [load_profile(name) for name in list_profiles()]
    rows = [asdict(each) | {"here": _here(each)} for each in profiles]
    columns = ("name", "architecture", "runtime", "here", "description")
    session.show(rows, table(rows, columns, empty="no profiles"))


def _show(options: argparse.Namespace, session: Session) -> None:
    profile = load_profile(options.name)
    session.show(asdict(profile) | {"here": _here(profile)}, _described(profile))


def _check(options: argparse.Namespace, session: Session) -> None:
    profile = load_profile_file(options.file)
    session.show(asdict(profile), f"{options.file}: a profile of version {profile.v}, {profile.description}")


def _prepare(options: argparse.Namespace, session: Session) -> None:
    profile = load_profile(options.name)
    if profile.runtime not in REQUIREMENTS:
        text = f"{profile.name}: {profile.runtime} needs no environment of its own; here: {_here(profile)}"
        session.show({"profile": profile.name, "runtime": profile.runtime, "python": ""}, text)
        return
    found = prepare_environment(profile.runtime, log=(lambda _: None) if session.as_json else print)
    answer = {"profile": profile.name, "runtime": profile.runtime, "python": found.python, "version": found.version}
    session.show(answer, f"{profile.name}: {profile.runtime} {found.version} by {found.python}")


def _here(profile: Profile) -> str:
    """Return the version of the profile's runtime on this machine, or that it cannot be run."""
    found: Found | Refused = find_runtime(profile.runtime)
    if isinstance(found, Refused):
        return "not run"
    in_range = accepts_version(profile.runtime_version, found.version)
    return found.version if in_range else f"{found.version}, not in range"


def _described(profile: Profile) -> str:
    whole = asdict(profile)
    sections = {name: part for name, part in whole.items() if isinstance(part, Mapping) and part}
    rows = {name: part for name, part in whole.items() if not isinstance(part, Mapping) and part not in (None, ())}
    rows["runtime"] = f"{profile.runtime} {profile.runtime_version} (here: {_here(profile)})"
    del rows["runtime_version"]
    if profile.operators:
        rows["operators"] = f"{len(profile.operators)}: {', '.join(profile.operators)}"
    lines = _aligned(rows)
    for name, part in sections.items():
        lines += ["", f"[{name}]", *_aligned(part)]
    return "\n".join(lines)


def _aligned(values: Mapping[str, Any]) -> list[str]:
    width = max(map(len, values))
    return [f"{name.ljust(width)}  {_text(value)}" for name, value in values.items()]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(value) if isinstance(value, tuple) else str(value) or "-"
