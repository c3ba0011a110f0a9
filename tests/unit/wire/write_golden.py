"""Keep the wire of a version that is released: `python -m tests.unit.wire.write_golden 0.1`, once.

Writes `golden/VERSION/`: every message as this code encodes it, with the values that it stands for, and `wire.zip`, the
code itself, which decodes what later versions send. What is there already is never written again.
"""

import json
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path

import skerry
from skerry.wire import codec
from skerry.wire.join import Join
from skerry.wire.proof import RENEW, proof_text
from skerry.wire.report import WindowReport, encode_report
from tests.unit.wire.filled import HEX, filled, messages_of_the_wire

GOLDEN = Path(__file__).with_name("golden")
REPORT = WindowReport(
    manifest=HEX[:16],
    monitor=HEX[16:32],
    window=7,
    start=1_767_225_600,
    end=1_767_229_200,
    rows=300,
    labelled=120,
    correct=119,
    latency_p50_us=830,
    latency_p99_us=16_384,
    tables=((0, 1, 127, 128, 44), (300,), ()),
)


def main(version: str) -> None:
    """Write all of a version."""
    folder = GOLDEN / version
    folder.mkdir(parents=True)
    for kind in messages_of_the_wire():
        message = filled(kind)
        _write(folder, kind.__name__, text=codec.encode(message).decode(), values=asdict(message))
    _write(folder, "WindowReport", hex=encode_report(REPORT).hex(), values=asdict(REPORT))
    join = Join(url="https://skerry.example:8443", token="claim-token", anchor_sha256=HEX)
    _write(folder, "Join", text=str(join), values=asdict(join))
    given = {"device": "gull", "nonce": "a-nonce", "csr": "-----BEGIN CERTIFICATE REQUEST-----\n"}
    _write(folder, "proof", text=proof_text(RENEW, **given).decode(), values=given)

    root = Path(skerry.__file__).parent
    files = [root / "__init__.py", root / "errors.py", *sorted((root / "wire").glob("*.py"))]
    with zipfile.ZipFile(folder / "wire.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            # one date for all, so that the same code gives the same bytes
            name = str(file.relative_to(root.parent))
            archive.writestr(zipfile.ZipInfo(name), file.read_bytes(), zipfile.ZIP_DEFLATED)


def _write(folder: Path, kind: str, **content: object) -> None:
    text = json.dumps({"kind": kind, **content}, indent=1, ensure_ascii=False)
    (folder / f"{kind}.json").write_text(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
