"""Measures deltas between model versions: bytes, time and memory, beside the general codecs on the same pairs.

    python -m bench.delta [--quick]

The pairs are trained in this run (`bench.pairs`). A general codec is given its best setting: of HDiffPatch, the
smallest of four compressors (of two in the quick run). "Forgiven" are the 64 bytes of a header. Times are of one run on
a shared machine; memory is what a process of its own had at its peak above what it had before. The last line is one
JSON object.
"""

import argparse
import io
import json
import lzma
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import bsdiff4
import hdiffpatch

from bench.pairs import FULL, QUICK, SEED, Pair, pairs
from converters.tensor_map import tensor_map
from skerry.delivery.delta import apply_delta, make_delta, read_header
from skerry.delivery.delta.form import Cursor

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FORGIVEN_BYTES = 64
OURS = "ours"
_HDIFF = (
    hdiffpatch.COMPRESSION_LZMA2,
    hdiffpatch.COMPRESSION_BZIP2,
    hdiffpatch.COMPRESSION_LZMA,
    hdiffpatch.COMPRESSION_ZSTD,
)


@dataclass(frozen=True, slots=True)
class Codec:
    """A general codec: from (old, new) to a delta, and back from (old, delta); the second may be missing."""

    name: str
    encode: Callable[[bytes, bytes], bytes]
    decode: Callable[[bytes, bytes], bytes]


@dataclass(frozen=True, slots=True)
class Result:
    """One codec on one pair: bytes, and seconds each way."""

    size: int
    encode_s: float
    decode_s: float


def codecs(*, quick: bool) -> list[Codec]:
    """Return the general codecs that this machine has."""
    compressors = _HDIFF[:2] if quick else _HDIFF
    found = [
        Codec("zstd -19", lambda _old, new: zstd.compress(new, 19), lambda _old, delta: zstd.decompress(delta)),
        Codec(
            "xz",
            lambda _old, new: lzma.compress(new, preset=9 | lzma.PRESET_EXTREME),
            lambda _old, delta: lzma.decompress(delta),
        ),
        Codec("bsdiff4", bsdiff4.diff, bsdiff4.patch),
        Codec("zstd patch-from", patch_from, unpatch_from),
        Codec(
            "hdiffpatch",
            lambda old, new: min((hdiffpatch.diff(old, new, compression=each) for each in compressors), key=len),
            hdiffpatch.apply,
        ),
    ]
    if shutil.which("xdelta3"):
        found.append(Codec("xdelta3", _xdelta, _unxdelta))
    return found


def patch_from(old: bytes, new: bytes) -> bytes:
    """Do as `zstd -19 --long=27 --patch-from`."""
    parameter = zstd.CompressionParameter
    options: dict[int, int] = {
        parameter.compression_level: 19,
        parameter.window_log: 27,
        parameter.enable_long_distance_matching: 1,
    }
    return zstd.compress(new, options=options, zstd_dict=zstd.ZstdDict(old, is_raw=True).as_prefix)


def unpatch_from(old: bytes, delta: bytes) -> bytes:
    """Undo `patch_from`."""
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 27}
    return zstd.decompress(delta, zstd_dict=zstd.ZstdDict(old, is_raw=True).as_prefix, options=options)


def ours(old: bytes, new: bytes) -> bytes:
    """Return our delta; raises `ValueError` where there is none, which the bench has no pair for."""
    delta = make_delta(old, new, source_tensors=tensor_map(old), target_tensors=tensor_map(new))
    if delta is None:
        raise ValueError("expected a delta, got none")
    return delta


