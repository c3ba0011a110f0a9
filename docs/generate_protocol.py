"""Write `docs/protocol.md` from `skerry/wire/`: `python docs/generate_protocol.py` (with `--check`, only compare)."""

import dataclasses
import inspect
import sys
import typing
from pathlib import Path

from skerry.wire import batch, codec, enrolment, evidence, manifest, messages, profile, report, requests, sample, topics

PAGE = Path(__file__).with_name("protocol.md")
WHO = "PROJECT.DEVICE"

TOPICS = (
    (topics.down(WHO, "desired"), "device", "retained, QoS 1", "Desired"),
    (topics.down(WHO, "assign"), "device", "retained, QoS 1", "Assign"),
    (topics.down(WHO, "ack"), "device", "QoS 1", "Ack"),
    (topics.down(WHO, "request"), "device", "QoS 1", "Request"),
    (topics.up(WHO, "reported"), "control plane", "retained, QoS 1; also the last will", "Reported"),
    (topics.up(WHO, "outbox"), "control plane", "QoS 1", "Outbox"),
    (topics.up(WHO, "answer"), "control plane", "QoS 1", "Answer"),
    (topics.tuf("PROJECT", "index"), "device", "retained", "Index"),
    (
        topics.tuf("PROJECT", "ROLE"),
        "device",
        "retained",
        "TUF metadata: `timestamp`, `N.snapshot`, `N.targets`, `N.root`",
    ),
    (
        topics.blob("SHA256", 0).replace("/0", "/N"),
        "device",
        "retained",
        f"chunk N of a file, {manifest.CHUNK_BYTES} bytes",
    ),
)

GROUPS = (
    (
        "From the control plane to a device",
        (messages.Desired, messages.Assign, messages.Terms, messages.Ack, messages.Request, messages.Index),
    ),
    (
        "From a device to the control plane",
        (
            messages.Reported,
            messages.Component,
            messages.SlotReport,
            messages.RunsReport,
            messages.Vitals,
            messages.Outbox,
            messages.Entry,
            messages.DeploymentEvent,
            evidence.SignedEvidence,
            evidence.Evidence,
            evidence.BuildRun,
            evidence.Race,
            messages.Gap,
            report.WindowReport,
            sample.Sample,
            messages.Answer,
        ),
    ),
    ("Enrolment, over HTTPS", (enrolment.Anchor, enrolment.EnrolRequest, enrolment.Enrolled, enrolment.TicketRequest)),
    (
        "Proof of the device's key, over HTTPS",
        (enrolment.NonceRequest, enrolment.Nonce, enrolment.RenewRequest, enrolment.TokenRequest, enrolment.Token),
    ),
    (
        "Signed descriptions",
        (
            manifest.Manifest,
            manifest.FileEntry,
            manifest.TensorSpec,
            manifest.Tolerance,
            manifest.SamplePolicy,
            profile.Profile,
            profile.Hardware,
            profile.TransportLimits,
            profile.Budgets,
        ),
    ),
)


def page() -> str:
    """Return the whole page."""
    lines = [
        "# Protocol",
        "",
        f"Version {messages.VERSION} of the wire. Generated from `skerry/wire/` by `make protocol`; a test compares.",
        f"Control messages are JSON of at most {codec.MAX_BYTES} bytes; a reader ignores keys that it does not know",
        "and refuses a missing or wrongly typed one. Connections are MQTT 5, clean start off, with a session expiry.",
        "",
        "## Topics",
        "",
        "| topic | read by | how | payload |",
        "| --- | --- | --- | --- |",
        *(f"| `{topic}` | {reader} | {how} | {payload} |" for topic, reader, how, payload in TOPICS),
        "",
        "A device subscribes to at most 8 explicit blob topics at once, to no wildcard. An empty chunk is missing.",
    ]
    for title, kinds in GROUPS:
        lines += ["", f"## {title}"]
        for kind in kinds:
            lines += ["", *section(kind)]
    lines += ["", "## The body of a `window` entry", "", inspect.getdoc(report) or ""]
    lines += ["", "## Packed outbox messages", "", inspect.getdoc(batch) or ""]
    lines += ["", "## Remote requests", "", inspect.getdoc(requests) or ""]
    return "\n".join(lines) + "\n"


def section(kind: type) -> list[str]:
    """Return the section of one message: its docstring and its fields."""
    hints = typing.get_type_hints(kind)
    rows = [f"| `{field.name}` | {shown(hints[field.name])} | {default(field)} |" for field in dataclasses.fields(kind)]
    return [
        f"### {kind.__name__}",
        "",
        inspect.getdoc(kind) or "",
        "",
        "| field | type | default |",
        "| --- | --- | --- |",
        *rows,
    ]


def shown(hint: object) -> str:
    """Return a type as a reader of JSON would call it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return f"list of {shown(arguments[0])}"
    if origin is dict:
        return f"object of {shown(arguments[1])}"
    names: dict[object, str] = {int: "integer", str: "text", float: "number", bool: "true or false", typing.Any: "any"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def default(field: "dataclasses.Field[object]") -> str:
    """Return the default as JSON would say it, or `required`."""
    if field.default_factory is not dataclasses.MISSING:
        return "empty"
    if field.default is dataclasses.MISSING:
        return "required"
    return f"`{field.default!r}`" if field.default != "" else "empty"


def main() -> int:
    """Write the page, or with `--check` say whether it is what the wire says."""
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.read_text() == page() else 1
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
