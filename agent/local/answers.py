"""Results kept for equal inputs: bounded in bytes, the least recently given thrown out first; off unless asked for.

Equal means the same bytes: the key is the manifest's digest, the length of the request's JSON and the SHA-256 of the
body, which holds inputs, wanted outputs, parameters and id. So no version ever answers for another, and a client that
numbers its requests gains nothing. Whoever asks makes sure that the model has no state.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping

from agent.local.serving_port import Reply

# of the key, the entry and the headers, roughly
_OVERHEAD_BYTES = 1024


class Answers:
    """Kept replies, used by several threads; `hits` and `misses` say what it is good for."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._kept: OrderedDict[bytes, Reply] = OrderedDict()
        self._lock = threading.Lock()
        self.size_bytes = self.hits = self.misses = 0

    def get(self, key: bytes) -> Reply | None:
        """Return what was kept, if it still is."""
        with self._lock:
            reply = self._kept.get(key)
            if reply is None:
                self.misses += 1
                return None
            self.hits += 1
            self._kept.move_to_end(key)
            return reply

    def put(self, key: bytes, reply: Reply) -> None:
        """Keep a reply; one that would take more than a quarter of the room is not worth all the others."""
        size = _size(reply)
        if size > self._limit // 4:
            return
        with self._lock:
            former = self._kept.pop(key, None)
            self.size_bytes += size - (_size(former) if former else 0)
            self._kept[key] = reply
            while self.size_bytes > self._limit:
                _, oldest = self._kept.popitem(last=False)
                self.size_bytes -= _size(oldest)


def key_of(manifest: str, *, head: Mapping[str, str], body: bytes) -> bytes:
    """Return under which key the result of a request is kept."""
    digest = hashlib.sha256(repr((manifest, sorted(head.items()))).encode())
    digest.update(body)
    return digest.digest()


def _size(reply: Reply) -> int:
    return len(reply.body) + len(reply.rows.data) + _OVERHEAD_BYTES
