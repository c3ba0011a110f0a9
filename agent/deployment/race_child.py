"""`python -m agent.deployment.race_child`: times two builds against each other, so that the daemon need not know NumPy.

One JSON object on stdin: `runtime`, `model`, `rival` and `golden` (files), `manifest` (of the model, as text),
`rounds`, `pairs`, `seconds`, `stretches`. One on stdout: `races`, each two lists of medians in microseconds; or
`refused`.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.inference.golden import golden_vectors
from skerry.errors import Rejected, SkerryError
from skerry.runtimes import Refused, race_in_child
from skerry.wire import codec
from skerry.wire.manifest import Manifest

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def main() -> None:
    """Serve one request."""
    request = json.load(sys.stdin)
    try:
        said: dict[str, Any] = {"races": race(request)}
    except (SkerryError, OSError) as error:
        said = {"refused": str(error)}
    print(json.dumps(said))


def race(request: dict[str, Any]) -> list[tuple[list[float], list[float]]]:
    """Return the medians of both builds, round by round; each round has the other one load first."""
    manifest = codec.decode(Manifest, request["manifest"].encode())
    inputs, _ = golden_vectors(Path(request["golden"]).read_bytes(), manifest)
    races = []
    for number in range(request["rounds"]):
        raced = race_in_child(
            request["runtime"],
            Path(request["model"]),
            Path(request["rival"]),
            inputs,
            rival_first=number % 2 == 1,
            pairs=request["pairs"],
            seconds=request["seconds"],
        )
        if isinstance(raced, Refused):
            raise Rejected(raced.reason)
        medians = [medians_of(taken, stretches=request["stretches"]) for taken in (raced.model_us, raced.rival_us)]
        races.append((medians[0], medians[1]))
    return races


def medians_of(taken: "Array", *, stretches: int) -> list[float]:
    """Return the median of each of so many stretches of the inferences, in microseconds."""
    import numpy as np

    return [round(float(np.median(each)), 2) for each in np.array_split(taken, min(stretches, len(taken)))]


if __name__ == "__main__":
    main()
