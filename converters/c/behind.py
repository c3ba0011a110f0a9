"""What stands behind the trees of an ONNX graph: nothing, a softmax, a sigmoid, or the pair (1 - p, p) of a sigmoid.

Exporters write boosters as sums with such an end behind them. Anything else is refused by its name: the scores of the C
would not be the model's.
"""

from typing import Any

import numpy as np

from skerry.errors import Rejected

PAIR = "PAIR"


def read_behind(graph: Any, scores: str) -> tuple[str, str]:
    """Return (form, output): NONE, SOFTMAX, LOGISTIC or PAIR, and the graph's output that it leads to.

    Raises:
        Rejected: the scores lead through another operator, which is named, or to no output.
    """
    outputs = {each.name for each in graph.output}
    form, value = "NONE", scores
    while value not in outputs:
        users = [node for node in graph.node if value in node.input]
        kinds = [str(node.op_type) for node in users]
        if kinds == ["Identity"]:
            pass
        elif form == "NONE" and kinds == ["Softmax"] and _axis(users[0]) in {1, -1}:
            form = "SOFTMAX"
        elif form == "NONE" and kinds == ["Sigmoid"]:
            form = "LOGISTIC"
        elif form == "LOGISTIC" and sorted(kinds) == ["Concat", "Sub"]:
            form, users = PAIR, [_joined(graph, value, users)]
        else:
            got = ", ".join(sorted(kinds)) or "nothing"
            raise Rejected(f"C emitter: expected a softmax, a sigmoid or no operator behind the trees, got {got}")
        value = users[0].output[0]
    return form, value


def _axis(node: Any) -> int:
    return next((int(each.i) for each in node.attribute if each.name == "axis"), -1)


def _joined(graph: Any, value: str, users: list[Any]) -> Any:
    """Return the Concat of (1 - value, value); raises `Rejected` when the two nodes are anything else."""
    from onnx import numpy_helper

    sub, concat = sorted(users, key=lambda node: str(node.op_type), reverse=True)
    one = next((numpy_helper.to_array(each) for each in graph.initializer if each.name == sub.input[0]), None)
    if one is None or not np.array_equal(one.ravel(), [1]) or sub.input[1] != value:
        raise Rejected("C emitter: expected 1 - p beside a sigmoid p, got another difference")
    if list(concat.input) != [sub.output[0], value] or _axis(concat) not in {1, -1}:
        raise Rejected("C emitter: expected the pair (1 - p, p) of a sigmoid p, got another order")
    return concat
