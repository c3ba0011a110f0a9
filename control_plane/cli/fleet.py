"""`skerry device`, `skerry drift`, `skerry outbox` and `skerry events`: what the fleet is and says."""

import argparse
import time
from typing import Any

from control_plane.cli import requests
from control_plane.cli.session import Session, cell, read_pairs, table

CONFIGURED = (
    "rate_limit_bytes_s, resume_bytes_s, quiet_hours (such as 22:00-06:00, UTC), metered (allow or pause), "
    "start_jitter_s; KEY= takes it away"
)


def add_verbs(nouns: Any) -> None:
    """Add the verbs of the fleet."""
    verbs = nouns.add_parser("device", help="devices").add_subparsers(dest="verb", required=True, metavar="VERB")

    invite = verbs.add_parser("invite", help="make a claim token; print its join string")
    invite.add_argument("--profile", required=True)
    invite.add_argument("--name", default="", help="the device's name; chosen by the server where not given")
    invite.add_argument("--group", default="default")
    invite.add_argument("--uses", type=int, default=1)
    invite.add_argument("--ttl", type=int, default=86400, metavar="SECONDS")
    invite.add_argument("--approve", choices=("automatic", "pending"), default="", help="default: the group's rule")
    invite.set_defaults(run=_invite)

    verbs.add_parser("pending", help="devices that wait to be accepted").set_defaults(run=_pending)
    for verb, run, what in (("accept", _accept, "enrol a device that waits"), ("reject", _reject, "turn it away")):
        decide = verbs.add_parser(verb, help=what)
        decide.add_argument("device")
        decide.set_defaults(run=run)

    create = verbs.add_parser("create", help="name a device for installs from a file")
    create.add_argument("device")
    create.add_argument("--profile", required=True)
    create.add_argument("--group", default="default")
    create.set_defaults(run=_create)

    revoke = verbs.add_parser("revoke", help="end a device's identity and its session, at once")
    revoke.add_argument("device")
    revoke.set_defaults(run=_revoke)

    decommission = verbs.add_parser("decommission", help="order a device to wipe itself, then end its identity")
    decommission.add_argument("device")
    decommission.add_argument("--now", action="store_true", help="do not wait for the device: it is lost")
    decommission.set_defaults(run=_decommission)

    configure = verbs.add_parser("configure", help="what a device keeps to when it fetches; over what its group has")
    configure.add_argument("device")
    configure.add_argument("pairs", nargs="*", metavar="KEY=VALUE", help=CONFIGURED)
    configure.set_defaults(run=_configure)

    component = verbs.add_parser("component", help="models that a device runs beside its own")
    component_verbs = component.add_subparsers(dest="component_verb", required=True, metavar="VERB")
    for name, run_component, what in (
        ("add", _add_component, "let a device run a model beside what it runs"),
        ("remove", _remove_component, "take a model away that was added"),
    ):
        each = component_verbs.add_parser(name, help=what)
        each.add_argument("device")
        each.add_argument("model")
        each.set_defaults(run=run_component)

    verbs.add_parser("list", help="all devices").set_defaults(run=_list)

    show = verbs.add_parser("show", help="one device")
    show.add_argument("device")
    show.set_defaults(run=_show)

    requests.add_verbs(verbs)

    nouns.add_parser("drift", help="findings and current evidence").set_defaults(run=_drift)
    nouns.add_parser("outbox", help="what was merged, repeated and given up").set_defaults(run=_outbox)
    nouns.add_parser("health", help="is the control plane well?").set_defaults(run=_health)

    events = nouns.add_parser("events", help="the timeline")
    events.add_argument("--follow", action="store_true")
    events.set_defaults(run=_events)


