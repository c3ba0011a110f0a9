"""`skerry model samples` and `skerry device samples`: which inputs may leave devices, and those that did, as a file."""

import argparse
import base64
import binascii
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from control_plane.cli.session import Session
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


def add_device_verb(verbs: Any) -> None:
    """Add it to the verbs of `skerry device`."""
    export = verbs.add_parser("samples", help="write the inputs that a device was allowed to send to a file")
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


def _export(options: argparse.Namespace, session: Session) -> None:
    from skerry.delivery.durable import write_durably
    from skerry.runtimes.arrays import pack

    if options.most < 1:
        raise Rejected(f"--most: expected 1 or more, got {options.most}")
    with session.client() as client:
        found = client.device_samples(options.device, model=options.model, version=options.version, after=options.after)
        rows = list(islice(found, options.most))
    if not rows:
        raise Rejected(
            f"{options.device}: expected stored samples, got none; see skerry outbox and skerry model samples"
        )
    write_durably(options.out, pack(as_arrays(rows)))
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
