"""What may be uploaded, and what is refused."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from control_plane import datasets
from control_plane.datasets import parse_part
from control_plane.plane import Plane
from control_plane.store import Blobs
from skerry.errors import Broken, Rejected


def npz(**changes: Any) -> bytes:
    """Return a good part with some arrays changed; None leaves one out."""
    arrays = {
        "X": np.zeros((4, 5, 2), np.float32),
        "y": np.array([0, 1, 1, 0]),
        "group": np.array([1, 1, 2, 2]),
        "labels": np.array(["a", "b"]),
    } | changes
    file = io.BytesIO()
    np.savez(file, **{name: array for name, array in arrays.items() if array is not None})
    return file.getvalue()


def bomb() -> bytes:
    """Return a small archive that says that it unpacks to more than is allowed."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("X.npy", "w", force_zip64=True) as entry,
    ):
        for _ in range(257):
            entry.write(bytes(1 << 20))
    return file.getvalue()


def truncated() -> bytes:
    """Return a part whose archive ends early."""
    return npz()[:-40]


def damaged() -> bytes:
    """Return a part with a flipped byte in compressed data."""
    file = io.BytesIO()
    np.savez_compressed(file, X=np.random.default_rng(1).normal(size=(50, 5, 2)).astype(np.float32))
    data = bytearray(file.getvalue())
    data[120] ^= 0xFF
    return bytes(data)


def with_members(make: Callable[[str], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return an archive whose members are what `make` returns for their names."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name in ("X", "y", "group", "labels"):
            archive.writestr(f"{name}.npy", make(name))
    return file.getvalue()


def raw_member() -> bytes:
    """Return a part whose arrays are not in NumPy's format."""
    return with_members(lambda _: b"raw")


def huge(rows: int) -> bytes:
    """Return a part whose arrays say that they have so many rows."""

    def header(_: str) -> bytes:
        file = io.BytesIO()
        tree = {"descr": "<f4", "fortran_order": False, "shape": (rows,)}
        np.lib.format.write_array_header_1_0(file, tree)
        return file.getvalue()

    return with_members(header)


def damaged_lzma() -> bytes:
    """Return a part with flipped bytes in data that LZMA compressed."""
    data = bytearray(with_members(lambda _: bytes(range(256)) * 50, zipfile.ZIP_LZMA))
    data[60:80] = b"\xff" * 20
    return bytes(data)


def encrypted() -> bytes:
    """Return a part whose first member says that it is encrypted."""
    data = bytearray(npz())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


def impossible_label() -> bytes:
    """Return a part with a label of a character that there is not."""
    labels = np.array(["a", "b"])
    labels.view(np.uint32)[1] = 0x7FFFFFFF
    return npz(labels=labels)


def test_a_good_part_is_read() -> None:
    rows = parse_part(npz())
    assert (rows.x.shape, rows.y.tolist(), rows.labels) == ((4, 5, 2), [0, 1, 1, 0], ("a", "b"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lambda: b"not an npz", "expected an npz"),
        (truncated, "expected an npz"),
        (damaged, "expected"),
        (bomb, "bytes of arrays"),
        (lambda: npz(X=None), "got no X"),
        (lambda: npz(X=np.zeros((4, 5, 2))), "float32"),
        (lambda: npz(X=np.zeros((4, 5), np.float32)), "float32"),
        (lambda: npz(X=np.full((4, 5, 2), np.nan, np.float32)), "finite"),
        (lambda: npz(X=np.zeros((0, 5, 2), np.float32)), "float32"),
        (lambda: npz(y=np.array([0, 1, 1])), "4 whole numbers"),
        (lambda: npz(y=np.array([0, 1, 1, 2])), "classes 0 to 1"),
        (lambda: npz(y=np.array([0.0, 1.0, 1.0, 0.0])), "whole numbers"),
        (lambda: npz(group=np.array([1, 1, 2, 2**63], np.uint64)), "below 2"),
        (lambda: npz(labels=np.array(["a", "a"])), "different names"),
        (lambda: npz(labels=np.array([["a", "b"]])), "different names"),
        (lambda: npz(y=np.array([0, 1, 1, "x"], dtype=object)), "plain arrays"),
        (raw_member, "numpy.savez"),
        (lambda: huge(10**13), "plain arrays"),
        (lambda: huge(10**30), "plain arrays"),
        (damaged_lzma, "plain arrays"),
        (encrypted, "encrypted"),
        (impossible_label, "printable"),
        (lambda: npz(labels=np.array(["a", "\ud800"])), "printable"),
        (lambda: npz(labels=np.array(["a", "b\x1b[2J"])), "printable"),
        (lambda: npz(labels=np.array(["a", "b" * 101])), "1 to 100"),
    ],
)
def test_what_is_not_a_part_is_refused_in_one_line(data: Callable[[], bytes], words: str) -> None:
    with pytest.raises(Rejected, match=words) as refusal:
        parse_part(data())
    assert "\n" not in str(refusal.value)


def test_the_same_bytes_twice_are_one_part_and_never_both_train_and_gate(plane: Plane) -> None:
    now = plane.clock()
    with plane.sessions.begin() as session:
        first = datasets.add_part(session, plane.blobs, dataset="moves", role="train", data=npz(), now=now)
        again = datasets.add_part(session, plane.blobs, dataset="moves", role="train", data=npz(), now=now)
        assert first is again
        with pytest.raises(Rejected, match="a part that is train"):
            datasets.add_part(session, plane.blobs, dataset="moves", role="gate", data=npz(), now=now)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"X": np.zeros((4, 6, 2), np.float32)}, "windows of"), ({"labels": np.array(["a", "c"])}, "labels")],
)
def test_a_part_that_does_not_fit_the_others_is_refused(plane: Plane, changes: dict[str, Any], words: str) -> None:
    now = plane.clock()
    with plane.sessions.begin() as session:
        datasets.add_part(session, plane.blobs, dataset="moves", role="train", data=npz(), now=now)
        with pytest.raises(Rejected, match=words):
            datasets.add_part(session, plane.blobs, dataset="moves", role="gate", data=npz(**changes), now=now)


def test_parts_are_joined_in_order(plane: Plane) -> None:
    digests = [plane.blobs.put(npz(group=np.full(4, group))) for group in (7, 8)]
    rows = datasets.load(plane.blobs, digests)
    assert rows.group.tolist() == [7] * 4 + [8] * 4
    with pytest.raises(Rejected, match="at least one part"):
        datasets.load(plane.blobs, [])


def test_blobs_are_verified_when_they_are_read(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    digest = blobs.put(b"sea")
    assert blobs.put(b"sea") == digest
    assert (blobs.get(digest), blobs.size(digest), blobs.exists(digest)) == (b"sea", 3, True)
    (tmp_path / digest).write_bytes(b"air")
    with pytest.raises(Broken, match="the disk damaged it"):
        blobs.get(digest)
    for unknown in ("0" * 64, "../home", ""):
        assert not blobs.exists(unknown)
        with pytest.raises(Rejected, match="blob"):
            blobs.get(unknown)
