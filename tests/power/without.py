"""`python -m tests.power.without CALL run ...`: the agent with one sync left out, to show that the matrix notices.

Each of `CALLS` patches one call in one module of the agent, before its `main` runs; the processes it starts are whole.
"""

import os
import sqlite3
import stat
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import agent.telling.outbox_file
from agent.__main__ import main
from agent.identity import folder, leaving
from agent.upkeep import launcher
from skerry.delivery import durable, partial, slots


def _but(module: Any, **replaced: object) -> SimpleNamespace:
    """Return a module with other functions in it, for the one importer that is given it."""
    return SimpleNamespace(**{**vars(module), **replaced})


def _file_of_write_durably() -> None:
    """The temporary file is not synced before it takes its name."""

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            os.fsync(descriptor)

    vars(durable)["os"] = _but(os, fsync=fsync)


def _folder_of_write_durably() -> None:
    """The folder is not synced after the file took its name."""
    vars(durable)["sync_folder"] = lambda _: None


def _partial_file() -> None:
    """The bytes of a window are not synced before the bitmap names them."""
    vars(partial)["os"] = _but(os, fsync=lambda _: None)


def _slots() -> None:
    """The slot's folder is not synced before the pointer says that it is whole."""
    vars(slots)["sync_folder"] = lambda _: None


def _outbox() -> None:
    """Transactions of the outbox are left to the page cache."""

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            return super().execute(sql.replace("synchronous = full", "synchronous = normal"), *args)

    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        return cast("sqlite3.Connection", sqlite3.connect(*args, **{**options, "factory": Connection}))

    vars(agent.telling.outbox_file)["sqlite3"] = _but(sqlite3, connect=connect)


def _components() -> None:
    """The folder of a component that was named is not synced before it is worked in."""
    vars(folder)["sync_folder"] = lambda _: None


def _launcher() -> None:
    """What the launcher keeps is left to the page cache."""
    vars(launcher)["os"] = _but(os, fsync=lambda _: None)


def _leaving() -> None:
    """The wipe begins although nothing of the marker is on the disk."""
    vars(leaving)["write_durably"] = lambda path, data, **_: path.write_bytes(data)


def _wiped() -> None:
    """The marker goes although what it stands for may not have gone."""
    vars(leaving)["sync_folder"] = lambda _: None


CALLS: dict[str, Callable[[], None]] = {
    "file": _file_of_write_durably,
    "folder": _folder_of_write_durably,
    "partial": _partial_file,
    "slots": _slots,
    "outbox": _outbox,
}
# what only the stories without a broker tell of
MORE_CALLS: dict[str, Callable[[], None]] = {
    "components": _components,
    "launcher": _launcher,
    "leaving": _leaving,
    "wiped": _wiped,
}
EVERY_CALL = CALLS | MORE_CALLS

if __name__ == "__main__":
    CALLS[sys.argv[1]]()
    sys.exit(main(sys.argv[2:]))
