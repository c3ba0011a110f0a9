"""`skerry.Model`: the model that is committed on this device, run inside a program of its own.

    with skerry.Model("watch") as model:
        outputs = model(window)                        # arrays by output name; one row, or a batch of rows
        outputs = model({"window": window}, truth="lift")
        call = model.bind(buffer)                      # reads `buffer` in place, writes the same outputs each time
        outputs = call()

The agent decides what is committed; this follows, and swaps between two calls. What is watched of each row goes to the
agent to be counted, from a thread of its own; without an agent the model answers all the same, and the rows that nobody
counted are `dropped`. A program that dies inside the model by a fault of it is told of when the next one opens it, and
the agent rolls back.

A model that is sealed at rest cannot be opened here: the agent alone has the key, and answers over its socket.
"""

import os
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from skerry.errors import Rejected
from skerry.local.committed import find_state
from skerry.local.following import Following
from skerry.local.loaded import Loaded, Truth
from skerry.wire.manifest import Manifest

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Arrays = dict[str, Array]


class Model:
    """The committed model `name`; may be called from several threads.

    Args:
        name: the model's name, as in its releases.
        state: the agent's state folder; else SKERRY_STATE, /var/lib/skerry-agent or ./skerry-agent.
        threads: how many threads one inference may use.

    Raises:
        Unavailable: nothing is committed yet.
        Rejected: another model is committed, or its files are not what was signed.
        Broken: there is no agent's folder, no permission to read it, no runtime, or the model is sealed at rest.
    """

    def __init__(self, name: str, *, state: str | os.PathLike[str] | None = None, threads: int = 1) -> None:
        if threads < 1:
            raise Rejected(f"threads: expected 1 or more, got {threads}")
        self._following = Following(find_state(state), name, threads=threads)
        self._close = weakref.finalize(self, self._following.close)

    def __call__(self, inputs: "Array | Mapping[str, Array]", *, truth: Truth = None) -> "Arrays":
        """Run the model on one row, with or without its leading 1, or on a batch of rows; return its outputs by name.

        `truth` is the row's label where it is known (for a batch, one per row), and is counted with it.

        Raises:
            Rejected: a wrong name, shape or dtype: the message says what the model takes.
            Unavailable: nothing is committed any more, or the model was closed.
        """
        return self._following.current().run(inputs, truth=truth)

    def bind(self, inputs: "Array | Mapping[str, Array]") -> "BoundModel":
        """Return a call that reads these arrays where they stand, of exactly the model's shapes, and allocates nothing.

        Its outputs are the same arrays at every call. It follows the pointer as the model does.
        """
        return BoundModel(self._following, inputs)

    def close(self) -> None:
        """Have the rest counted, and let go of the model."""
        self._close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def manifest(self) -> Manifest:
        """The manifest of what runs now: version, inputs, outputs, labels; raises as a call does."""
        return self._following.current().manifest

    @property
    def digest(self) -> str:
        """The SHA-256 of that manifest, by which the fleet knows the artifact."""
        return self._following.current().digest

    @property
    def dropped(self) -> int:
        """How many rows were answered and never counted."""
        return self._following.dropped

    @property
    def problem(self) -> str:
        """Why what the pointer names now is not what runs; empty while it is."""
        return self._following.problem


class BoundModel:
    """A model joined to arrays; for one thread at a time."""

    def __init__(self, following: Following, inputs: "Array | Mapping[str, Array]") -> None:
        self._following = following
        loaded = following.current()
        self._inputs = dict(loaded.named(inputs))
        self._join(loaded)

    def __call__(self, *, truth: str | None = None) -> "Arrays":
        """Run one inference on what the inputs hold now; raises as a call of the model does."""
        loaded = self._following.current()
        if loaded is not self._loaded:
            self._join(loaded)
        return loaded.run_bound(self._inputs, self._bound, truth=truth)

    def _join(self, loaded: Loaded) -> None:
        self._loaded, self._bound = loaded, loaded.bind(self._inputs)
