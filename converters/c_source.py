"""C99 for microcontrollers: a model as a C array, and models that need no interpreter at all.

    c_array(tflite, "watch")     # for TFLite Micro: const bytes and their length
    emit_dense(tflite, "watch")  # an int8 dense net: identical to TFLite Micro, bit for bit
    emit_trees(onnx, "watch")    # a tree ensemble: the labels, and the sums, of ONNX Runtime

Each returns `NAME.c` and `NAME.h`, equal bytes for equal inputs. The C allocates nothing, its tables are constant, and
it compiles without warnings. What cannot be emitted raises `Rejected` and names the operator.
"""

import textwrap

from converters.c.core import cut_core, cut_front
from converters.c.dense import write_dense
from converters.c.face import Face, checked_name, face_of
from converters.c.net import load, read_net
from converters.c.trees import read_trees, write_trees

__all__ = ["Face", "c_array", "dense_core", "dense_front", "emit_dense", "emit_trees", "face_of"]


def c_array(tflite: bytes, name: str = "model") -> dict[str, bytes]:
    """Return a TFLite model as `const unsigned char NAME[]`, aligned to 16 as TFLite Micro needs, with its length.

    Raises:
        Rejected: it is no TFLite model, or the name is no identifier.
    """
    load(tflite)
    macro = checked_name(name).upper()
    body = textwrap.indent(textwrap.fill(", ".join(f"0x{byte:02x}" for byte in tflite), 112), "    ")
    header = f"""\
/* {name}: a TFLite model of {len(tflite)} bytes. Written by Skerry. */
#ifndef {macro}_H
#define {macro}_H

#ifdef __cplusplus
extern "C" {{
#endif

extern const unsigned char {name}[];
extern const unsigned int {name}_len;

#ifdef __cplusplus
}}
#endif

#endif
"""
    source = f"""\
#include "{name}.h"

#if defined(__GNUC__) || defined(__clang__)
__attribute__((aligned(16)))
#elif defined(__ICCARM__)
#pragma data_alignment = 16
#endif
const unsigned char {name}[] = {{
{body}
}};
const unsigned int {name}_len = {len(tflite)}u;
"""
    return {f"{name}.c": source.encode("ascii"), f"{name}.h": header.encode("ascii")}


def emit_dense(tflite: bytes, name: str = "model", *, labels: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Return the int8 dense layers of a TFLite model as C, from its QUANTIZE or int8 input to its int8 logits.

    `NAME_predict` and `NAME_label` take integers; `NAME_predict_float` takes what enters the QUANTIZE. Operators before
    that are not emitted: the header names them.

    Raises:
        Rejected: the model has no such layers, or an operator between them that is not known; names the operator.
    """
    return write_dense(read_net(tflite), checked_name(name), labels=labels)


def dense_core(tflite: bytes) -> bytes:
    """Return what `emit_dense` emits as a TFLite model of its own, int8 in (`input`) and int8 logits out (`logits`).

    An interpreter runs it on the same rows, so that the emitted C can be compared bit for bit.
    """
    return cut_core(tflite)


def dense_front(tflite: bytes) -> bytes:
    """Return what comes before that: a TFLite model from the model's own inputs to the integers that enter (`input`).

    So real rows reach the emitted C: an interpreter runs this, the C runs on what it gives.

    Raises:
        Rejected: nothing comes before, as the model takes integers itself.
    """
    return cut_front(tflite)


def emit_trees(onnx: bytes, name: str = "model", *, labels: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Return the TreeEnsembleClassifier or TreeEnsembleRegressor of an ONNX model as C, with the softmax behind it.

    Raises:
        Rejected: there is no such operator, or one of its attributes or an operator behind it is not known; names it.
    """
    return write_trees(read_trees(onnx), checked_name(name), labels=labels)
