"""Other machines on this one: the real arm64 runtimes under qemu-user, and emitted C on an emulated Cortex-M3.

    prepare("arm64", DEFAULT_FOLDER, print)              # once: packages and wheels into a folder
    run_arm64(DEFAULT_FOLDER, "onnxruntime", data, rows)  # outputs by name | Refused | NotRun
    run_cortex_m(DEFAULT_FOLDER, emit_dense(data), rows)  # likewise

Three ends, never mixed up: outputs; `Refused`, the model was run and failed, which counts against it; `NotRun`, there
is no emulator here, which says nothing about the model and is never "passed".
"""

from converters.emulators.arm64 import run_arm64
from converters.emulators.cortex_m import run_cortex_m
from converters.emulators.ends import DEFAULT_FOLDER, KINDS, NotRun, Status
from converters.emulators.prepare import prepare, status

__all__ = ["DEFAULT_FOLDER", "KINDS", "NotRun", "Status", "prepare", "run_arm64", "run_cortex_m", "status"]
