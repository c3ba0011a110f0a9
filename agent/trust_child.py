"""`python -m agent.trust_child`: one trust decision over a spool folder, in a process of its own; prints JSON.

python-tuf and cryptography cost tens of megabytes, which a device wants back when the decision is made.

    SPOOL/image/{N.root,timestamp,N.snapshot,N.targets}.json     as retained on the broker
    SPOOL/director/{timestamp,snapshot,targets,N.root}.json      as in the assignment
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface

from agent.trust import Verdict, judge
from skerry.errors import SkerryError
from skerry.wire import codec
from skerry.wire.messages import Anchor


class SpoolFetcher(FetcherInterface):
    """Serves metadata out of a folder; what is not there is a 404, which TUF reads as "no newer root"."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.rsplit("/", 1)[-1]
        version, dot, rest = name.partition(".")
        candidates = [name]
        # a director's assignment names its roles without versions; a root is only ever asked for by version
        if dot and version.isdigit() and rest != "root.json":
            candidates.append(rest)
        for candidate in candidates:
            path = self._folder / candidate
            if path.is_file():
                return iter([path.read_bytes()])
        raise DownloadHTTPError(f"{name}: not among what was received", 404)


def main() -> int:
    """Judge one spool folder; exit status 0 means that a verdict was printed, whichever."""
    parser = argparse.ArgumentParser(prog="agent.trust_child", description=__doc__)
    parser.add_argument("--anchor", type=Path, required=True)
    parser.add_argument("--metadata", type=Path, required=True)
    parser.add_argument("--spool", type=Path, required=True)
    parser.add_argument("--device", required=True)
    options = parser.parse_args()
    try:
        verdict = judge(
            anchor=codec.decode(Anchor, options.anchor.read_bytes()),
            device=options.device,
            image=SpoolFetcher(options.spool / "image"),
            director=SpoolFetcher(options.spool / "director"),
            folder=options.metadata,
        )
    except SkerryError as error:
        verdict = Verdict(ok=False, reason=str(error))
    sys.stdout.buffer.write(codec.encode(verdict))
    return 0


if __name__ == "__main__":
    sys.exit(main())
