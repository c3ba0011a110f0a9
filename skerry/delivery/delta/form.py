"""The form of a delta file: its header, its whole numbers, and byte streams packed by whichever codec is smallest.

    magic SKD1 | memory in KiB | length and hash of the source | length and hash of the target | head | streams

Numbers are LEB128, hashes the first eight bytes of a SHA-256. The head is one packed stream of instructions
(`decode` lists them). Every length in a delta is checked against a bound before anything is allocated for it.
"""

import bz2
import hashlib
import lzma
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from skerry.errors import Rejected

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAGIC = b"SKD1"
DELTA_MEMORY_BYTES = 64 << 20
"""What a decoder of today may use; a delta that says it needs more is refused."""
MAX_FILE_BYTES = 1 << 30
MAX_HEAD_BYTES = 4 << 20
HASH_BYTES = 8
_LEAST_BYTES = 16
LEAST_PREFIX_BYTES = 8
THOROUGH_BYTES = 1 << 20
"""Streams up to this are packed by every codec, as long as there are not too many of them."""
THOROUGH_IN_ALL_BYTES = 8 << 20
_SMALL_BYTES = 1 << 12
_SAMPLE_BYTES = 1 << 18
_STRETCHES = 4
_RANDOM = 0.985
_NEAR = 1.1
_WINDOW_LOG = 24
_LZMA_DICT = 1 << 23


class Codec(IntEnum):
    """How a stream of bytes is packed."""

    RAW = 0  # as it is
    LZMA = 1  # LZMA1, raw; its one property byte (lc, lp, pb) comes first
    ZSTD = 2  # one frame
    BZ2 = 3  # one bzip2 file


@dataclass(frozen=True, slots=True)
class Header:
    """What a delta says of itself; lengths in bytes, hashes as eight bytes."""

    memory_bytes: int
    source_length: int
    source_hash: bytes
    target_length: int
    target_hash: bytes


class Cursor:
    """Reads a bytes-like object from front to back, and refuses to go beyond its end."""

    def __init__(self, data: bytes | bytearray | memoryview, at: int = 0) -> None:
        self._data = memoryview(data)
        self._end = len(self._data)
        self.at = at

    @property
    def left(self) -> int:
        """The number of bytes that were not read."""
        return self._end - self.at

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes; raises `Rejected` when there are fewer."""
        if not 0 <= count <= self.left:
            raise Rejected(f"delta: expected {count} more bytes, got {self.left}; it was cut off")
        self.at += count
        return bytes(self._data[self.at - count : self.at])

    def number(self, most: int) -> int:
        """Return the next LEB128 number; raises `Rejected` when it is above `most`."""
        value, shift = 0, 0
        while True:
            if self.at >= self._end:
                raise Rejected("delta: expected more bytes of a number, got the end; it was cut off")
            byte = self._data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            if value > most:
                raise Rejected(f"delta: expected a number of at most {most}, got {value} or more")
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise Rejected("delta: expected a number of at most 63 bits, got a longer one")

    def signed(self, most: int) -> int:
        """Return the next zigzag number, of magnitude `most` at most."""
        value = self.number(2 * most + 1)
        return value >> 1 ^ -(value & 1)


def number(value: int) -> bytes:
    """Return `value` >= 0 as LEB128."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def signed(value: int) -> bytes:
    """Return `value` as a zigzag LEB128."""
    return number(value << 1 if value >= 0 else (-value << 1) - 1)


def short_hash(data: bytes) -> bytes:
    """Return the first eight bytes of the SHA-256 of `data`."""
    return hashlib.sha256(data).digest()[:HASH_BYTES]


def write_header(header: Header) -> bytes:
    """Return the header as it stands in front of a delta."""
    lengths = number(header.memory_bytes >> 10) + number(header.source_length) + header.source_hash
    return MAGIC + lengths + number(header.target_length) + header.target_hash


def read_header(cursor: Cursor, *, memory_bytes: int = DELTA_MEMORY_BYTES) -> Header:
    """Read a header; raises `Rejected` for another format, or when the delta asks for more memory than allowed."""
    magic = cursor.take(len(MAGIC))
    if magic != MAGIC:
        raise Rejected(f"delta: expected the format {MAGIC.decode()}, got {magic!r}; fetch the whole file instead")
    needed = cursor.number(1 << 30) << 10
    if needed > memory_bytes:
        raise Rejected(f"delta: expected to need at most {memory_bytes} bytes of memory, got {needed}")
    return Header(
        memory_bytes=needed,
        source_length=cursor.number(MAX_FILE_BYTES),
        source_hash=cursor.take(HASH_BYTES),
        target_length=cursor.number(MAX_FILE_BYTES),
        target_hash=cursor.take(HASH_BYTES),
    )


class Effort:
    """How much may still be packed by every codec while one delta is made.

    All of them together take 2 to 7 seconds a megabyte. So a long stream is packed by those alone that pack a sample of
    it best, and where nothing does, by the one that finds what lies far apart at next to no cost.
    """

    def __init__(self) -> None:
        self._left = THOROUGH_IN_ALL_BYTES

    def allows(self, size_bytes: int) -> bool:
        """Say whether a stream of this length is packed by every codec, and take it from what is left."""
        if size_bytes <= _SMALL_BYTES:
            # a sample of it would say nothing; and there are not more of these than a head has pieces
            return True
        allowed = size_bytes <= min(THOROUGH_BYTES, self._left)
        self._left -= size_bytes if allowed else 0
        return allowed


