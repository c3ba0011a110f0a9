"""`python -m agent.fetching.unseal_child`: opens and seals chunks, in a process of its own that soon ends.

`cryptography` costs megabytes, which a device wants back; and the key is nowhere else in memory. Everything comes over
stdin, nothing is in the arguments: first a line of JSON, `{"key", "who", "key_file"}` for a content key that is sealed
to the device, or `{"rest_key_file"}` for the key of what is kept on its disk; answered with the key's id. Then chunks,
each a `HEAD` (what to do, SHA-256 of the file in hex, number, length) and that many bytes. Each is answered with a
`TAIL` (what became of it, length) and that many bytes: the chunk, or a reason as text.
"""

import hashlib
import json
import resource
import struct
import sys
from pathlib import Path

from skerry.delivery.sealed import KEY_BYTES, open_chunk, open_key, seal_chunk
from skerry.errors import Rejected

HEAD = struct.Struct(">B64sII")
OPEN, SEAL = range(2)
TAIL = struct.Struct(">BI")
OPENED, REFUSED, FAILED = range(3)
MAX_LINE = 64 * 1024


def main() -> int:
    """Serve one fetch, until stdin ends."""
    # a core dump would hold the key
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    given = json.loads(sys.stdin.buffer.readline(MAX_LINE))
    try:
        key = _key(given)
    except Rejected as error:
        _answer(REFUSED, str(error).encode())
        return 0
    except OSError as error:
        _answer(FAILED, f"{error.filename}: expected a key of this device, got: {error.strerror}".encode())
        return 0
    _answer(OPENED, hashlib.sha256(b"skerry-key-id-1 " + key).hexdigest()[:16].encode())

    while head := sys.stdin.buffer.read(HEAD.size):
        what, sha256, number, length = HEAD.unpack(head)
        work = seal_chunk if what == SEAL else open_chunk
        try:
            data = work(key, sys.stdin.buffer.read(length), sha256=sha256.decode(), number=number)
        except Rejected as error:
            _answer(REFUSED, str(error).encode())
        else:
            _answer(OPENED, data)
    return 0


def _key(given: dict[str, str]) -> bytes:
    if "rest_key_file" not in given:
        return open_key(given["key"], Path(given["key_file"]).read_bytes(), who=given["who"])
    path = Path(given["rest_key_file"])
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except ValueError as error:
        raise Rejected(f"{path}: expected {2 * KEY_BYTES} hex digits, got something else; restore it") from error
    if len(key) != KEY_BYTES:
        raise Rejected(f"{path}: expected {2 * KEY_BYTES} hex digits, got {2 * len(key)}; restore it from its backup")
    return key


def _answer(what: int, body: bytes) -> None:
    sys.stdout.buffer.write(TAIL.pack(what, len(body)) + body)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
