"""`skerry model samples` and `skerry sample`: which inputs may leave devices, and those that did."""

import argparse
import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from control_plane.cli.session import Session, table
from skerry.errors import Rejected

MOST_ROWS = 1000


def add_model_verb(verbs: Any) -> None:
    """Add it to the verbs of `skerry model`."""
    samples = verbs.add_parser("samples", help="which inputs may leave its devices, from its next release on")
    samples.add_argument("model")
    samples.add_argument("--rows-per-window", type=int, metavar="N", help="of each window, at most")
    samples.add_argument("--inputs", default="", metavar="A,B", help="the inputs of these rows that are sent")
    samples.add_argument("--max-bytes", type=int, metavar="N", help="of one row at most, all inputs together")
    samples.add_argument("--none", action="store_true", help="none may leave, as at the beginning")
    samples.set_defaults(run=_set)


def add_verbs(nouns: Any) -> None:
    """Add the verbs of samples."""
    noun = nouns.add_parser("sample", help="inputs that devices were allowed to send")
    verbs = noun.add_subparsers(dest="verb", required=True, metavar="VERB")

    listing = verbs.add_parser("list", help="what is stored of a device, without the inputs, and for how long")
    listing.add_argument("device")
    listing.add_argument("--after", type=int, default=-1, metavar="ID", help="those that came after this one")
    listing.set_defaults(run=_list)

    delete = verbs.add_parser("delete", help="delete samples of a device for good")
    delete.add_argument("device")
    delete.add_argument("numbers", nargs="*", metavar="ID")
    delete.add_argument("--all", dest="every", action="store_true", help="all of them")
    delete.set_defaults(run=_delete)

    export = verbs.add_parser("export", help="write the inputs to a file; that you read them is audited")
    export.add_argument("device")
    export.add_argument("--out", required=True, type=Path, metavar="FILE.npz")
    export.add_argument("--model", default="", help="those of this model alone")
    export.add_argument("--version", type=int, metavar="N", help="those of this version alone")
    export.add_argument("--after", type=int, default=-1, metavar="ID", help="those that came after this one")
    export.add_argument("--most", type=int, default=MOST_ROWS, metavar="N", help=f"{MOST_ROWS} where not given")
    export.set_defaults(run=_export)


def shown(policy: dict[str, Any]) -> str:
    """Return a policy in words."""
    if not policy["rows_per_window"]:
        return "no inputs"
    inputs = ", ".join(policy["inputs"])
    return f"{policy['rows_per_window']} rows of a window: {inputs}, at most {policy['max_bytes']} bytes of each row"


def _set(options: argparse.Namespace, session: Session) -> None:
    inputs = [name.strip() for name in options.inputs.split(",") if name.strip()]
    given = [options.rows_per_window is not None, bool(inputs), options.max_bytes is not None]
    if (options.none and any(given)) or (any(given) and not all(given)):
        raise Rejected("model samples: expected --rows-per-window, --inputs and --max-bytes together, or --none alone")
    with session.client() as client:
        if options.none:
            policy = client.set_model_samples(options.model)
        elif inputs:
            policy = client.set_model_samples(
                options.model, rows_per_window=options.rows_per_window, inputs=inputs, max_bytes=options.max_bytes
            )
        else:
            policy = client.model_samples(options.model)
    changed = "; next: skerry release create, and the offline signatures" if options.none or inputs else ""
    session.show(policy, f"{options.model}: from its next release on devices may send {shown(policy)}{changed}")


def _list(options: argparse.Namespace, session: Session) -> None:
    with session.client() as client:
        told = client.list_samples(options.device, after=options.after, most=MOST_ROWS)
    rows = [{**each, "taken_at": each["taken_at"][:19]} for each in told["samples"]]
    columns = ("id", "taken_at", "model", "version", "window", "size_bytes", "state", "reason")
    account = (
        f"{told['device']}: {told['stored']} stored, {told['size_bytes']} bytes; {told['quarantined']} quarantined; "
        f"{told['deleted']} deleted. Kept for {told['sample_days']} days, "
        f"{told['sample_device_mb']} MB of a device and {told['sample_fleet_mb']} MB of all at most"
    )
    more = f"; there may be more: --after {rows[-1]['id']}" if len(rows) == MOST_ROWS else ""
    session.show(told, f"{table(rows, columns, empty='no samples')}\n\n{account}{more}")


