"""The kinds of jobs that a control plane knows."""

from collections.abc import Mapping

from control_plane import compile_job, delta_job, imports, train_job
from control_plane.jobs import Kind

KINDS: Mapping[str, Kind] = {
    "train": train_job.KIND,
    "import": imports.KIND,
    "compile": compile_job.KIND,
    "delta": delta_job.KIND,
}
