"""A program for tests: a model in TFLite Micro with a large arena, row by row; MODEL ROWS.npy OUT.npy.

Not `run_in_child`: that also looks for the least arena, and a kernel whose scratch does not fit one crashes.
"""

import sys
from pathlib import Path

import numpy as np

from skerry.runtimes.micro import MicroSession

model, rows, out = (Path(argument) for argument in sys.argv[1:])
data = np.load(rows)
session = MicroSession(model.read_bytes())
results = [session.run({session._inputs[0]: row[None]}) for row in data]
np.save(out, np.concatenate([next(iter(result.values())) for result in results]))
