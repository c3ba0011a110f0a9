"""Emitted C as firmware of an emulated Cortex-M3: built by arm-none-eabi-gcc, run by qemu-system-arm -M mps2-an385.

The rows are put into the machine's memory, and what the C gives comes out of its serial port. The firmware's own code
is in `firmware/`: vectors, one serial port, and no semihosting, which would open the host's files to it.
"""

import importlib.resources
import os
import signal
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from converters.c_source import Face, face_of
from converters.emulators.ends import NotRun, Outputs, Status
from converters.emulators.programs import Log, find, how_to_install, install, last_line, missing_programs
from converters.samples import Array
from skerry.errors import Broken, Rejected
from skerry.runtimes import Refused

KIND = "cortex-m"
COMPILER, EMULATOR = "arm-none-eabi-gcc", "qemu-system-arm"
PROGRAMS = {COMPILER: "gcc-arm-none-eabi", EMULATOR: "qemu-system-arm"}
LIBRARY = "libnewlib-arm-none-eabi"
MACHINE = ("-M", "mps2-an385", "-display", "none", "-monitor", "none", "-nic", "none", "-no-reboot")
# no contraction of products and sums: the floats are to be those of any other machine
FLAGS = ("-std=gnu99", "-mcpu=cortex-m3", "-mthumb", "-O2", "-ffp-contract=off")
FIRMWARE = ("machine.c", "machine.h", "main.c", "machine.ld")
ROWS_AT = 0x21000000
MOST_ROWS_BYTES = 15 << 20
COMPILE_WALL_S = 60.0


def prepare_cortex_m(folder: Path, log: Log, *, install: bool = False) -> Status:
    """Check for the compiler and the emulator, and install them where that is allowed; nothing is kept in `folder`.

    Raises:
        Broken: something is missing and may not be, or cannot be, installed.
    """
    found = status_cortex_m(folder)
    if found.missing and install:
        _install(log)
        found = status_cortex_m(folder)
    if found.missing:
        raise Broken(f"expected {'; '.join(found.missing)} (or --install, as root)")
    log(f"cortex-m: ready, {found.versions[EMULATOR]}")
    return found


def status_cortex_m(folder: Path) -> Status:
    """Say what is missing for `run_cortex_m`: two programs and a library, from Debian."""
    missing = [f"{program}: {how_to_install([package])}" for program, package in missing_programs(PROGRAMS).items()]
    compiler = find(COMPILER)
    if compiler is not None and not Path(_said(compiler, "-print-file-name=libm.a")).is_absolute():
        missing.append(f"the C library for {COMPILER}: {how_to_install([LIBRARY])}")
    versions = {name: _said(path, "--version") for name in PROGRAMS if (path := find(name)) is not None}
    return Status(kind=KIND, folder=folder / KIND, missing=tuple(missing), versions=versions)


def run_cortex_m(
    folder: Path, sources: Mapping[str, bytes], inputs: Array, *, wall_s: float = 120.0
) -> Outputs | Refused | NotRun:
    """Build a firmware of sources that `converters.c_source` emitted, and run it once for every row of inputs.

    `inputs` is (n, width): int8 for dense nets, float32 for trees. Returns `output` (n, outputs) as the C gives it
    (int8 logits, or float32 scores), and of a classifier `label` int32 (n,). `folder` is where emulators are; this kind
    keeps nothing there. `NotRun`: no emulator or compiler, or the time was up. `Refused`: the C does not compile, does
    not fit the machine, or faults.

    Raises:
        Rejected: the sources are not emitted C, or the rows do not fit them.
    """
    face = face_of(sources)
    _check_rows(face, inputs)
    found = status_cortex_m(folder.expanduser())
    if found.missing:
        return NotRun(f"cortex-m emulator: expected it to be prepared, got no {'; '.join(found.missing)}")
    with tempfile.TemporaryDirectory(prefix="skerry-cortex-m-") as name:
        scratch = Path(name)
        failure = _build(scratch, face, sources)
        if failure:
            return failure
        rows = np.ascontiguousarray(inputs, dtype=np.dtype(face.element).newbyteorder("<"))
        (scratch / "rows").write_bytes(struct.pack("<I12x", len(rows)) + rows.tobytes())
        return _emulate(scratch, wall_s) or _read(scratch / "sent", face, len(rows))


def _install(log: Log) -> None:
    install([*PROGRAMS.values(), LIBRARY], log)


