"""The folder that is an arm64 machine's root: fetched, unpacked and recorded; nothing outside it is touched.

apt-get runs with a state of its own, so the host's lists, architectures and packages stay as they are; it checks the
archive's signatures as always. pip takes each wheel by its hash. What came is written to `prepared.json`.
"""

import contextlib
import hashlib
import importlib.resources
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.emulators.ends import Status
from converters.emulators.programs import Log, find, how_to_install, install, missing_programs, run
from skerry.errors import Broken, SkerryError, Unavailable

KIND = "arm64"
QEMU = "qemu-aarch64-static"
PROGRAMS = {
    QEMU: "qemu-user-static",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "chroot": "coreutils",
    "prlimit": "util-linux",
    "unshare": "util-linux",
}
FORMAT = 2
"""Counts up when the folder is made in another way, so that older ones are made again."""
DEBIAN = "bookworm"
PYTHON = (3, 11)
PACKAGES = (
    "libbz2-1.0",
    "libc6",
    "libcrypt1",
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "liblzma5",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libssl3",
    "libstdc++6",
    "libuuid1",
    "python3.11-minimal",
    "zlib1g",
)
"""Of Debian 12, with its Python 3.11. Unpinned: the archive keeps only the newest of each; the record says which."""
GLIBC = (36, 34, 31, 28, 27, 24, 17)
PLATFORMS = (*(f"manylinux_2_{minor}_aarch64" for minor in GLIBC), "manylinux2014_aarch64")
RECORD = "prepared.json"
SITE, JOBS = "site", "jobs"
NOBODY = 65534


def enter(root: Path) -> list[str]:
    """Return the start of a command that runs the rest inside `root`: as nobody, or as the user in a namespace."""
    if os.geteuid() == 0:
        return ["chroot", f"--userspec={NOBODY}:{NOBODY}", str(root)]
    return ["unshare", "--user", "--map-root-user", "chroot", str(root)]


def root_of(folder: Path) -> Path:
    """Return where the root of the arm64 machine is, in a folder of emulators."""
    return folder / KIND / "root"


def prepare_arm64(folder: Path, log: Log, *, install: bool = False) -> Status:
    """Fetch and unpack arm64 packages and wheels into `folder`/arm64; see `converters.emulators.prepare`."""
    _require_programs(log, may_install=install)
    found = status_arm64(folder)
    if found.ready:
        log(f"arm64: ready in {folder / KIND}, nothing to do")
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".arm64-") as name:
            scratch = Path(name)
            made = scratch / "made"
            root = made / "root"
            root.mkdir(parents=True)
            debs = _fetch_packages(scratch, log)
            for deb in debs:
                run(["dpkg-deb", "-x", str(deb), str(root)], what="dpkg-deb", wall_s=60)
            wheels = _fetch_wheels(scratch, log)
            for wheel in wheels:
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(root / SITE)
            _finish(root)
            _compile_modules(root, log)
            record = {"recipe": recipe(), "files": {file.name: _sha256(file) for file in (*debs, *wheels)}}
            (made / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True), encoding="utf-8")
            made.chmod(0o755)
            # a folder of an older recipe gives way; an interrupted call leaves no half-made one under the final name
            if (folder / KIND).exists():
                (folder / KIND).rename(scratch / "before")
            made.rename(folder / KIND)
    except OSError as error:
        raise Broken(f"{folder}: expected a folder to prepare arm64 in, got {error.strerror}") from error
    log(f"arm64: {len(debs)} packages and {len(wheels)} wheels in {folder / KIND}")
    return status_arm64(folder)


def status_arm64(folder: Path) -> Status:
    """Say what there is and what is missing for `run_arm64`; see `converters.emulators.status`."""
    missing = [f"{program}: {how_to_install([package])}" for program, package in missing_programs(PROGRAMS).items()]
    again = f"skerry emulator prepare {KIND} --folder {folder}"
    record = _record(folder)
    if record is None:
        missing.append(f"the folder {folder / KIND}: {again}")
    elif record.get("recipe") != recipe() or not (root_of(folder) / QEMU).is_file():
        missing.append(f"the folder {folder / KIND} in today's versions, it was made for others: {again}")
    if not _may_chroot():
        missing.append("root, or user namespaces for chroot without it: run as root")
    versions = dict(_version(name) for name in sorted((record or {}).get("files", {})))
    return Status(kind=KIND, folder=folder / KIND, missing=tuple(missing), versions=versions)


def _may_chroot() -> bool:
    if os.geteuid() == 0:
        return True
    try:
        run(["unshare", "--user", "--map-root-user", "true"], what="unshare", wall_s=10)
    except SkerryError:
        return False
    return True


def recipe() -> str:
    """Return the digest of what is asked for: another one means that a folder has to be made again."""
    asked = json.dumps([FORMAT, DEBIAN, PACKAGES, PLATFORMS]) + _requirements()
    return hashlib.sha256(asked.encode()).hexdigest()


