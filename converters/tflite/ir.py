"""The writer's own graph between ONNX and the flatbuffer: tensors with values or without, operators in order.

Names of operators are those of the TFLite schema. A graph is built once, from inputs to outputs; passes return a new
list of operators and never change a tensor that another operator reads.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np

from converters.samples import Array

NONE = -1
"""The index of an optional input that is left out."""


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How integers stand for reals: real = scale * (integer - zero_point); one scale, or one per slice of `axis`."""

    scales: tuple[float, ...]
    zero_point: int = 0
    axis: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """`data` is None for what is computed or given; `dtype` is NumPy's name."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    data: Array | None = None
    quantisation: Quantisation | None = None

    @property
    def size(self) -> int:
        """The number of elements."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Operator:
    """One TFLite operator; `options` are the schema's fields, `node` the ONNX node that it came from."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    node: str = ""


class Graph:
    """A graph under construction: `tensor` and `constant` return indices, which `add` joins."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.operators: list[Operator] = []
        self.inputs: dict[str, int] = {}
        self.outputs: dict[str, int] = {}
        self.kept: set[int] = set()
        """Tensors that no pass may fuse away, such as the boundary of a hybrid."""
        self._taken: dict[str, int] = {}

    def tensor(
        self,
        name: str,
        shape: Iterable[int],
        dtype: str = "float32",
        *,
        quantisation: Quantisation | None = None,
    ) -> int:
        """Add a tensor that is computed or given."""
        shape = tuple(int(size) for size in shape)
        self.tensors.append(Tensor(self._unique(name), shape, dtype, quantisation=quantisation))
        return len(self.tensors) - 1

    def constant(self, name: str, values: Array, *, quantisation: Quantisation | None = None) -> int:
        """Add a tensor with values."""
        data = np.ascontiguousarray(values).reshape(values.shape)
        self.tensors.append(
            Tensor(self._unique(name), data.shape, data.dtype.name, data=data, quantisation=quantisation)
        )
        return len(self.tensors) - 1

    def add(self, kind: str, inputs: Iterable[int], outputs: Iterable[int], *, node: str = "", **options: Any) -> None:
        """Add an operator."""
        self.operators.append(Operator(kind, tuple(inputs), tuple(outputs), options, node))

    def reserve(self, names: Iterable[str]) -> None:
        """Keep names for inputs and outputs: a tensor in between that asks for one gets a number behind it."""
        self._taken |= dict.fromkeys(names, 1)

    def given(self, name: str, shape: Iterable[int], dtype: str) -> int:
        """Add an input under exactly its name."""
        self.tensors.append(Tensor(name, tuple(shape), dtype))
        self.inputs[name] = len(self.tensors) - 1
        return self.inputs[name]

    def result(self, name: str, index: int) -> None:
        """Make a tensor an output under exactly its name."""
        self.tensors[index] = replace(self.tensors[index], name=name)
        self.outputs[name] = index

    def consumers(self) -> dict[int, list[Operator]]:
        """Return the operators that read each tensor."""
        found: dict[int, list[Operator]] = {}
        for operator in self.operators:
            for index in operator.inputs:
                found.setdefault(index, []).append(operator)
        return found

    def protected(self) -> set[int]:
        """Return the tensors that must remain: outputs, and what is kept."""
        return self.kept | set(self.outputs.values())

    def _unique(self, name: str) -> str:
        count = self._taken.get(name, 0)
        self._taken[name] = count + 1
        return name if count == 0 else self._unique(f"{name}:{count}")