def undo_ours(old: bytes, delta: bytes) -> bytes:
    """Apply our delta as a device does, from a file."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(old)
        file.flush()
        out = io.BytesIO()
        apply_delta(delta, Path(file.name), out)
        return out.getvalue()


def measure(pair: Pair, codec: Codec) -> Result:
    """Encode and decode once; a codec that does not give the new file back is an error of the bench."""
    started = time.perf_counter()
    delta = codec.encode(pair.old, pair.new)
    encoded = time.perf_counter()
    back = codec.decode(pair.old, delta)
    decoded = time.perf_counter()
    if back != pair.new:
        raise ValueError(f"{codec.name}: expected the new file of {pair.name} back, got another")
    return Result(len(delta), encode_s=encoded - started, decode_s=decoded - encoded)


def decode_memory(codec: Codec, pair: Pair) -> int:
    """Return the peak of a process of its own while it decodes, above what it had before, in bytes."""
    delta = codec.encode(pair.old, pair.new)
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_decode_alone, args=(send, codec, pair.old, delta))
    child.start()
    grown = int(receive.recv())
    child.join()
    return grown


def _decode_alone(send: object, codec: Codec, old: bytes, delta: bytes) -> None:
    # a forked child begins with its parent's pages, so what counts is by how much its peak passes its own beginning
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    codec.decode(old, delta)
    send.send(max(0, _status("VmHWM") - before))  # type: ignore[attr-defined] # the pipe's end has no public type


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def _xdelta(old: bytes, new: bytes) -> bytes:
    return _xdelta3(("-9", "-S", "lzma", "-e"), old, new)


def _unxdelta(old: bytes, delta: bytes) -> bytes:
    return _xdelta3(("-d",), old, delta)


def _xdelta3(options: tuple[str, ...], old: bytes, given: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as name:
        source, entering, out = (Path(name) / each for each in ("source", "in", "out"))
        source.write_bytes(old)
        entering.write_bytes(given)
        command = ["xdelta3", *options, "-f", "-B", str(1 << 26), "-s", str(source), str(entering), str(out)]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        return out.read_bytes()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="bench.delta", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller nets")
    options = parser.parse_args()

    made = pairs(QUICK if options.quick else FULL)
    general = codecs(quick=options.quick)
    names = [codec.name for codec in general]
    print(f"seed {SEED}; xdelta3: {'run' if 'xdelta3' in names else 'not run: not installed'}")
    print(f"| pair | bytes | full | ours | of the best | {' | '.join(names)} | seconds to encode, decode |")
    print(f"| --- {'| --- ' * (len(names) + 5)}|")
    results = {}
    for pair in made:
        mine = measure(pair, Codec(OURS, ours, undo_ours))
        full = len(ours(b"", pair.new))
        others = {codec.name: measure(pair, codec) for codec in general}
        results[pair.name] = (pair, mine, others)
        sizes = " | ".join(f"{each.size:,}" for each in others.values())
        print(
            f"| {pair.name} | {len(pair.new):,} | {full:,} | {mine.size:,} | {_ratio(mine, others):.3f} | {sizes} "
            f"| {mine.encode_s:.2f}, {mine.decode_s:.2f} |",
            flush=True,
        )

    memory = {}
    largest = max(made, key=lambda pair: (pair.kind == "fp32 adam", len(pair.new)))
    for codec in (Codec(OURS, ours, undo_ours), *general):
        memory[codec.name] = decode_memory(codec, largest)
    cap = read_header(Cursor(ours(largest.old, largest.new))).memory_bytes
    print(f"decode memory on {largest.name} ({len(largest.new):,} bytes), MiB; our header allows {cap / 2**20:.0f}:")
    print(", ".join(f"{name} {size / 2**20:.1f}" for name, size in memory.items()))

    def worst(*kinds: str) -> float:
        chosen = [(mine, others) for pair, mine, others in results.values() if not kinds or pair.kind in kinds]
        return round(max(_ratio(mine, others) for mine, others in chosen), 3)

    forgiven = max(
        (mine.size - FORGIVEN_BYTES) / min(each.size for each in others.values())
        for _, mine, others in results.values()
    )
    figures = {
        "pairs": len(results),
        "not_smallest": sum(
            mine.size > min(each.size for each in others.values()) + FORGIVEN_BYTES
            for _, mine, others in results.values()
        ),
        "worst_ratio_to_best_general": round(forgiven, 3),
        "int8_finetune_ratio": worst("int8 ONNX adam", "int8 TFLite adam"),
        "int8_gentle_finetune_ratio": worst("int8 ONNX gentle", "int8 TFLite gentle"),
        "int8_sticky_finetune_ratio": worst("int8 ONNX adam sticky", "int8 TFLite adam sticky"),
        "sticky_over_plain_sgd": _apart("int8 TFLite sgd", results),
        "sticky_over_plain_adam": _apart("int8 TFLite adam", results),
        "fp32_finetune_ratio": worst("fp32 sgd", "fp32 adam", "fp32 gentle"),
        "decode_memory_over_cap": round(memory[OURS] / cap, 3),
    }
    print(json.dumps({"bench": "delta", "quick": options.quick, "figures": figures}))


def _apart(kind: str, results: dict[str, tuple[Pair, Result, dict[str, Result]]]) -> float:
    """Return our delta with sticky quantisation over our delta without."""
    sizes = {pair.kind: mine.size for pair, mine, _ in results.values()}
    return round(sizes[f"{kind} sticky"] / sizes[kind], 3)


def _ratio(mine: Result, others: dict[str, Result]) -> float:
    return mine.size / min(each.size for each in others.values())


if __name__ == "__main__":
    main()
