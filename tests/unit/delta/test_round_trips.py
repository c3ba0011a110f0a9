"""Deltas of made-up tensors and files: whatever the encoder chooses, the decoder gives the target back to the byte."""

import io
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.delivery.delta import Tensor, apply_delta, encode, make_delta, rans, read_header
from skerry.delivery.delta.form import MAX_HEAD_BYTES, THOROUGH_BYTES, Cursor, Effort, pack, unpack
from skerry.delivery.delta.head import Piece, read_steps
from skerry.delivery.delta.residual import ALONE, WIDTHS, Op, hint_of, join, residual_of, restore, split, unsigned
from skerry.delivery.delta.rest import read_rest, write_rest


def applied(delta: bytes, source: bytes, folder: Path) -> bytes:
    path, out = folder / "source", io.BytesIO()
    path.write_bytes(source)
    apply_delta(delta, path, out)
    return out.getvalue()


@pytest.mark.parametrize(("op", "width"), [(op, width) for op in Op if op is not Op.PREDICT for width in WIDTHS[op]])
@given(data=st.data())
def test_residuals_come_back_for_any_bits(op: Op, width: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 40))
    source = unsigned(data.draw(st.binary(min_size=count * width, max_size=count * width)), width)
    target = unsigned(data.draw(st.binary(min_size=count * width, max_size=count * width)), width)
    base = np.zeros_like(source) if op in ALONE else source
    symbols, bits = split(op, residual_of(op, base, target))
    assert symbols.dtype == np.uint8
    assert hint_of(op, base).shape == base.shape
    assert (restore(op, base, join(op, symbols, bits, width)) == target).all()


