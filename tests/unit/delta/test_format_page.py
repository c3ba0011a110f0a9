"""docs/delta-format.md is enough to decode by: here is a second decoder, one element at a time, written from that page.

It knows nothing of `skerry.delivery.delta`, checks no bound, and is far too slow for a device.
"""

import bz2
import io
import lzma
import math
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from skerry.delivery.delta import Tensor, apply_delta, make_delta

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SUB = {1: 7, 2: 4, 4: 2}


class Reader:
    """Numbers and bytes from front to back."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self) -> int:
        """Return a LEB128 number."""
        value = shift = 0
        while True:
            (byte,) = self.take(1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def signed(self) -> int:
        """Return a signed number."""
        value = self.number()
        return value // 2 if value % 2 == 0 else -(value + 1) // 2

    def packed(self) -> bytes:
        """Return what a packed stream holds."""
        (codec,) = self.take(1)
        length = self.number()
        body = self.take(self.number())
        if codec == 1:
            lc, lp, pb = body[0] % 9, body[0] // 9 % 5, body[0] // 45
            size = max(4096, min(8 << 20, length))
            known = {"id": lzma.FILTER_LZMA1, "dict_size": size, "lc": lc, "lp": lp, "pb": pb}
            decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[known])
            return decoder.decompress(body[1:], max_length=length)
        if codec == 2:
            return bytes(zstd.decompress(body))
        return bz2.decompress(body) if codec == 3 else body


def decode(delta: bytes, source: bytes) -> bytes:
    """Return the target."""
    reader = Reader(delta)
    assert reader.take(4) == b"SKD1"
    reader.number()
    assert reader.number() == len(source)
    reader.take(8)
    length = reader.number()
    reader.take(8)
    head, steps, named, at = Reader(reader.packed()), [], [], 0
    while (code := head.number()) != 0:
        size, place, model = head.number(), None, None
        op, width = (head.number(), head.number()) if code == 3 else (0, 1)
        if code == 2 or (code in (3, 4) and head.number() == 1):
            place = at + head.signed()
            at = place + size
            named.append((place, size))
        if code == 3:
            model = _model(head, op, width, size // width)
        steps.append((code, size, place, op, width, model))
    kept, at = b"", 0
    for place, size in [*sorted(named), (len(source), 0)]:
        kept += source[at:place]
        at = place + size
    rest = Reader(_rest(reader, kept))
    out = b""
    for code, size, place, op, width, model in steps:
        had = source[place : place + size] if place is not None else b""
        if code == 1:
            out += rest.take(size)
        elif code == 2:
            out += had
        elif code == 4:
            out += reader.packed()
        elif model is not None:
            out += _tensor(reader, had, size // width, op, width, model)
    assert reader.at == len(delta)
    assert len(out) == length
    return out


def _model(head: Reader, op: int, width: int, count: int) -> dict:  # type: ignore[type-arg]
    grid = None
    if op == 3:
        channels, inner = head.number(), head.number()
        ratios = struct.unpack(f"<{channels}f", head.take(4 * channels)) if head.number() else (1.0,) * channels
        groups = head.take(channels)
        rank, shift = head.number(), head.number()
        across = count // channels
        left = [struct.unpack(f"{channels}b", head.take(channels)) for _ in range(rank)]
        right = [struct.unpack(f"{across}b", head.take(across)) for _ in range(rank)]
        grid = channels, inner, ratios, groups, left, right, shift
    bounds = head.take(head.number())
    tables = []
    for _ in range(len(bounds) + 1):
        symbol, entries = 0, []
        for _ in range(head.number()):
            symbol += head.number()
            entries.append((symbol, head.number()))
        tables.append(entries)
    blocks = [(head.number(), head.number()) for _ in range(-(-count // 131072))]
    return {"grid": grid, "bounds": bounds, "tables": tables, "blocks": blocks}


def _rest(reader: Reader, kept: bytes) -> bytes:
    (way,) = reader.take(1)
    if way == 0:
        return reader.packed()
    if way == 1:
        reader.number()
        prefix = zstd.ZstdDict(kept, is_raw=True).as_prefix
        return bytes(zstd.decompress(reader.take(reader.number()), zstd_dict=prefix))
    count = reader.number()
    copies, news, skips, differences, extra = (Reader(reader.packed()) for _ in range(5))
    out, at = b"", 0
    for _ in range(count):
        copied = copies.number()
        pairs = zip(kept[at : at + copied], differences.take(copied), strict=True)
        out += bytes((one + other) % 256 for one, other in pairs)
        out += extra.take(news.number())
        at += copied + skips.signed()
    return out


def _tensor(reader: Reader, had: bytes, count: int, op: int, width: int, model: dict) -> bytes:  # type: ignore[type-arg]
    form = {1: "B", 2: "H", 4: "I"}[width]
    old = struct.unpack(f"<{count}{form}", had) if op < 4 else (0,) * count
    out: list[int] = []
    for block, (coded, bits) in enumerate(model["blocks"]):
        first = block * 131072
        bases = [_base(op, old[at], at, width, model["grid"]) for at in range(first, min(first + 131072, count))]
        tables = [model["tables"][sum(bound <= hint for bound in model["bounds"])] for _, hint in bases]
        symbols = _symbols(reader.take(coded), tables)
        residuals = _residuals(symbols, reader.take(bits), op, width)
        out += [_target(op, base, r, width) for (base, _), r in zip(bases, residuals, strict=True)]
    return struct.pack(f"<{count}{form}", *out)


def _base(op: int, old: int, at: int, width: int, grid: tuple | None) -> tuple[int, int]:  # type: ignore[type-arg]
    """Return what an element is expected to be, and its hint."""
    signed = old - (1 << 8 * width) if old >> 8 * width - 1 else old
    if op == 3:
        assert grid is not None
        channels, inner, ratios, groups, left, right, shift = grid
        c, p = at // inner % channels, at // (inner * channels) * inner + at % inner
        exact = signed * ratios[c] + math.ldexp(
            sum(one[c] * other[p] for one, other in zip(left, right, strict=True)), -shift
        )
        whole = round(exact)
        between = min(max(math.floor((exact - whole + 0.5) * 16), 0), 15)
        return min(max(whole, -128), 127) % 256, groups[c] * 16 + between
    if op == 0:
        return old, 4 * abs(signed).bit_length()
    if op in (1, 2):
        return old, old >> 10 & 0x1F if width == 2 else old >> 23 & 0xFF
    return 0, 0


def _symbols(data: bytes, tables: list) -> Iterator[int]:  # type: ignore[type-arg]
    lanes = min(4096, max(1, len(tables) // 4096, min(16, len(tables) // 128)))
    states = list(struct.unpack(f"<{lanes}I", data[: 4 * lanes]))
    words = iter(struct.unpack(f"<{(len(data) - 4 * lanes) // 2}H", data[4 * lanes :]))
    for at, table in enumerate(tables):
        x, begins, each = states[at % lanes], 0, iter(table)
        symbol, frequency = next(each)
        while x % 16384 >= begins + frequency:
            begins += frequency
            symbol, frequency = next(each)
        x = frequency * (x >> 14) + x % 16384 - begins
        states[at % lanes] = x if x >= 65536 else x * 65536 + next(words)
        yield symbol
    assert set(states) == {65536}
    assert next(words, None) is None


def _residuals(symbols: Iterator[int], data: bytes, op: int, width: int) -> Iterator[int]:
    k, at = SUB[width], 0
    for index, symbol in enumerate(symbols):
        if index % 65536 == 0:
            at = -(-at // 8) * 8
        if op == 4:
            high, more = symbol, 8 * (width - 1)
        elif symbol < 2 << k:
            high, more = symbol, 0
        else:
            high, more = 1 << k | symbol % (1 << k), (symbol >> k) - 1
        low = sum((data[(at + bit) // 8] >> (at + bit) % 8 & 1) << bit for bit in range(more))
        at += more
        yield high << more | low
    assert -(-at // 8) == len(data)


def _target(op: int, base: int, r: int, width: int) -> int:
    top, whole = 8 * width - 1, 1 << 8 * width
    if op == 2:
        return r ^ base
    if op == 4:
        return r >> 1 | (r & 1) << top
    if op == 5:
        return r
    difference = r // 2 if r % 2 == 0 else ~(r // 2)
    if op != 1:
        return (base + difference) % whole
    ordered = (base ^ whole - 1) if base >> top else base | 1 << top
    ordered = (ordered + difference) % whole
    return ordered ^ 1 << top if ordered >> top else ordered ^ whole - 1


def _cases() -> Iterator[tuple[str, np.ndarray, np.ndarray, list[np.ndarray] | None]]:
    random = np.random.default_rng(9)
    floats = (random.normal(size=9000) * 0.05).astype(np.float32)
    tuned = (floats * (1 + random.normal(size=9000) * 1e-3)).astype(np.float32)
    yield "float32", floats, tuned, None
    yield "float16", floats.astype(np.float16), tuned.astype(np.float16), None
    whole = random.integers(-(1 << 20), 1 << 20, 3000).astype(np.int32)
    yield "int32", whole, whole + random.integers(-9, 9, 3000).astype(np.int32), None
    weights = random.normal(size=(128, 128)) * 0.05
    step = (random.normal(size=(128, 3)) @ random.normal(size=(3, 128))) * 0.004
    scales = [np.abs(each).max(axis=1).astype(np.float32) / 127 for each in (weights, weights + step)]
    integers = [
        np.rint(each / grid[:, None]).astype(np.int8)
        for each, grid in zip((weights, weights + step), scales, strict=True)
    ]
    yield "int8", integers[0], integers[1], scales
    many = random.integers(0, 3, 140_000).astype(np.int8)
    yield "two blocks", many, many + (random.random(140_000) < 0.01).astype(np.int8), None
    yield "the same", floats, floats, None


@pytest.mark.parametrize(
    ("what", "old", "new", "scales"), list(_cases()), ids=lambda each: each if isinstance(each, str) else ""
)
@pytest.mark.parametrize("alone", [False, True])
def test_a_decoder_written_from_the_page_gives_the_same_bytes(
    what: str, old: np.ndarray, new: np.ndarray, scales: list[np.ndarray] | None, alone: bool, tmp_path: Path
) -> None:
    text = b" ".join(b"%d" % each for each in np.random.default_rng(4).integers(0, 50, 900))
    source = b"head" + old.tobytes() + text
    target = b"a head" + new.tobytes() + text[:700] + b"!" + text[750:]
    side = 128 if scales else 1
    tensors = [
        Tensor("w", at, each.nbytes, each.itemsize, each.dtype.kind == "f", side, side, scales[one] if scales else None)
        for one, (at, each) in enumerate(((4, old), (6, new)))
    ]
    if alone:
        source, tensors[0] = b"", tensors[1]
    delta = make_delta(source, target, source_tensors=() if alone else tensors[:1], target_tensors=tensors[1:])
    assert delta is not None
    (tmp_path / "source").write_bytes(source)
    out = io.BytesIO()
    apply_delta(delta, tmp_path / "source", out)
    assert decode(delta, source) == out.getvalue() == target


def test_a_rest_by_matches_is_read_from_the_page_too() -> None:
    source = np.random.default_rng(6).integers(0, 256, 9000).astype(np.uint8)
    target = (source + (np.arange(9000) % 41 == 0)).astype(np.uint8).tobytes()[40:] + b"tail"
    delta = make_delta(source.tobytes(), target)
    assert delta is not None
    assert decode(delta, source.tobytes()) == target
