"""`python -m tests.integration.agent.many_links BROKER FIRST COUNT`: as many devices' links as one process bears.

It says `up N AT` and `down N AT` of each link, by the clock that all processes of a machine share, and at the end of
its standard input `end FAULTS DROPPED`.
"""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from agent.link.address import parse_broker
from agent.link.session import Link
from agent.link.tls import Credentials

NONE = Credentials(ca=Path("none"), certificate=Path("none"), key=Path("none"))


def say(*words: object) -> None:
    """Say a line in one piece, whichever thread it is of."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def make(broker: str, number: int) -> Link:
    """Return the link of a device, as the agent makes it."""

    def changed() -> None:
        say("up" if link.connected else "down", number, time.monotonic())

    link = Link(
        parse_broker(broker),
        who=f"watch.gull-{number}",
        will=lambda: b"gone",
        credentials=NONE,
        on_change=changed,
    )
    return link


def main(broker: str, first: int, count: int) -> None:
    """Keep the links up until standard input ends."""
    links = [make(broker, number) for number in range(first, first + count)]
    for link in links:
        link.start()
    sys.stdin.read()
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(Link.stop, links))
    say("end", sum(link.faults for link in links), sum(link.dropped for link in links))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
