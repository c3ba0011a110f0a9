"""A model of a disk that loses its power: what is durable, what is pending, and which trees may be found afterwards.

What is assumed, which is what POSIX promises and less than what ext4, XFS or F2FS keep:

- A write, a change of length, a creation, a rename, a removal is *pending* until `fsync` of what it changes has begun
  after it and ended: of the file for its bytes and its length, of the folder for its names.
- Of what is pending, any subset may have happened: nothing, all, one without the others, in any order. Only the changes
  that one `fsync` makes durable are durable together.
- `fsync` of a file does not make its name durable, `fsync` of a folder not the bytes of the files in it. So a rename
  whose file was not synced may leave an empty or a short file, or one of zeros where the length was kept and the
  bytes were not (delayed allocation).
- A write is torn into sectors of 512 bytes, each of which is there or not; a sector is never half written. Bytes that
  have been synced do not change by themselves: bit rot is another test's matter.
- A rename is atomic: the old name and the new one change together. Over two folders, `fsync` of either is enough.
- A file that lost its last name is gone; should the removal not have happened, it is back as it was.
- `-shm` files of SQLite, and sockets, are gone (`operations` leaves them out).
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.power.operations import END, VOLATILE, Make, Open, Operation, Remove, Rename, Resize, Sent, Sync, Write

SECTOR = 512
ROOT = 0


@dataclass(frozen=True, slots=True)
class Bytes:
    """Bytes of a file; `sectors` of them alone (None: all), `zeroed` where the length was kept and the bytes not."""

    offset: int
    data: bytes
    sectors: frozenset[int] | None = None
    zeroed: bool = False

    def apply(self, content: bytes) -> bytes:
        """Return the file's content afterwards."""
        content = content.ljust(self.offset, b"\0")
        end = self.offset + len(self.data)
        if self.zeroed:
            return content.ljust(end, b"\0")
        if self.sectors is None:
            return content[: self.offset] + self.data + content[end:]
        changed = bytearray(content)
        for sector in sorted(self.sectors):
            start, stop = max(sector * SECTOR, self.offset), min((sector + 1) * SECTOR, end)
            if len(changed) < start:
                changed.extend(bytes(start - len(changed)))
            changed[start:stop] = self.data[start - self.offset : stop - self.offset]
        return bytes(changed)

    @property
    def torn(self) -> list[int]:
        """The sectors of the disk that it touches."""
        return list(range(self.offset // SECTOR, -(-(self.offset + len(self.data)) // SECTOR)))


@dataclass(frozen=True, slots=True)
class Length:
    """Another length of a file."""

    length: int

    def apply(self, content: bytes) -> bytes:
        """Return the file's content afterwards."""
        return content[: self.length].ljust(self.length, b"\0")


@dataclass(frozen=True, slots=True)
class Names:
    """Names in folders: `(folder, name, node)`, None where a name is gone."""

    entries: tuple[tuple[int, str, int | None], ...]


@dataclass(frozen=True, slots=True)
class Change:
    """Something pending: its number, the line on which it ended, and the nodes whose sync makes it durable."""

    number: int
    ended: int
    nodes: frozenset[int]
    what: Bytes | Length | Names


Tree = dict[str, tuple[str, bytes]]  # by path: "file", "folder" or "link", and content or target


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which of the pending changes have happened, and in which other form some of them did."""

    kept: frozenset[int]
    torn: tuple[tuple[int, Bytes], ...] = ()


@dataclass
class Disk:
    """One disk; `apply` operations in order, then ask for the `tree` of what was `Chosen` among the pending."""

    files: dict[int, bytes] = field(default_factory=dict)
    folders: dict[int, dict[str, int]] = field(default_factory=lambda: {ROOT: {}})
    links: dict[int, str] = field(default_factory=dict)
    pending: list[Change] = field(default_factory=list)
    now_files: dict[int, bytes] = field(default_factory=dict)
    now_folders: dict[int, dict[str, int]] = field(default_factory=lambda: {ROOT: {}})
    _next: int = 1
    _changes: int = 0
    _bases: dict[int, int] = field(default_factory=dict)
    _known: dict[tuple[object, ...], tuple[bytes, bytes]] = field(default_factory=dict)

    @classmethod
    def holding(cls, tree: Tree) -> "Disk":
        """Return a disk on which all of `tree` is durable."""
        disk = cls()
        for path, (kind, content) in sorted(tree.items()):
            folder, name = disk._place(path)
            disk.now_folders[folder][name] = node = disk._new(kind, content)
            disk.folders[folder][name] = node
            disk.files.update({node: content} if kind == "file" else {})
        return disk

    def apply(self, operation: Operation) -> None:
        """Do what a program did."""
        match operation:
            case Open():
                self._open(operation)
            case Write():
                node = self._node(operation.path)
                offset = len(self.now_files[node]) if operation.offset == END else operation.offset
                self._change_file(operation, node, Bytes(offset, operation.data))
            case Resize():
                self._change_file(operation, self._node(operation.path), Length(operation.length))
            case Sync():
                self._sync(operation)
            case Rename():
                folder, name = self._place(operation.path)
                to_folder, to_name = self._place(operation.to)
                node = self.now_folders[folder][name]
                self._change_names(operation, (folder, name, None), (to_folder, to_name, node))
            case Remove():
                self._change_names(operation, (*self._place(operation.path), None))
            case Make():
                kind = "link" if operation.target else "folder"
                node = self._new(kind, operation.target.encode())
                self._change_names(operation, (*self._place(operation.path), node))
            case Sent():
                pass
            case _:
                raise AssertionError(f"expected an operation that the model knows, got {operation}")

    def tree(self, chosen: Chosen) -> Tree:
        """Return what is found after a power cut."""
        return {path: (kind, content) for path, kind, content, _ in self._walk(chosen)}

    def digest(self, chosen: Chosen) -> str:
        """Return what tells one tree from another."""
        lines = sorted(f"{path}\0{kind}\0{digest.hex()}" for path, kind, _, digest in self._walk(chosen))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def all_pending(self) -> frozenset[int]:
        """The numbers of all pending changes."""
        return frozenset(change.number for change in self.pending)

    # --- what an operation does

    def _open(self, operation: Open) -> None:
        folder, name = self._place(operation.path)
        node = self.now_folders[folder].get(name)
        if node is None:
            self._change_names(operation, (folder, name, self._new("file", b"")))
        elif operation.truncate and self.now_files[node]:
            self._change_file(operation, node, Length(0))

    def _change_file(self, operation: Operation, node: int, what: Bytes | Length) -> None:
        self.now_files[node] = what.apply(self.now_files[node])
        self._note(operation, frozenset({node}), what)

    def _change_names(self, operation: Operation, *entries: tuple[int, str, int | None]) -> None:
        _rename_in(self.now_folders, entries)
        self._note(operation, frozenset(folder for folder, _, _ in entries), Names(entries))

    def _note(self, operation: Operation, nodes: frozenset[int], what: Bytes | Length | Names) -> None:
        self._changes += 1
        self.pending.append(Change(self._changes, operation.ended, nodes, what))

    def _sync(self, operation: Sync) -> None:
        node = self._node(operation.path)
        left = []
        for change in self.pending:
            if node not in change.nodes or change.ended > operation.began:
                left.append(change)
                continue
            for each in change.nodes:
                self._bases[each] = self._bases.get(each, 0) + 1
            if isinstance(change.what, Names):
                _rename_in(self.folders, change.what.entries)
            else:
                self.files[node] = change.what.apply(self.files[node])
        self.pending = left
        self._forget()

    def _forget(self) -> None:
        """Drop what no tree can reach any more: a file whose removal is durable, and its pending bytes."""
        named = {node for names in self.folders.values() for node in names.values()}
        named |= {node for names in self.now_folders.values() for node in names.values()}
        for change in self.pending:
            if isinstance(change.what, Names):
                named |= {node for _, _, node in change.what.entries if node is not None}
        named.add(ROOT)
        self.pending = [each for each in self.pending if isinstance(each.what, Names) or each.nodes <= named]
        for node in [each for each in self.files if each not in named]:
            del self.files[node], self.now_files[node]
        for node in [each for each in self.folders if each not in named]:
            del self.folders[node], self.now_folders[node]
            self.pending = [each for each in self.pending if each.nodes != {node}]

    # --- where things are

    def _new(self, kind: str, content: bytes) -> int:
        node = self._next
        self._next += 1
        if kind == "file":
            self.files[node], self.now_files[node] = b"", content
        elif kind == "folder":
            self.folders[node], self.now_folders[node] = {}, {}
        else:
            self.links[node] = content.decode()
        return node

    def _place(self, path: str) -> tuple[int, str]:
        *above, name = path.split("/")
        folder = ROOT
        for each in above:
            folder = self.now_folders[folder][each]
        return folder, name

    def _node(self, path: str) -> int:
        if not path:
            return ROOT
        folder, name = self._place(path)
        return self.now_folders[folder][name]

    # --- what is found

    def _walk(self, chosen: Chosen) -> Iterable[tuple[str, str, bytes, bytes]]:
        torn = dict(chosen.torn)
        kept = [each for each in self.pending if each.number in chosen.kept]
        folders: dict[int, dict[str, int]] = self.folders
        changes: dict[int, list[tuple[int, Bytes | Length]]] = {}
        names = [each.what.entries for each in kept if isinstance(each.what, Names)]
        if names:
            folders = {node: dict(each) for node, each in self.folders.items()}
            for entries in names:
                _rename_in(folders, entries)
        for each in kept:
            if not isinstance(each.what, Names):
                (node,) = each.nodes
                changes.setdefault(node, []).append((each.number, torn.get(each.number, each.what)))
        yield from self._walk_folder(ROOT, "", folders, changes)

    def _walk_folder(
        self,
        folder: int,
        above: str,
        folders: Mapping[int, dict[str, int]],
        changes: Mapping[int, Sequence[tuple[int, Bytes | Length]]],
    ) -> Iterable[tuple[str, str, bytes, bytes]]:
        for name, node in folders[folder].items():
            path = above + name
            if node in self.links:
                yield path, "link", self.links[node].encode(), self.links[node].encode()
            elif node in folders:
                yield path, "folder", b"", b""
                yield from self._walk_folder(node, f"{path}/", folders, changes)
            else:
                content, digest = self._content(node, changes.get(node, ()))
                yield path, "file", content, digest

    def _content(self, node: int, changes: Sequence[tuple[int, Bytes | Length]]) -> tuple[bytes, bytes]:
        shape = tuple(
            (number, what.sectors, what.zeroed) if isinstance(what, Bytes) else number for number, what in changes
        )
        key = (node, self._bases.get(node, 0), shape)
        if key not in self._known:
            if len(self._known) > 512:
                self._known.clear()
            content = self.files[node]
            for _, what in changes:
                content = what.apply(content)
            self._known[key] = content, hashlib.sha256(content).digest()
        return self._known[key]


def _rename_in(folders: Mapping[int, dict[str, int]], entries: Iterable[tuple[int, str, int | None]]) -> None:
    for folder, name, node in entries:
        if node is not None:
            folders[folder][name] = node
        else:
            folders[folder].pop(name, None)


def read_tree(folder: Path) -> Tree:
    """Return what is in a folder, as the model shows it; links are not followed."""
    tree: Tree = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            tree[name] = "link", str(path.readlink()).encode()
        elif path.is_dir():
            tree[name] = "folder", b""
        elif not name.endswith(VOLATILE):
            tree[name] = "file", path.read_bytes()
    return tree


def write_tree(tree: Tree, folder: Path) -> None:
    """Put a tree into a new folder; `read_tree` backwards."""
    folder.mkdir(mode=0o700)
    for name, (kind, content) in sorted(tree.items()):
        path = folder / name
        if kind == "folder":
            path.mkdir()
        elif kind == "link":
            path.symlink_to(content.decode())
        else:
            path.write_bytes(content)
