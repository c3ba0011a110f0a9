"""An entropy coder: interleaved range asymmetric numeral systems over bytes, with one static table per context.

Symbols are dealt out over lanes, which NumPy steps through side by side; contexts are known beforehand (they come from
the source file), so nothing in a step waits for the step before it. Source: J. Duda, "Asymmetric numeral systems"
(arXiv:1311.2540), and F. Giesen, "Interleaved entropy coders" (arXiv:1402.3392).

Every lane starts its encoding at the least state, so a decoder that does not arrive there has read something else.
"""

from typing import Any

import numpy as np

from skerry.errors import Rejected

Array = np.ndarray[Any, np.dtype[Any]]

PRECISION = 14
TOTAL = 1 << PRECISION
_WORD = 16
_LEAST = 1 << _WORD
_STEPS = 4096
_FEW_LANES, _FEW_STEPS = 16, 128
MAX_LANES = 4096


def lanes_for(count: int) -> int:
    """Return how many lanes `count` symbols are dealt out over: each costs bytes, and each step of all of them time."""
    return min(MAX_LANES, max(1, count // _STEPS, min(_FEW_LANES, count // _FEW_STEPS)))


def most_bytes(count: int) -> int:
    """Return how long the code of `count` symbols is at most: each takes a word or none."""
    return 4 * lanes_for(count) + 2 * count


def table_of(counts: Array) -> Array:
    """Return frequencies (256,) int64 that sum to `TOTAL`, at least 1 for every symbol that `counts` (256,) has."""
    present = np.flatnonzero(counts)
    if not present.size:
        raise ValueError("expected at least one symbol")
    share = counts[present] * (TOTAL - present.size) / counts.sum()
    whole = np.floor(share).astype(np.int64) + 1
    # what rounding left over goes to the commonest, where it costs least
    whole[np.argmax(whole)] += TOTAL - int(whole.sum())
    table = np.zeros(256, dtype=np.int64)
    table[present] = whole
    return table


def cost_bits(counts: Array) -> float:
    """Return about how many bits the symbols counted in `counts` (256,) and their table take."""
    present = counts[counts > 0].astype(np.float64)
    if not present.size:
        return 0.0
    total = present.sum()
    return float((present * np.log2(total / present)).sum() + 11 * present.size + 4)


def encode(symbols: Array, contexts: Array, tables: Array) -> bytes:
    """Return the bytes for `symbols` (n,) uint8 under `tables` (C, 256); `contexts` (n,) name each one's table."""
    count = len(symbols)
    lanes = lanes_for(count)
    starts = np.cumsum(tables, axis=1) - tables
    at = contexts.astype(np.int64) * 256 + symbols
    frequency, start = tables.reshape(-1)[at], starts.reshape(-1)[at]

    state = np.full(lanes, _LEAST, dtype=np.int64)
    words: list[Array] = []
    for first in range((count - 1) // lanes * lanes, -1, -lanes):
        f, c = frequency[first : first + lanes], start[first : first + lanes]
        x = state[: len(f)]
        full = x >= f << (2 * _WORD - PRECISION)
        if full.any():
            words.append((x[full] & 0xFFFF).astype("<u2"))
            x = np.where(full, x >> _WORD, x)
        state[: len(f)] = (x // f << PRECISION) + x % f + c
    tail = np.concatenate(words[::-1]) if words else np.empty(0, dtype="<u2")
    return bytes(state.astype("<u4").tobytes() + tail.tobytes())


def decode(data: bytes, contexts: Array, tables: Array) -> Array:
    """Return the symbols (n,) uint8 that `encode` was given, one for each of `contexts` (n,).

    Raises:
        Rejected: the bytes are not what `encode` makes under these tables.
    """
    count = len(contexts)
    lanes = lanes_for(count)
    if len(data) < 4 * lanes or (len(data) - 4 * lanes) % 2:
        raise Rejected(f"delta: expected {lanes} lanes of symbols, got {len(data)} bytes")
    state = np.frombuffer(data, dtype="<u4", count=lanes).astype(np.int64)
    words = np.frombuffer(data, dtype="<u2", offset=4 * lanes).astype(np.int64)
    starts = (np.cumsum(tables, axis=1) - tables).reshape(-1)
    frequencies = tables.reshape(-1)
    # for each context, which symbol owns each of the TOTAL places
    owners = np.repeat(np.tile(np.arange(256, dtype=np.uint8), len(tables)), frequencies)

    symbols = np.empty(count, dtype=np.uint8)
    base = contexts.astype(np.int64)
    read = 0
    for first in range(0, count, lanes):
        context = base[first : first + lanes]
        x = state[: len(context)]
        place = x & (TOTAL - 1)
        symbol = owners[context * TOTAL + place]
        symbols[first : first + lanes] = symbol
        at = context * 256 + symbol
        x = frequencies[at] * (x >> PRECISION) + place - starts[at]
        empty = np.flatnonzero(x < _LEAST)
        if empty.size:
            news = words[read : read + empty.size]
            if len(news) < empty.size:
                raise Rejected("delta: expected more symbols, got the end of its stream")
            x[empty] = x[empty] << _WORD | news
            read += empty.size
        state[: len(context)] = x
    if read != len(words) or (state != _LEAST).any():
        raise Rejected("delta: expected symbols that end where they began, got others; it is damaged")
    return symbols
