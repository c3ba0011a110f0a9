"""Owns the outer form of files that go to key holders and back: JSON with a format, and TUF metadata as text."""

import json
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets
from tuf.api.serialization import DeserializationError

from skerry.errors import Rejected
from skerry.wire import codec

MAX_BYTES = 8 << 20
T = TypeVar("T")
S = TypeVar("S", Root, Targets)


@dataclass(frozen=True, slots=True)
class Shown:
    """What a change comes to, a line each; `checked`: what it follows could be checked, else all is shown as new."""

    lines: tuple[str, ...]
    checked: bool


def read_file(kind: type[T], data: bytes, what: str, *, form: str, made_by: str) -> T:
    """Read the file `what` of this form, which the command `made_by` writes; raises `Rejected` for anything else."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Rejected(f"{what}: expected a file of `{made_by}`, got no JSON") from error
    if not isinstance(tree, dict) or tree.get("format") != form:
        found = tree.get("format") if isinstance(tree, dict) else tree
        raise Rejected(f"{what}: expected the format {form} of `{made_by}`, got {found!r:.60}")
    return codec.from_tree(kind, tree)


def write_file(file: Any) -> bytes:
    """Return the bytes of the file of a dataclass."""
    return json.dumps(asdict(file), indent=1).encode() + b"\n"


def parse_metadata(kind: type[S], text: str) -> Metadata[S]:
    """Parse metadata of a type; raises `Rejected` for another, and for a root that names keys without having them."""
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(text.encode())
    except (DeserializationError, RepositoryError, RecursionError) as error:
        raise Rejected(f"{kind.type}: expected TUF metadata, got {text[:40]!r}") from error
    if not isinstance(metadata.signed, kind):
        raise Rejected(f"{kind.type}: expected metadata of this type, got {metadata.signed.type}")
    if isinstance(metadata.signed, Root):
        named = {keyid for role in metadata.signed.roles.values() for keyid in role.keyids}
        if not named <= set(metadata.signed.keys):
            raise Rejected(f"root {metadata.signed.version}: expected each key that it names, got key ids without keys")
    return metadata
