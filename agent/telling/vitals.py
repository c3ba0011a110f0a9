"""What the system tells of itself: temperature, memory, disk. What it does not tell is None, never invented."""

import contextlib
import os
from pathlib import Path

from skerry.wire.messages import Vitals

_THERMAL = Path("/sys/class/thermal")
_MEMINFO = Path("/proc/meminfo")
_MAX_ZONES = 64
# outside of this a sensor is not connected, or counts in another unit than the kernel asks for
_PLAUSIBLE_C = (-60.0, 200.0)


def read_vitals(folder: Path, *, thermal: Path = _THERMAL, meminfo: Path = _MEMINFO) -> Vitals:
    """Return what the system tells now; the disk is the one that `folder` lies on."""
    memory = _memory(meminfo)
    return Vitals(
        temperature_c=_temperature(thermal),
        memory_available_bytes=memory.get("MemAvailable"),
        memory_total_bytes=memory.get("MemTotal"),
        disk_free_bytes=_disk_free(folder),
    )


def _temperature(thermal: Path) -> float | None:
    """Return the hottest zone in degrees C; the kernel writes thousandths (Documentation/driver-api/thermal)."""
    found = []
    for zone in sorted(thermal.glob("thermal_zone*/temp"))[:_MAX_ZONES]:
        # a zone whose sensor sleeps answers with an error
        with contextlib.suppress(OSError, ValueError):
            degrees = int(zone.read_text(encoding="ascii")) / 1000
            if _PLAUSIBLE_C[0] <= degrees <= _PLAUSIBLE_C[1]:
                found.append(round(degrees, 1))
    return max(found, default=None)


def _memory(meminfo: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return found
    for line in lines:
        name, _, rest = line.partition(":")
        amount, _, unit = rest.strip().partition(" ")
        if unit == "kB" and amount.isdecimal():
            found[name] = int(amount) * 1024
    return found


def _disk_free(folder: Path) -> int | None:
    try:
        disk = os.statvfs(folder)
    except OSError:
        return None
    return disk.f_bavail * disk.f_frsize
