"""What an emulator can say besides outputs: that nothing was run, and what is missing for it to run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.samples import Array

KINDS = ("arm64", "cortex-m")
DEFAULT_FOLDER = Path("~/.cache/skerry/emulators")
"""Where emulators are prepared unless the user says otherwise; `~` is expanded by whoever uses it."""

Outputs = dict[str, Array]


@dataclass(frozen=True, slots=True)
class NotRun:
    """Nothing was run, so nothing is known of the model; `reason` is one line that says what to do."""

    reason: str


@dataclass(frozen=True, slots=True)
class Status:
    """What there is of an emulator: `missing` in plain words, one line each (none: it is ready), and what it is of."""

    kind: str
    folder: Path
    missing: tuple[str, ...]
    versions: dict[str, str]

    @property
    def ready(self) -> bool:
        """Whether it can run."""
        return not self.missing

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON tree."""
        return {
            "kind": self.kind,
            "folder": str(self.folder),
            "ready": self.ready,
            "missing": list(self.missing),
            "versions": self.versions,
        }