@given(st.binary(min_size=1, max_size=20_000), st.integers(1, 5), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_symbols_come_back_under_any_contexts(data: bytes, groups: int, random: object) -> None:
    symbols = np.frombuffer(data, dtype=np.uint8)
    contexts = (np.arange(len(symbols)) * 7 % groups).astype(np.uint8)
    counts = [np.bincount(symbols[contexts == group], minlength=256) for group in range(groups)]
    tables = np.stack([rans.table_of(each if each.any() else np.eye(1, 256, dtype=np.int64)[0]) for each in counts])
    assert (tables.sum(axis=1) == rans.TOTAL).all()
    assert (rans.decode(rans.encode(symbols, contexts, tables), contexts, tables) == symbols).all()


@given(st.binary(max_size=3000), st.binary(max_size=3000))
@settings(max_examples=100)
def test_the_rest_comes_back(source: bytes, target: bytes) -> None:
    written = write_rest(source, target + source[len(source) // 3 :], Effort())
    cursor = Cursor(written)
    assert (
        read_rest(cursor, source, len(target) + len(source) - len(source) // 3) == target + source[len(source) // 3 :]
    )
    assert cursor.left == 0


def _weights(dtype: str, seed: int, count: int = 40_000) -> np.ndarray:
    random = np.random.default_rng(seed)
    if dtype == "int8":
        return np.clip(np.rint(random.normal(size=count) * 30), -127, 127).astype(np.int8)
    return (random.normal(size=count) * 0.05).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int32"])
@pytest.mark.parametrize("change", ["none", "little", "all", "length"])
def test_files_with_a_tensor_come_back(dtype: str, change: str, tmp_path: Path) -> None:
    old = _weights(dtype, 1)
    new = old.copy()
    if change == "little":
        new[::7] = new[::7] + np.asarray(1e-3 if dtype.startswith("float") else 1).astype(dtype)
    elif change == "all":
        new = _weights(dtype, 2)
    elif change == "length":
        new = _weights(dtype, 1, 50_000)
    source, target = b"old head" + old.tobytes() + b"tail", b"the new head" + new.tobytes() + b"tail!"
    tensors = [
        Tensor("w", start, values.nbytes, values.itemsize, dtype.startswith("float"), channels=100, inner=1)
        for start, values in ((8, old), (12, new))
    ]
    delta = make_delta(source, target, source_tensors=tensors[:1], target_tensors=tensors[1:])
    assert delta is not None
    assert applied(delta, source, tmp_path) == target
    if change in ("none", "little"):
        assert len(delta) < len(target) * 0.6


def test_a_low_rank_step_on_another_grid_costs_little(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    weights = random.normal(size=(256, 512)) * 0.05
    step = (random.normal(size=(256, 4)) @ random.normal(size=(4, 512))) * 0.002
    scales = [np.abs(each).max(axis=1).astype(np.float32) / 127 for each in (weights, weights + step)]
    integers = [
        np.clip(np.rint(each / scale[:, None]), -127, 127).astype(np.int8)
        for each, scale in zip((weights, weights + step), scales, strict=True)
    ]
    tensors = [Tensor("w", 0, 256 * 512, 1, False, channels=256, inner=512, scales=scale) for scale in scales]
    source, target = (each.tobytes() for each in integers)
    delta = make_delta(source, target, source_tensors=tensors[:1], target_tensors=tensors[1:])
    assert delta is not None
    assert applied(delta, source, tmp_path) == target
    blind = make_delta(
        source,
        target,
        source_tensors=[Tensor("w", 0, 256 * 512, 1, False)],
        target_tensors=[Tensor("w", 0, 256 * 512, 1, False)],
    )
    assert blind is not None
    assert len(delta) < 0.6 * len(blind)


def test_a_file_on_its_own_has_an_empty_source(tmp_path: Path) -> None:
    target = b"head" + _weights("float32", 1).tobytes()
    delta = make_delta(b"", target, target_tensors=[Tensor("w", 4, len(target) - 4, 4, True)])
    assert delta is not None
    assert applied(delta, b"", tmp_path) == target
    assert len(delta) < 0.95 * len(target)
    assert read_header(Cursor(delta)).source_length == 0


def test_what_is_too_long_without_tensors_has_no_delta() -> None:
    assert make_delta(b"", bytes((16 << 20) + 1)) is None


def test_a_large_tensor_of_a_width_without_a_model_is_packed_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "MAX_PACKED_BYTES", 1 << 12)
    old = np.arange(2000, dtype=np.int64)
    new = old + (old % 100 == 0)
    tensor = [Tensor("ids", 4, old.nbytes, 8, False)]
    source, target = b"head" + old.tobytes(), b"HEAD" + new.tobytes()
    delta = make_delta(source, target, source_tensors=tensor, target_tensors=tensor)
    assert delta is not None
    assert applied(delta, source, tmp_path) == target
    cursor = Cursor(delta)
    header = read_header(cursor)
    steps = read_steps(unpack(cursor, most=MAX_HEAD_BYTES), header)
    assert [(step.piece, step.source) for step in steps[1:]] == [(Piece.PACKED, 4 + at * 4096) for at in range(4)]


def test_files_that_are_large_beside_their_tensors_have_no_delta() -> None:
    half = bytes(9 << 20)
    assert make_delta(half, half + b"x") is None


def test_neighbours_that_did_not_change_are_copied_at_once(tmp_path: Path) -> None:
    values = _weights("float32", 1, 4000).tobytes()
    tensors = [Tensor(f"w{at}", 20 + 1608 * at, 1600, 4, True) for at in range(9)]
    parts = b"".join(values[1600 * at : 1600 * (at + 1)] + b"between!" for at in range(9))
    source, target = b"head of version one." + parts, b"head of version two." + parts
    delta = make_delta(source, target, source_tensors=tensors, target_tensors=tensors)
    assert delta is not None
    assert applied(delta, source, tmp_path) == target
    assert len(delta) < 80
    # two that changed places: what lies between the others is claimed, and copied apart
    swapped = [replace(each, name=f"w{(0, 7, 2, 3, 4, 5, 6, 1, 8)[at]}") for at, each in enumerate(tensors)]
    delta = make_delta(source, target, source_tensors=swapped, target_tensors=tensors)
    assert delta is not None
    assert applied(delta, source, tmp_path) == target


def test_tensors_that_lie_about_their_places_cost_nothing_but_bytes(tmp_path: Path) -> None:
    zeros, values = bytes(4000), _weights("float32", 1, 2000).tobytes()
    source, target = b"head" + zeros + values, b"the head" + zeros + values[:-4] + b"last"
    maps = [
        [
            Tensor("zeros", at, 4000, 4, True),
            Tensor("within", at + 400, 2000, 4, True),  # equal bytes are found where they come first
            Tensor("values", at + 4000, 8000, 4, True),
            Tensor("beyond", at + 11_000, 4000, 4, True),
            Tensor("before", -300, 400, 4, True),
            Tensor("split", at + 4000, 7999, 4, True),
            Tensor("channels", at + 4000, 8000, 1, False, channels=7),
        ]
        for at in (4, 8)
    ]
    delta = make_delta(source, target, source_tensors=maps[0], target_tensors=maps[1])
    assert delta is not None
    assert applied(delta, source, tmp_path) == target
    assert len(delta) < 300


def test_the_same_files_give_the_same_delta() -> None:
    old, new = _weights("int8", 1).tobytes(), _weights("int8", 2).tobytes()
    tensor = [Tensor("w", 0, len(old), 1, False, channels=100)]
    assert make_delta(old, new, source_tensors=tensor, target_tensors=tensor) == make_delta(
        old, new, source_tensors=tensor, target_tensors=tensor
    )


def test_a_long_stream_is_packed_by_few_codecs_and_comes_back_as_small_within_a_tenth() -> None:
    dice = random.Random(5)
    words = [dice.randbytes(3).hex().encode() for _ in range(500)]
    text = b"".join(b"%d %s " % (dice.randrange(1000), dice.choice(words)) for _ in range(60_000))
    spent = Effort()
    while spent.allows(THOROUGH_BYTES):
        pass

    by_all, by_few = pack(text), pack(text, spent)

    assert unpack(Cursor(by_few), most=len(text)) == text
    assert len(by_all) <= len(by_few) < 1.1 * len(by_all)


def test_what_is_as_good_as_random_is_not_searched_but_what_repeats_far_apart_is_found() -> None:
    spent = Effort()
    while spent.allows(THOROUGH_BYTES):
        pass
    block = random.Random(6).randbytes(300_000)

    assert len(pack(block, spent)) == len(pack(block))
    assert len(pack(block * 4, spent)) < 1.1 * len(block)
