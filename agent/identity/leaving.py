"""The end of a device: everything in its state folder is deleted, and nothing outside of it.

A marker is written first, so a power cut in between is followed by the rest at the next start. What flash storage keeps
of a deleted file is beyond any program: docs/security.md.
"""

import shutil
from pathlib import Path

from skerry.delivery.durable import sync_folder, write_durably
from skerry.errors import Broken

MARKER = "leaving"


def begin_to_leave(folder: Path) -> None:
    """Note durably that this device was told to wipe itself."""
    write_durably(folder / MARKER, b"decommissioned\n", mode=0o600)


def is_leaving(folder: Path) -> bool:
    """Say whether a wipe has begun and not ended."""
    return (folder / MARKER).exists()


def wipe(folder: Path) -> None:
    """Delete all that is in `folder`, the marker last; the folder itself stays. Links are deleted, not followed.

    Raises:
        Broken: something cannot be deleted; the next start tries again.
    """
    try:
        for path in sorted(folder.iterdir(), key=_order):
            if path.name == MARKER:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        sync_folder(folder)
        (folder / MARKER).unlink(missing_ok=True)
        sync_folder(folder)
    except OSError as error:
        raise Broken(f"{folder}: expected to wipe it, got: {error.strerror} ({error.filename}); start again") from error


def _order(path: Path) -> tuple[bool, str]:
    # the key first: whatever else is left behind without it opens nothing and proves nothing
    return not path.name.endswith(".key"), path.name