def _require_programs(log: Log, *, may_install: bool) -> None:
    if sys.platform != "linux":
        raise Broken(f"expected Linux, got {sys.platform}: qemu-user runs Linux programs on Linux")
    missing = missing_programs(PROGRAMS)
    if missing and may_install:
        install(list(missing.values()), log)
        missing = missing_programs(PROGRAMS)
    if missing:
        needed = how_to_install(list(missing.values()))
        raise Broken(f"expected {', '.join(missing)} on this machine, got none: {needed} (or --install, as root)")
    if not _may_chroot():
        raise Broken("expected root, or user namespaces for chroot without it, got neither: run as root")
    if importlib.util.find_spec("pip") is None:
        raise Broken(f"expected pip beside {sys.executable}, got none: python -m ensurepip")


def _fetch_packages(scratch: Path, log: Log) -> list[Path]:
    log(f"fetching {len(PACKAGES)} arm64 packages of Debian {DEBIAN}")
    state = scratch / "apt"
    for name in ("lists/partial", "archives/partial", "debs", "none"):
        (state / name).mkdir(parents=True)
    (state / "status").touch()
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Default-Release": "",
        "APT::Sandbox::User": "",  # apt's own user may not enter a folder in a user's home
        "APT::Update::Error-Mode": "any",
        "Acquire::Languages": "none",
        "Dir::Cache": str(state),
        "Dir::Cache::archives": str(state / "archives"),
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": str(state / "none"),
        "Dir::Etc::sourcelist": str(_sources()),
        "Dir::Etc::sourceparts": str(state / "none"),
        "Dir::State": str(state),
        "Dir::State::lists": str(state / "lists"),
        "Dir::State::status": str(state / "status"),
    }
    apt = ["apt-get", "-qq", *(part for name, value in options.items() for part in ("-o", f"{name}={value}"))]
    run([*apt, "update"], what="apt-get update for arm64", wall_s=300)
    run([*apt, "download", *PACKAGES], what="apt-get download for arm64", wall_s=300, folder=state / "debs")
    return sorted((state / "debs").glob("*.deb"))


def _sources() -> Path:
    """Return a list of the host's sources of Debian itself: others may have no arm64, or no such packages."""
    for known in (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list")):
        if known.is_file() and DEBIAN in known.read_text(encoding="utf-8"):
            return known
    raise Broken(f"expected Debian {DEBIAN} among apt's sources, got none in /etc/apt: run this on Debian 12")


def _fetch_wheels(scratch: Path, log: Log) -> list[Path]:
    log("fetching the aarch64 wheels of numpy, onnxruntime and ai-edge-litert")
    wanted = scratch / "requirements.txt"
    wanted.write_text(_requirements(), encoding="utf-8")
    platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
    target = ["--python-version", "311", "--implementation", "cp", "--abi", "cp311", "--only-binary=:all:", *platforms]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", *target]
    run([*pip, "-d", str(scratch / "wheels"), "-r", str(wanted)], what="pip download for aarch64", wall_s=600)
    return sorted((scratch / "wheels").glob("*.whl"))


def _finish(root: Path) -> None:
    """Put the emulator inside, and a folder for jobs."""
    emulator = find(QEMU)
    assert emulator is not None  # noqa: S101 -- `_require_programs` has found it
    shutil.copyfile(emulator, root / QEMU)
    (root / QEMU).chmod(0o755)
    (root / JOBS).mkdir()
    (root / JOBS).chmod(0o711)
    root.chmod(0o755)


def _compile_modules(root: Path, log: Log) -> None:
    """Compile the Python modules that runs import, which emulated takes four times as long as all else of a run."""
    if sys.version_info[:2] != PYTHON:
        log("arm64: runs will take some seconds more, as this Python is not 3.11 and cannot compile its modules")
        return
    imported = [
        root / "usr/lib/python3.11",
        *(root / SITE / name for name in ("numpy", "onnxruntime", "ai_edge_litert")),
    ]
    unused = r"/(tests?|tools|transformers|quantization|lib2to3|idlelib)/"
    options = ["-q", "-s", str(root), "-x", unused, "--invalidation-mode", "unchecked-hash"]
    # its exit code counts modules with old syntax too, which nobody imports
    command = [sys.executable, "-m", "compileall", *options, *(str(path) for path in imported)]
    with contextlib.suppress(Unavailable):
        run(command, what="compileall", wall_s=120)


def _requirements() -> str:
    return importlib.resources.files("converters.emulators").joinpath("arm64-requirements.txt").read_text("utf-8")


def _record(folder: Path) -> Mapping[str, Any] | None:
    try:
        tree = json.loads((folder / KIND / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return tree if isinstance(tree, dict) else None


def _version(file: str) -> tuple[str, str]:
    """Return name and version from a file name: NAME_VERSION_ARCH.deb, or NAME-VERSION-TAGS.whl."""
    name, version = file.split("_" if file.endswith(".deb") else "-")[:2]
    return name, version.replace("%3a", ":")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