def _invite(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        invitation = client.invite(
            profile=options.profile,
            name=options.name,
            group=options.group,
            uses=options.uses,
            ttl_s=options.ttl,
            approve=options.approve,
        )
    session.show(invitation, invitation["join"])


def _pending(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        claims = client.claims()
    session.show(claims, table(claims, ("device", "profile", "group", "asked_at"), empty="no device waits"))


def _accept(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        accepted = client.accept(options.device)
    session.show(accepted, f"{accepted['device']} is enrolled; it collects its certificate when it asks again")


def _reject(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        rejected = client.reject(options.device)
    session.show(rejected, f"{rejected['device']} was rejected")


def _create(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        device = client.create_device(options.device, profile=options.profile, group=options.group)
    session.show(device, f"{device['name']} is named; next: skerry bundle create, or skerry device invite --name")


def _revoke(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        revoked = client.revoke(options.device)
    session.show(revoked, revoked["done"])


def _decommission(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        answer = client.decommission(options.device, now=options.now)
    session.show(answer, answer["done"])


def _add_component(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        added = client.add_component(options.device, options.model)
    text = f"{options.device} runs {options.model} beside its own; next: skerry rollout create {options.model}-VERSION"
    session.show(added, text)


def _remove_component(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        removed = client.remove_component(options.device, options.model)
    session.show(removed, f"{options.device} runs {options.model} no more, as soon as it has heard of it")


def _configure(options: argparse.Namespace, session: Session) -> None:
    pairs = read_pairs(options.pairs)
    with session.client() as client:
        if pairs:
            client.configure_device(options.device, pairs)
        told = client.device_config(options.device)
    config = " ".join(f"{key}={value}" for key, value in sorted(told["config"].items())) or "nothing set"
    follows = "follows it" if told["version"] == told["reported_version"] else "has not said that it follows it"
    session.show(told, f"{told['device']}: {config}; version {told['version']}, the device {follows}")


def _list(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        devices = client.devices()
    rows = [
        {**device, **{key: device["reported"].get(key) for key in ("release", "state", "outbox_depth", "last_error")}}
        for device in devices
    ]
    columns = ("name", "profile", "group", "online", "release", "state", "outbox_depth", "last_error")
    session.show(devices, table(rows, columns, empty="no devices yet: skerry device invite --profile PROFILE"))


def _show(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        device = client.device(options.device)
    beside = {
        f"component {each['name']}": f"{each['reported'].get('release') or 'nothing'}, {each['reported'].get('state')}"
        for each in device["components"]
    }
    alarms = {"alarms": "; ".join(f"{each['id']}: {each['text']}" for each in device["alarms"]) or "none"}
    shown = {
        key: value for key, value in {**device["reported"], **device, **beside, **alarms}.items() if key != "components"
    }
    flat = {key: value for key, value in shown.items() if key != "reported"}
    session.show(device, "\n".join(f"{key:20} {value}" for key, value in sorted(flat.items())))


def _drift(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        drift = client.drift()
    findings = table(drift["findings"], ("kind", "device", "model", "version", "window", "log_e"), empty="no findings")
    columns = ("device", "model", "version", "state", "log_e", "severity", "windows")
    devices = table(drift["devices"], columns, empty="no evidence yet")
    session.show(drift, f"{findings}\n\n{devices}")


def _outbox(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        marks = client.outbox()
    columns = ("device", "epoch", "up_to", "merged", "repeated", "conflicts", "gaps")
    session.show(marks, table(marks, columns, empty="nothing heard yet"))


def _health(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        health = client.health()
    shown = {key: value for key, value in health.items() if key != "broker"}
    shown["ceremony"] = "held" if health["ceremony"] else "not held yet; next: skerry keys init --out FOLDER"
    shown["alarms"] = "; ".join(health["alarms"]) or "none"
    shown |= {f"broker {key}": value for key, value in health["broker"].items()}
    session.show(health, "\n".join(f"{key:17} {cell(value)}" for key, value in shown.items()))


def _events(options: argparse.Namespace, session: Session) -> None:
    after = 0
    with session.client() as client:
        while True:
            events = client.events(after=after)
            for event in events:
                after = event["id"]
                session.show(event, f"{event['at'][:19]}  {event['kind']:12}  {event['subject']:16}  {event['text']}")
            if not events:
                if not options.follow:
                    return
                time.sleep(0.5)