def _delete(options: argparse.Namespace, session: Session) -> None:
    strange = [each for each in options.numbers if not (each.isascii() and each.isdecimal() and len(each) < 19)]
    if strange:
        raise Rejected(
            f"sample delete: expected numbers of samples, got {strange[0]!r:.40}; "
            f"see: skerry sample list {options.device}"
        )
    if options.every == bool(options.numbers):
        got = "both" if options.every else "neither"
        raise Rejected(f"sample delete: expected ID of samples, or --all, got {got}")
    with session.client() as client:
        gone = client.delete_samples(options.device, [int(each) for each in options.numbers], every=options.every)
    session.show(
        gone,
        f"{options.device}: {gone['stored']} samples of {gone['size_bytes']} bytes are deleted; what the device sends "
        "from now on follows the policy of its model: skerry model samples MODEL --none",
    )


def _export(options: argparse.Namespace, session: Session) -> None:
    from skerry.delivery.durable import write_durably
    from skerry.runtimes.arrays import pack

    if options.most < 1:
        raise Rejected(f"--most: expected 1 or more, got {options.most}")
    with session.client() as client:
        found = client.device_samples(
            options.device, model=options.model, version=options.version, after=options.after, most=options.most
        )
        rows = list(found)
    if not rows:
        raise Rejected(
            f"{options.device}: expected stored samples, got none; see skerry sample list and skerry model samples"
        )
    write_durably(options.out, pack(as_arrays(rows)), mode=0o600)
    last = rows[-1]["id"]
    told = {"file": str(options.out), "rows": len(rows), "last": last}
    more = f"; there may be more: --after {last}" if len(rows) == options.most else ""
    session.show(told, f"{len(rows)} samples of {options.device} are in {options.out}{more}")


def as_arrays(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return samples as arrays, rows first: an array for each input by its name, and what is known of each row.

    Raises:
        Rejected: they are of models with different inputs, or no samples.
    """
    import numpy as np

    kinds = {(row["model"], row["version"]): _signature(row) for row in rows}
    if len({str(each) for each in kinds.values()}) > 1:
        known = ", ".join(f"{model} {version}" for model, version in sorted(kinds))
        raise Rejected(f"samples: expected those of one kind of inputs, got {known}; choose by --model and --version")
    arrays: dict[str, Any] = {}
    try:
        for name, (dtype, shape) in _signature(rows[0]).items():
            kind = np.dtype(dtype).newbyteorder("<")
            flat = [np.frombuffer(base64.b64decode(row["inputs"][name]["data"]), dtype=kind) for row in rows]
            # a manifest's shapes begin with the 1 of the one row that they are of
            arrays[name] = np.stack([each.reshape(shape[1:] if shape[:1] == [1] else shape) for each in flat])
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise Rejected(f"samples: expected tensors as their manifest says, got: {error}") from error
    about = {
        "prediction": np.array([row["prediction"] for row in rows]),
        "confidence": np.array([row["confidence"] for row in rows], dtype=np.float64),
        "window": np.array([row["window"] for row in rows], dtype=np.int64),
        "manifest": np.array([row["manifest"] for row in rows]),
        "taken_at": np.array([row["taken_at"] for row in rows]),
        "id": np.array([row["id"] for row in rows], dtype=np.int64),
    }
    # an input may have any name
    return arrays | {f"sample.{name}": values for name, values in about.items()}


def _signature(row: dict[str, Any]) -> dict[str, tuple[str, list[int]]]:
    return {name: (each["dtype"], each["shape"]) for name, each in sorted(row["inputs"].items())}
