"""Wheels for tests: small ones written by hand, and skerry's own of this tree, built as a release is."""

import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("skerry", "firmware_profiles", "converters", "agent", "control_plane")


def wheel(name: str, version: str, files: Mapping[str, str]) -> bytes:
    """Return a wheel of these files."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        info = f"{name}-{version}.dist-info"
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/RECORD", "")
    return packed.getvalue()


def build_skerry(folder: Path, version: str, *, changes: Mapping[str, str] | None = None) -> Path:
    """Build the wheel of this tree as `version` with hatchling; `changes` are texts put before files, by path."""
    tree = folder / f"tree-{version}"
    for package in _PACKAGES:
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    project = (ROOT / "pyproject.toml").read_text()
    (tree / "pyproject.toml").write_text(re.sub(r'(?m)^version = ".*"$', f'version = "{version}"', project, count=1))
    init = tree / "skerry" / "__init__.py"
    init.write_text(re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', init.read_text()))
    for path, text in (changes or {}).items():
        file = tree / path
        file.write_text(text + (file.read_text() if file.exists() else ""))
    code = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    made = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=tree,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    return folder / made.stdout.strip().splitlines()[-1]
