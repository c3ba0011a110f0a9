"""A child that writes what an agent writes, says what of it was durable, and goes on where the disk refuses.

    python writer.py FOLDER

Run under strace, which makes the disk full at one write or from one write on.
"""

import sys
from pathlib import Path

from agent.telling.outbox import OutboxFile
from skerry.delivery.durable import write_durably
from skerry.errors import Broken
from skerry.wire.messages import Ack

ROWS = 30


def body(number: int) -> bytes:
    return b"row %d " % number + b"x" * 3000


def main(folder: Path) -> int:
    try:
        outbox = OutboxFile(folder / "outbox.db", quota_bytes=512 * 1024)
    except Broken as error:
        print("no start", error, flush=True)
        return 3
    for number in range(ROWS):
        try:
            sequence = outbox.put("window", body(number), event_time=1.0)
            print("put", number, sequence, flush=True)
        except Broken as error:
            print("refused", number, error, flush=True)
        try:
            write_durably(folder / "twin.json", b"%d" % number)
            print("wrote", number, flush=True)
        except Broken as error:
            print("unwritten", number, error, flush=True)
        if number == ROWS // 2:
            hear_some(outbox)
    outbox.close()
    return 0


def hear_some(outbox: OutboxFile) -> None:
    try:
        batch = outbox.batch()
        if batch is not None:
            last = batch.entries[4].sequence
            print("said", last, flush=True)
            outbox.acknowledge(Ack(epoch=batch.epoch, up_to=last))
    except Broken as error:
        print("unsaid", error, flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
