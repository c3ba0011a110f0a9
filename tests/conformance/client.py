#!/usr/bin/env python3
"""A client for TUF conformance suites: the agent's own trust code (`agent.trust.repository`) behind the suites'
command line.

client.py --metadata-dir D init ROOT
client.py --metadata-dir D --metadata-url U refresh
client.py --metadata-dir D --metadata-url U --target-name N --target-base-url B --target-dir O download

Exit status 0 means that all of it succeeded, 1 that it did not; `--target-name` may be repeated. D holds what is
trusted, under names without versions. What differs from the device is the road: plain HTTP or HTTPS to any server.
"""

import argparse
import http.client
import os
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote, urlsplit

HERE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(HERE))
if find_spec("tuf") is None and (HERE / ".venv/bin/python").exists() and sys.prefix != str(HERE / ".venv"):
    # a suite starts this file by its name, with whatever Python comes first
    os.execv(HERE / ".venv/bin/python", [str(HERE / ".venv/bin/python"), *sys.argv])  # noqa: S606

from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError  # noqa: E402
from tuf.ngclient import Updater  # noqa: E402
from tuf.ngclient.fetcher import FetcherInterface  # noqa: E402

from agent.trust.repository import find_target, open_repository  # noqa: E402
from skerry.delivery.durable import write_durably  # noqa: E402
from skerry.errors import Rejected, SkerryError  # noqa: E402

TIMEOUT_S = 20.0
CHUNK_BYTES = 1 << 16
# what may stand in a path as it is (RFC 3986), and the percent signs of names that are quoted already
_SAFE = "/%:@!$&'()*+,;=~"


class HttpFetcher(FetcherInterface):
    """Fetches over HTTP or HTTPS, a piece at a time, so that TUF's limits end it where they must."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise DownloadError(f"expected http:// or https://, got {url[:60]!r}")
        # not `parts.path`: a role or a target may be called `?` or `#`
        path = url.split(parts.netloc, 1)[1]
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        connection = kinds[parts.scheme](parts.hostname, parts.port, timeout=TIMEOUT_S)
        try:
            connection.request("GET", quote(path, safe=_SAFE) or "/")
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise DownloadError(f"{url}: expected an answer, got: {error}") from error
        if response.status != 200:
            connection.close()
            raise DownloadHTTPError(f"{url}: expected status 200, got {response.status}", response.status)
        return _pieces(connection, response)


def _pieces(connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while piece := response.read(CHUNK_BYTES):
            yield piece
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"expected the whole file, got: {error}") from error
    finally:
        connection.close()


def init(options: argparse.Namespace) -> None:
    """Trust a root; nothing is asked of any repository."""
    options.metadata_dir.mkdir(parents=True, exist_ok=True)
    # replaces the link that a refresh leaves there, instead of writing through it
    write_durably(options.metadata_dir / "root.json", options.root.read_bytes())


def refresh(options: argparse.Namespace) -> Updater:
    """Bring the top-level metadata up to date."""
    repository = open_repository(
        HttpFetcher(),
        options.metadata_dir,
        (options.metadata_dir / "root.json").read_bytes(),
        at=time.time(),
        url=options.metadata_url,
        targets=options.target_dir,
        targets_url=options.target_base_url,
    )
    repository.refresh()
    return repository


def download(options: argparse.Namespace) -> None:
    """Download targets that are not here already; raises `Rejected` for one that nobody lists."""
    repository = refresh(options)
    options.target_dir.mkdir(parents=True, exist_ok=True)
    for name in options.target_name:
        found = find_target(repository, name)
        if found is None:
            raise Rejected(f"{name}: expected a target that is listed, got none")
        if repository.find_cached_target(found.target) is None:
            repository.download_target(found.target)


def main() -> int:
    """Run one verb; one line on standard error says why it failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url", default="")
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-base-url")
    parser.add_argument("--target-dir", type=Path)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("init").add_argument("root", type=Path)
    verbs.add_parser("refresh")
    verbs.add_parser("download")
    options = parser.parse_args()
    if options.verb == "download" and not (options.target_name and options.target_base_url and options.target_dir):
        parser.error("download: expected --target-name, --target-base-url and --target-dir")
    try:
        {"init": init, "refresh": refresh, "download": download}[options.verb](options)
    except (RepositoryError, DownloadError, SkerryError, OSError, ValueError) as error:
        print(f"{options.verb}: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