def _check_rows(face: Face, inputs: Array) -> None:
    if inputs.ndim != 2 or inputs.shape[1] != face.width or inputs.dtype != np.dtype(face.element):
        got = f"{inputs.dtype} {inputs.shape}"
        raise Rejected(f"rows: expected {face.element} (n, {face.width}) for {face.name}, got {got}")
    if inputs.nbytes > MOST_ROWS_BYTES:
        raise Rejected(f"rows: expected at most {MOST_ROWS_BYTES} bytes in the machine's memory, got {inputs.nbytes}")


def _build(scratch: Path, face: Face, sources: Mapping[str, bytes]) -> Refused | NotRun | None:
    for name in FIRMWARE:
        text = importlib.resources.files("converters.emulators").joinpath("firmware", name).read_bytes()
        (scratch / name).write_bytes(text)
    model = scratch / "model"
    model.mkdir()
    for name in (f"{face.name}.c", f"{face.name}.h"):
        (model / name).write_bytes(sources[name])
    (scratch / "subject.h").write_text(_subject(face), encoding="ascii")
    files = [str(scratch / "machine.c"), str(scratch / "main.c"), str(model / f"{face.name}.c")]
    places = [f"-I{scratch}", f"-I{model}", "-nostartfiles", "-T", str(scratch / "machine.ld")]
    command = [COMPILER, *FLAGS, *places, "-o", str(scratch / "firmware.elf"), *files, "-lm", "-lc", "-lgcc"]
    ended = _bounded(command, scratch, wall_s=COMPILE_WALL_S)
    if isinstance(ended, NotRun):
        return ended
    if ended == 0:
        return None
    said = [line for line in (scratch / "said").read_text(errors="replace").split("\n") if line.strip()]
    telling = next((line for line in said if "error" in line or "overflow" in line), last_line("\n".join(said)))
    return Refused(f"expected C that builds for a Cortex-M3, got: {telling[-200:]}")


def _subject(face: Face) -> str:
    macro = face.name.upper()
    return (
        f'#include "{face.name}.h"\n#define TYPE {face.c_type}\n#define INPUTS {macro}_INPUTS\n'
        f"#define OUTPUTS {macro}_OUTPUTS\n#define CLASSIFIES {macro}_CLASSIFIES\n"
        f"#define predict {face.name}_predict\n#define label_of {face.name}_label\n"
    )


def _emulate(scratch: Path, wall_s: float) -> Refused | NotRun | None:
    loader = f"loader,file={scratch / 'rows'},addr={ROWS_AT:#x},force-raw=on"
    command = [EMULATOR, *MACHINE, "-kernel", str(scratch / "firmware.elf"), "-device", loader]
    ended = _bounded([*command, "-serial", f"file:{scratch / 'sent'}"], scratch, wall_s=wall_s)
    if isinstance(ended, NotRun):
        return ended
    if ended == 0:
        return None
    return NotRun(f"cortex-m emulator: expected it to run, got {last_line((scratch / 'said').read_text())}")


def _bounded(command: Sequence[str], scratch: Path, *, wall_s: float) -> int | NotRun:
    """Run a program within a time limit, what it says going to a file; returns its exit code."""
    path = find(command[0])
    assert path is not None  # noqa: S101 -- the status has found it
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "TMPDIR": str(scratch)}
    with (scratch / "said").open("wb") as said:
        child = subprocess.Popen(
            [path, *command[1:]],
            cwd=scratch,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            return child.wait(timeout=wall_s)
        except subprocess.TimeoutExpired:
            return NotRun(f"cortex-m emulator: expected {command[0]} to end within {wall_s:g} s, got a timeout")
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def _read(sent: Path, face: Face, rows: int) -> Outputs | Refused:
    data = sent.read_bytes()
    out = np.dtype((np.dtype(face.element).newbyteorder("<"), (face.outputs,)))
    record = np.dtype([("output", out), ("label", "<i4")])
    if data.endswith(b"FALT"):
        before = (len(data) - 8) // record.itemsize
        return Refused(f"expected {rows} rows from the Cortex-M3, got a fault after {before}")
    if len(data) != rows * record.itemsize + 8 or data[:4] != b"ROWS" or data[-4:] != b"DONE":
        return Refused(f"expected {rows} rows from the Cortex-M3, got {len(data)} bytes that are not them")
    table = np.frombuffer(data, dtype=record, offset=4, count=rows)
    outputs = {"output": table["output"].astype(face.element)}
    return outputs | ({"label": table["label"].astype(np.int32)} if face.classifies else {})


def _said(program: str, question: str) -> str:
    try:
        done = subprocess.run([program, question], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.split("\n", 1)[0].strip()
