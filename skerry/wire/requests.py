"""What may be asked of a device from afar: an allow-list of verbs with their arguments, and how long text travels.

Both shores check by the same rules: the control plane before it asks, the device before it acts.
"""

import base64
import binascii
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from skerry.errors import Rejected
from skerry.wire import topics
from skerry.wire.messages import AGENT

COLLECT_LOGS = "collect-logs"  # the last lines of the agent's own log
SELF_TEST = "self-test"  # replays the golden vectors and looks at what a device depends on
RESTART_MODEL = "restart-model"  # ends what runs the committed model, or that of a component, and loads it again
RESEND_WINDOW = "resend-window"  # one closed window once more, where it has not been acknowledged
VERBS = (COLLECT_LOGS, SELF_TEST, RESTART_MODEL, RESEND_WINDOW)

DEFAULT_LINES = 200
MAX_LINES = 2000
# of a text in an answer, as it travels; and of what it may become once unpacked
MAX_TEXT_BYTES = 32 * 1024
MAX_UNPACKED_BYTES = 512 * 1024
PLAIN_BYTES = 2048
_ID = re.compile(r"[0-9a-f]{8,32}")
_MANIFEST = re.compile(r"[0-9a-f]{4,64}")


def check_id(text: str) -> str:
    """Return a request's id if it is one: 8 to 32 hex digits; raises `Rejected`."""
    if not _ID.fullmatch(text):
        raise Rejected(f"request: expected an id of 8 to 32 hex digits, got {text!r:.60}")
    return text


def check_request(verb: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a request as they are used, numbers from text too.

    Raises:
        Rejected: there is no such verb, or it takes no such argument.
    """
    if verb not in VERBS:
        raise Rejected(f"request: expected one of {', '.join(VERBS)}, got {verb!r:.40}")
    rules = _RULES[verb]
    unknown = sorted(args.keys() - rules.keys())
    if unknown:
        takes = ", ".join(rules) or "no arguments"
        raise Rejected(f"{verb}: expected {takes}, got {', '.join(unknown)[:80]}")
    checked = {name: rules[name](f"{verb}: {name}", value) for name, value in args.items()}
    if verb == RESEND_WINDOW and ("sequence" in checked) == ("number" in checked):
        raise Rejected(f"{verb}: expected either sequence or number, got {'both' if checked else 'none'}")
    return checked


def pack_text(lines: list[str]) -> dict[str, Any]:
    """Return the last of the lines that fit, as the part of an answer: plain when short, compressed when long."""
    kept = lines
    while True:
        text = "\n".join(kept)
        plain = text.encode(errors="backslashreplace")
        told = {"lines": len(kept), "left_out": len(lines) - len(kept)}
        if len(plain) <= PLAIN_BYTES:
            return {**told, "text": plain.decode()}
        packed = base64.b64encode(zlib.compress(plain, 9)).decode()
        if len(packed) <= MAX_TEXT_BYTES and len(plain) <= MAX_UNPACKED_BYTES:
            return {**told, "zlib": packed}
        # the oldest go first; a line longer than all that may travel leaves nothing
        kept = kept[len(kept) // 4 + 1 :]


def unpack_text(result: Mapping[str, Any]) -> str:
    """Return the text in an answer; raises `Rejected` when there is none, or it is too long."""
    plain, packed = result.get("text"), result.get("zlib")
    if isinstance(plain, str):
        return plain
    if not isinstance(packed, str):
        raise Rejected("answer: expected a text, got none")
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(base64.b64decode(packed, validate=True), MAX_UNPACKED_BYTES)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise Rejected(f"answer: expected a text compressed by zlib, got: {error}") from error
    if unpacker.unconsumed_tail or not unpacker.eof:
        raise Rejected(f"answer: expected a text of at most {MAX_UNPACKED_BYTES} bytes, got more or a piece of one")
    return data.decode(errors="replace")


def _whole(least: int, most: int) -> Callable[[str, Any], int]:
    def check(what: str, value: Any) -> int:
        if isinstance(value, str) and len(value) < 20 and value.isascii() and value.isdecimal():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise Rejected(f"{what}: expected a whole number from {least} to {most}, got {str(value)[:40]!r}")
        return value

    return check


def _manifest(what: str, value: Any) -> str:
    if not isinstance(value, str) or not _MANIFEST.fullmatch(value):
        raise Rejected(f"{what}: expected 4 to 64 hex digits of a manifest's SHA-256, got {str(value)[:40]!r}")
    return value


def _component(what: str, value: Any) -> str:
    if not isinstance(value, str) or not topics.is_name(value):
        raise Rejected(f"{what}: expected a component's name, got {str(value)[:63]!r}; leave it out for the one model")
    if value == AGENT:
        raise Rejected(f"{what}: expected one that runs a model, got the agent itself")
    return value


_RULES: Mapping[str, Mapping[str, Callable[[str, Any], Any]]] = {
    COLLECT_LOGS: {"lines": _whole(1, MAX_LINES)},
    SELF_TEST: {},
    RESTART_MODEL: {"component": _component},
    RESEND_WINDOW: {
        "sequence": _whole(1, (1 << 62)),
        "number": _whole(0, (1 << 62)),
        "manifest": _manifest,
    },
}
