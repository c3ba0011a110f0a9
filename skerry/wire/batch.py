"""A batch of the outbox on the wire: plain JSON, or packed, which is some two fifths of it.

Packed is a magic, then one zstd frame of: the head as a line of JSON, `[v, epoch, [[sequence, kind, event_time, crc,
length], ...]]`, and the bodies one after another as they are, without base64. (16 features, 32 windows a batch: plain
JSON is 568 bytes a window, zlib makes 301 of it and zstd 290; without base64, zlib makes 243 and zstd 229.) A reader
knows the form by its first byte, with which no JSON begins. A frame says how long its content is, and one that says too
much, or says it wrongly, is refused before that much memory is taken.
"""

import base64
import json
import sys
from typing import Any

from skerry.errors import Rejected
from skerry.wire import codec
from skerry.wire.messages import Outbox

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAGIC = b"\xf5SK1"
MAX_CONTENT_BYTES = codec.MAX_BYTES
MAX_ENTRIES = 1024
# nothing that fits is longer: a decoder takes no more memory for it
_WINDOW_LOG = 20
_LEVEL = 9


def encode_batch(outbox: Outbox, *, packed: bool) -> bytes:
    """Encode a batch; `packed` for a control plane that has said that it takes this form."""
    if not packed:
        return codec.encode(outbox)
    bodies = [base64.b64decode(entry.body) for entry in outbox.entries]
    rows = [
        [entry.sequence, entry.kind, entry.event_time, entry.crc, len(body)]
        for entry, body in zip(outbox.entries, bodies, strict=True)
    ]
    head = json.dumps([outbox.v, outbox.epoch, rows], separators=(",", ":")).encode()
    return MAGIC + zstd.compress(b"\n".join((head, b"".join(bodies))), _LEVEL)


def decode_batch(payload: bytes) -> Outbox:
    """Decode a batch of either form.

    Raises:
        Rejected: it is neither, or longer than a message may be, packed or not.
    """
    if not payload.startswith(MAGIC):
        return codec.decode(Outbox, payload)
    if len(payload) > codec.MAX_BYTES:
        raise Rejected(f"Outbox: expected at most {codec.MAX_BYTES} bytes, got {len(payload)}")
    head, newline, bodies = _unpack(payload[len(MAGIC) :]).partition(b"\n")
    if not newline:
        raise Rejected("Outbox: expected a head and bodies, got no end of the head")
    version, epoch, rows = _head(head)
    entries, at = [], 0
    for row in rows:
        if not isinstance(row, list) or len(row) != 5 or not isinstance(row[4], int) or row[4] < 0:
            raise Rejected(f"Outbox: expected five values for each entry, got {row!r:.60}")
        sequence, kind, event_time, crc, length = row
        body = base64.b64encode(bodies[at : at + length]).decode()
        at += length
        entries.append({"sequence": sequence, "kind": kind, "event_time": event_time, "crc": crc, "body": body})
    if at != len(bodies):
        raise Rejected(f"Outbox: expected {at} bytes of bodies, got {len(bodies)}")
    return codec.from_tree(Outbox, {"epoch": epoch, "entries": entries, "v": version})


def _unpack(frame: bytes) -> bytes:
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
    try:
        length = zstd.get_frame_info(frame).decompressed_size
        if length is None or length > MAX_CONTENT_BYTES:
            raise Rejected(f"Outbox: expected at most {MAX_CONTENT_BYTES} bytes unpacked, got {length or 'no length'}")
        decompressor = zstd.ZstdDecompressor(options=options)
        content = decompressor.decompress(frame, max_length=length + 1)
    except (zstd.ZstdError, ValueError, EOFError) as error:
        raise Rejected(f"Outbox: expected a packed batch, got: {' '.join(str(error).split())}") from error
    if len(content) != length or not decompressor.eof or decompressor.unused_data:
        raise Rejected(f"Outbox: expected one frame of {length} bytes, got another length")
    return content


def _head(text: bytes) -> tuple[Any, Any, list[Any]]:
    try:
        tree = json.loads(text)
        if b"\\u" in text:
            # half of a surrogate pair, as in `codec.decode`
            json.dumps(tree, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Rejected(f"Outbox: expected JSON for a head, got {text[:40]!r}") from error
    if not isinstance(tree, list) or len(tree) != 3 or not isinstance(tree[2], list) or len(tree[2]) > MAX_ENTRIES:
        raise Rejected(f"Outbox: expected version, epoch and at most {MAX_ENTRIES} entries, got {text[:40]!r}")
    return tree[0], tree[1], tree[2]