def pack(data: bytes, effort: Effort | None = None) -> bytes:
    """Return `data` packed by the codec that makes it smallest: codec, length, packed length, bytes."""
    ways = _WAYS if (effort or Effort()).allows(len(data)) else _promising(data)
    packings = [(Codec.RAW, data), *((way.codec, way.pack(data)) for way in ways if len(data) >= _LEAST_BYTES)]
    codec, body = min(packings, key=lambda each: (len(each[1]), each[0]))
    return bytes([codec]) + number(len(data)) + number(len(body)) + body


def unpack(cursor: Cursor, *, most: int) -> bytes:
    """Return what `pack` was given, of at most `most` bytes; raises `Rejected`."""
    code = cursor.take(1)[0]
    length = cursor.number(most)
    # what does not become smaller is kept as it is, so nothing packed is longer than what it holds
    body = cursor.take(cursor.number(length))
    try:
        data = _unpacked(Codec(code), body, length)
    except (ValueError, IndexError, EOFError, OSError, lzma.LZMAError, zstd.ZstdError) as error:
        raise Rejected(f"delta: expected a stream of {length} bytes, got: {' '.join(str(error).split())}") from error
    if len(data) != length:
        raise Rejected(f"delta: expected a stream of {length} bytes, got {len(data)}")
    return data


def zstd_from(source: bytes, target: bytes) -> bytes:
    """Return `target` as a zstd frame that refers to `source` (patch-from)."""
    prefix = zstd.ZstdDict(source, is_raw=True).as_prefix
    return zstd.compress(target, options=_zstd_options(len(source) + len(target)), zstd_dict=prefix)


def unzstd_from(source: bytes | bytearray, frame: bytes, length: int) -> bytes:
    """Return the `length` bytes of a frame that `zstd_from` made; raises `Rejected`."""
    window = _window_log(len(source) + length)
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: window}
    try:
        decoder = zstd.ZstdDecompressor(zstd.ZstdDict(source, is_raw=True).as_prefix, options=options)
        data = decoder.decompress(frame, max_length=length + 1)
    except (ValueError, zstd.ZstdError) as error:
        raise Rejected(f"delta: expected a zstd frame, got: {' '.join(str(error).split())}") from error
    if len(data) != length or not decoder.eof:
        raise Rejected(f"delta: expected a stream of {length} bytes, got another length")
    return data


@dataclass(frozen=True, slots=True)
class _Way:
    """A codec with its settings."""

    codec: Codec
    pack: Callable[[bytes], bytes]


def _lzma(lc: int, lp: int, pb: int) -> _Way:
    def pack_so(data: bytes) -> bytes:
        raw = lzma.compress(data, lzma.FORMAT_RAW, filters=[_filter(lc, lp, pb, len(data))])
        return bytes([(pb * 5 + lp) * 9 + lc]) + raw

    return _Way(Codec.LZMA, pack_so)


def _zstd(level: int) -> _Way:
    return _Way(Codec.ZSTD, lambda data: zstd.compress(data, options=_zstd_options(len(data), level=level)))


_WAYS = (
    _zstd(22),
    _Way(Codec.BZ2, bz2.compress),
    *(_lzma(lc, lp, pb) for lc, lp, pb in ((3, 0, 0), (0, 0, 0), (4, 0, 0), (0, 2, 2), (2, 2, 2))),
)
_FAST = _zstd(9)


def _promising(data: bytes) -> tuple[_Way, ...]:
    """The ways that pack a sample best: stretches from all over the data."""
    length = min(_SAMPLE_BYTES, len(data) // 8) // _STRETCHES
    step = len(data) // _STRETCHES
    sample = b"".join(data[first * step : first * step + length] for first in range(_STRETCHES))
    sizes = {way: len(way.pack(sample)) for way in _WAYS}
    best = min(_WAYS, key=sizes.__getitem__)
    if sizes[best] > _RANDOM * len(sample):
        return (_FAST,)
    # what LZMA finds beyond the length of a stretch, a sample cannot show
    second = min((way for way in _WAYS if way.codec is Codec.LZMA), key=sizes.__getitem__)
    return (best, _FAST) if second is best or sizes[second] > _NEAR * sizes[best] else (best, second, _FAST)


def _unpacked(codec: Codec, body: bytes, length: int) -> bytes:
    match codec:
        case Codec.RAW:
            return body
        case Codec.LZMA:
            lc, lp, pb = body[0] % 9, body[0] // 9 % 5, body[0] // 45
            decoder: Any = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[_filter(lc, lp, pb, length)])
            return bytes(decoder.decompress(body[1:], max_length=length + 1))
        case Codec.ZSTD:
            options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _window_log(length)}
            return zstd.ZstdDecompressor(options=options).decompress(body, max_length=length + 1)
        case Codec.BZ2:
            return bz2.BZ2Decompressor().decompress(body, max_length=length + 1)


def _filter(lc: int, lp: int, pb: int, length: int) -> dict[str, Any]:
    size = max(4096, min(_LZMA_DICT, length))
    return {"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": size, "lc": lc, "lp": lp, "pb": pb}


def _zstd_options(length: int, *, level: int = 22) -> dict[int, int]:
    parameter = zstd.CompressionParameter
    return {
        parameter.compression_level: level,
        parameter.window_log: _window_log(length),
        parameter.enable_long_distance_matching: 1,
        parameter.content_size_flag: 0,
        parameter.checksum_flag: 0,
    }


def _window_log(length: int) -> int:
    return max(10, min(_WINDOW_LOG, length.bit_length()))
