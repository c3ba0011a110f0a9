"""A model in the real aarch64 wheels of its runtime: in the prepared folder, under qemu-user and chroot.

The program that runs inside is `skerry.runtimes.child`, the same as on this architecture, copied in for each run. Root
enters as nobody, a user by a namespace of their own. The emulator is started by its path inside, so binfmt_misc is not
needed. Neither /proc nor /dev is mounted.
"""

import json
import os
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path, PurePosixPath

import skerry
from converters.emulators.arm64_root import (
    JOBS,
    KIND,
    NOBODY,
    QEMU,
    SITE,
    enter,
    prepare_arm64,
    root_of,
    status_arm64,
)
from converters.emulators.ends import NotRun, Outputs
from converters.emulators.programs import last_line
from converters.samples import Array
from skerry.errors import Rejected
from skerry.runtimes import Limits, Refused
from skerry.runtimes.arrays import pack, unpack

__all__ = ["prepare_arm64", "run_arm64", "status_arm64"]

RUNTIMES = ("onnxruntime", "litert")
LIMITS = Limits(address_space_bytes=16 << 30, cpu_s=600, wall_s=600.0)
"""Ten times what a native child may take: emulated code is that much slower, and the emulator's memory comes on top."""
CHROOT_FAILED = (125, 126, 127)
"""Exit codes of chroot(1) itself: it, the emulator or the interpreter could not be started."""


def run_arm64(
    folder: Path, runtime: str, model: bytes, inputs: Mapping[str, Array], *, limits: Limits = LIMITS
) -> Outputs | Refused | NotRun:
    """Run a model once for every row of `inputs` (by name, rows first) on arm64; outputs by name, rows first.

    `runtime` is onnxruntime or litert. All rows run in one process, which the limits bound. `Refused`: the runtime on
    arm64 refused the model or crashed. `NotRun`: nothing is known, as the emulator is missing, or the time was up, of
    which an emulator says nothing.
    """
    if runtime not in RUNTIMES:
        return NotRun(f"expected a runtime with aarch64 wheels ({', '.join(RUNTIMES)}), got {runtime}")
    found = status_arm64(folder.expanduser())
    if found.missing:
        return NotRun(f"arm64 emulator: expected it to be prepared, got none of {'; '.join(found.missing)}")
    root = root_of(folder.expanduser())
    try:
        job = Path(tempfile.mkdtemp(dir=root / JOBS))
    except OSError as error:
        return NotRun(f"arm64 emulator: expected to write in {root / JOBS}, got {error.strerror}: prepare one's own")
    try:
        _fill(job, runtime, model, inputs, limits=limits)
        failure = _chroot(root, job, limits)
        return failure or _read(job, limits)
    finally:
        shutil.rmtree(job, ignore_errors=True)


def _fill(job: Path, runtime: str, model: bytes, inputs: Mapping[str, Array], *, limits: Limits) -> None:
    """Write the request of `skerry.runtimes.child` into a folder that nobody owns, and our package beside it."""
    inside = PurePosixPath("/") / JOBS / job.name
    request = {"runtime": runtime, "model": str(inside / "model"), **asdict(limits)}
    (job / "request.json").write_text(json.dumps(request), encoding="utf-8")
    (job / "model").write_bytes(model)
    (job / "inputs.npz").write_bytes(pack(inputs))
    package = Path(skerry.__file__).parent
    shutil.copytree(package, job / "lib" / "skerry", ignore=shutil.ignore_patterns("__pycache__"))
    if os.geteuid() == 0:
        # the umask of whoever runs us may hide what it writes from the child
        for path in (job, *job.rglob("*")):
            os.chown(path, NOBODY, NOBODY)


def _chroot(root: Path, job: Path, limits: Limits) -> Refused | NotRun | None:
    inside = PurePosixPath("/") / JOBS / job.name
    # the guest's own setrlimit of memory is ignored by qemu-user, so the emulator itself is limited
    bounded = ["prlimit", f"--as={limits.address_space_bytes}", f"--cpu={limits.cpu_s}", f"--fsize={limits.file_bytes}"]
    machine = ["--core=0", *enter(root), f"/{QEMU}"]
    program = ["/usr/bin/python3.11", "-P", "-B", "-m", "skerry.runtimes.child", str(inside)]
    environment = {
        "PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin",
        "PYTHONPATH": f"/{SITE}:{inside / 'lib'}",
        "HOME": str(inside),
        "TMPDIR": str(inside),
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    with tempfile.TemporaryFile() as printed:
        try:
            child = subprocess.Popen(
                [*bounded, *machine, *program],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                start_new_session=True,
            )
        except OSError as error:
            return NotRun(f"arm64 emulator: expected prlimit to start, got {error.strerror}")
        try:
            code = child.wait(timeout=limits.wall_s)
        except subprocess.TimeoutExpired:
            return NotRun(f"arm64 emulator: expected an end within {limits.wall_s:g} s, got a timeout")
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        printed.seek(-min(4096, os.fstat(printed.fileno()).st_size), os.SEEK_END)
        last = last_line(printed.read().decode(errors="replace"))
    if code == 0:
        return None
    if code in CHROOT_FAILED:
        return NotRun(f"arm64 emulator: expected chroot to start it, got: {last}")
    if code == -signal.SIGXCPU:
        return NotRun(f"arm64 emulator: expected an end within {limits.cpu_s} s of CPU, got more")
    if code < 0:
        return Refused(f"expected the model to run on {KIND}, got a crash by {signal.Signals(-code).name}: {last}")
    return Refused(f"expected the model to run on {KIND}, got exit code {code}: {last}")


def _read(job: Path, limits: Limits) -> Outputs | Refused:
    # the model may have taken over the child: what it left is judged like any other input
    try:
        result = json.loads(_read_file(job / "result.json", limit=1 << 16))
        if "refused" in result:
            return Refused(str(result["refused"]))
        return unpack(_read_file(job / "outputs.npz", limit=limits.file_bytes), what="outputs")
    except (OSError, ValueError, TypeError, Rejected) as error:
        return Refused(f"expected a result of the model on {KIND}, got {error}")


def _read_file(path: Path, *, limit: int) -> bytes:
    """Read a file that the child left: never through a link, which would lead out of the chroot."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_size > limit:
            raise Rejected(f"a file of {found.st_size} bytes: expected a plain one of at most {limit}")
        return file.read(limit)
