"""Normalising a stranger's file in a child process with limits: parsers in C++ may crash, folding may want memory.

    normalise_in_child(data, shapes={})      # bytes, or Rejected with the reason

The parent writes `model` and `request.json` into a temporary folder and runs `python -m converters.import_child
FOLDER`; the child limits itself and writes `normalised` or `refused`.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from converters.checks import MAX_MODEL_BYTES, printable
from skerry.errors import Rejected
from skerry.runtimes.confined import Limits, confine, run_confined

LIMITS = Limits(address_space_bytes=2 << 30, file_bytes=2 * MAX_MODEL_BYTES, cpu_s=60, wall_s=90.0)


def normalise_in_child(data: bytes, *, shapes: Mapping[str, tuple[int, ...]], limits: Limits = LIMITS) -> bytes:
    """Return `converters.normalise.normalise(data, shapes=shapes)`, computed where it can do no harm.

    Raises:
        Rejected: the model is refused, crashes the child, or oversteps the limits; in one line.
    """
    with tempfile.TemporaryDirectory(prefix="skerry-import-") as name:
        folder = Path(name)
        (folder / "model").write_bytes(data)
        request = {"shapes": {key: list(shape) for key, shape in shapes.items()}, **asdict(limits)}
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        failure = run_confined("converters.import_child", folder, limits)
        if failure is not None:
            got = f"a crash by {failure.crash}" if failure.crash else failure.said
            got = f"a timeout after {limits.wall_s:g} s" if failure.timeout else got
            raise Rejected(f"model file: expected a model that can be normalised, got {got}")
        if (folder / "normalised").is_file():
            return _read(folder / "normalised", most=limits.file_bytes)
        if (folder / "refused").is_file():
            raise Rejected(_read(folder / "refused", most=4096).decode(errors="replace"))
        raise Rejected("model file: expected a model that can be normalised, got a child that said nothing")


def _read(file: Path, *, most: int) -> bytes:
    with file.open("rb") as opened:
        return opened.read(most)


def main() -> None:
    """Serve one request: the program of the child."""
    folder = Path(sys.argv[1])
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    confine(request)
    # after the limits: what is imported here reads the file
    from converters.normalise import normalise

    shapes = {name: tuple(shape) for name, shape in request["shapes"].items()}
    try:
        out = normalise((folder / "model").read_bytes(), shapes=shapes)
    except Rejected as error:
        (folder / "refused").write_text(printable(str(error), most=1000), encoding="utf-8")
    except MemoryError:
        (folder / "refused").write_text("model file: expected one that fits in memory, got more", encoding="utf-8")
    else:
        (folder / "normalised").write_bytes(out)


if __name__ == "__main__":
    main()
