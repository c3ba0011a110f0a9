"""`python -m agent.trust.trust_child`: one trust decision in a process of its own, which asks its parent for every
file.

python-tuf and cryptography cost tens of megabytes, which a device wants back when the decision is made. It reads a
`Question` and answers on standard output, as `agent.trust.question` says; it opens no connection and is told no key.
"""

import sys
from collections.abc import Iterator
from typing import IO

from tuf.api.exceptions import DownloadError, DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface

from agent.trust.decision import judge
from agent.trust.question import (
    DIRECTOR,
    IMAGE,
    Given,
    Question,
    Said,
    Status,
    Wanted,
    read_exactly,
    read_line,
    write_line,
)
from skerry.errors import SkerryError

MAX_FILE_BYTES = 8 << 20


class AskingFetcher(FetcherInterface):
    """Fetches a repository's metadata by asking for it; what the parent has not is a 404, "no newer root" to TUF."""

    def __init__(self, repository: str, *, ask: IO[bytes], answer: IO[bytes]) -> None:
        self._repository = repository
        self._ask = ask
        self._answer = answer

    def _fetch(self, url: str) -> Iterator[bytes]:
        return iter([self._asked(url, MAX_FILE_BYTES)])

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """Ask with the length that TUF allows, so that more than that never crosses the network."""
        return self._asked(url, max_length)

    def _asked(self, url: str, limit: int) -> bytes:
        name = url.rsplit("/", 1)[-1]
        write_line(self._ask, Said(wanted=Wanted(repository=self._repository, name=name, limit=limit)))
        given = read_line(self._answer, Given)
        if given.status == Status.MISSING.value:
            raise DownloadHTTPError(
                f"{self._repository} repository: expected {name}, got none; it may be on its way", 404
            )
        if given.status != Status.FOUND.value or given.length > limit:
            raise DownloadError(given.reason or f"{name}: expected at most {limit} bytes, got {given.length}")
        return read_exactly(self._answer, given.length)


def main() -> int:
    """Answer one question; exit status 0 means that it was answered, however."""
    answer, ask = sys.stdin.buffer, sys.stdout.buffer
    try:
        question = read_line(answer, Question)
        judgement = judge(
            question,
            image=AskingFetcher(IMAGE, ask=ask, answer=answer),
            director=AskingFetcher(DIRECTOR, ask=ask, answer=answer),
        )
        write_line(ask, Said(judgement=judgement))
    except (SkerryError, OSError) as error:
        print(error, file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
