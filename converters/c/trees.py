"""The text of a tree ensemble in C99: constant node tables, one walk, float32 sums in ONNX Runtime's order.

The exponential at the end is our own, of float32 products and sums alone: the C library's differs from one machine to
the next, and these scores are to be the same bits on each (`converters.c.evaluate` computes them here).
"""

import numpy as np

from converters.c.behind import PAIR
from converters.c.ensemble import Ensemble, read_trees
from converters.c.exponential import EXPONENTIAL
from converters.c.face import Face, checked_name, header, least_unsigned, quoted, table
from converters.samples import Array
from skerry.errors import Rejected

__all__ = ["flash_bytes", "ram_bytes", "read_trees", "write_trees"]

MAX_NODES = 1 << 20
CODE_BYTES = 1024
"""More than the functions take on any Cortex-M at -O2, the exponential among them; a test compiles and compares."""
STACK_BYTES = 128
_BYTES = {"uint8_t": 1, "uint16_t": 2, "uint32_t": 4, "float": 4}


def write_trees(ensemble: Ensemble, name: str, *, labels: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Return `NAME.c` and `NAME.h` of an ensemble; raises `Rejected` when it has more nodes than a device holds.

    `labels` are the names of its classes for the header, its own by default.
    """
    if len(ensemble.feature) > MAX_NODES:
        raise Rejected(f"C emitter: expected at most {MAX_NODES} nodes, got {len(ensemble.feature)}")
    classifies = bool(ensemble.labels)
    face = Face(
        checked_name(name), "float32", ensemble.width, ensemble.outputs, ensemble.boundary, classifies=classifies
    )
    return {
        f"{name}.c": _source(ensemble, face).encode("ascii"),
        f"{name}.h": _header(ensemble, face, labels or ensemble.labels),
    }


def flash_bytes(ensemble: Ensemble) -> int:
    """Return what the C takes of flash: its tables to the byte, and a bound for its code."""
    return CODE_BYTES + sum(_BYTES[kind] * values.size for kind, _, values in _tables(ensemble))


def ram_bytes(ensemble: Ensemble) -> int:
    """Return what a call takes of RAM: the caller's row and scores, the sums and marks, and a bound for the rest."""
    return 4 * (ensemble.width + ensemble.outputs) + 5 * ensemble.outputs + STACK_BYTES


def _header(ensemble: Ensemble, face: Face, labels: tuple[str, ...]) -> bytes:
    before = f"Before it the model computes {', '.join(ensemble.before)}: the caller does that."
    lines = [
        f"/* {face.name}: {len(ensemble.roots)} trees of {len(ensemble.feature)} nodes. Written by Skerry; change the",
        "model, not this file. The labels are those of ONNX Runtime, and so are the sums, in float32, bit for bit.",
        "What an exponential gives is the same everywhere, unless products are contracted (GCC: -ffp-contract=off).",
        f"in[] is the tensor {quoted(ensemble.boundary)} of the model. {before if ensemble.before else ''}".rstrip(),
        *(f"class {number}: {quoted(label)}" for number, label in enumerate(labels)),
    ]
    return header(face, story="\n   ".join(lines) + " */")


def _source(ensemble: Ensemble, face: Face) -> str:
    return "\n".join(
        [
            f'#include "{face.name}.h"\n\n#include <string.h>\n',
            _written(ensemble),
            _walk(ensemble),
            _predict(ensemble, face),
            *([_label(ensemble, face)] if face.classifies else []),
        ]
    )


def _written(ensemble: Ensemble) -> str:
    return "".join(
        [
            "/* instead of a feature: `yes` and `no` are then the first weight and the one past the last */\n",
            f"#define LEAF {ensemble.width}\n",
            *(table(kind, name, values) for kind, name, values in _tables(ensemble)),
        ]
    )


def _tables(ensemble: Ensemble) -> list[tuple[str, str, Array]]:
    """Return the constant arrays: type in C, name, values."""
    leaf = ensemble.width
    place = least_unsigned(int(max(ensemble.yes.max(), ensemble.no.max(), ensemble.roots.max())))
    return [
        (least_unsigned(leaf), "feature", np.where(ensemble.feature < 0, leaf, ensemble.feature)),
        ("float", "threshold", ensemble.threshold),
        (place, "yes", ensemble.yes),
        (place, "no", ensemble.no),
        *([("uint8_t", "nan_goes_yes", ensemble.nan_goes_yes)] if ensemble.nan_goes_yes.any() else []),
        (place, "root", ensemble.roots),
        ("float", "weight", ensemble.weights),
        *([(least_unsigned(ensemble.outputs), "target", ensemble.targets)] if ensemble.sums > 1 else []),
        *([("float", "base", ensemble.base)] if len(ensemble.base) else []),
    ]


def _walk(ensemble: Ensemble) -> str:
    yes = f"in[feature[node]] {ensemble.comparison} threshold[node]"
    if ensemble.nan_goes_yes.any():
        yes = f"({yes} || (nan_goes_yes[node] && in[feature[node]] != in[feature[node]]))"
    target = "target[leaf]" if ensemble.sums > 1 else "0"
    many = ensemble.rule == "most"
    seen = ", uint8_t *seen" if many else ""
    closing = []
    if ensemble.rule == "mean":
        closing.append(f"    for (i = 0; i < {ensemble.sums}; i++)\n        sum[i] /= {len(ensemble.roots)}.0f;")
    if len(ensemble.base):
        mark = "        seen[i] = 1;\n" if many else ""
        more = f"    for (i = 0; i < {ensemble.sums}; i++) {{\n        sum[i] += base[i];\n{mark}    }}"
        closing.append(more)
    finish = "\n".join(closing)
    clear = f"    memset(seen, 0, {ensemble.sums});\n" if many else ""
    mark = f"            seen[{target}] = 1;\n" if many else ""
    return f"""\
static void sum_up(const float *in, float *sum{seen})
{{
    uint32_t tree, node, leaf, i;

    for (i = 0; i < {ensemble.sums}; i++)
        sum[i] = 0.0f;
{clear}    for (tree = 0; tree < {len(ensemble.roots)}; tree++) {{
        node = root[tree];
        while (feature[node] != LEAF)
            node = {yes} ? yes[node] : no[node];
        for (leaf = yes[node]; leaf < no[node]; leaf++) {{
            sum[{target}] += weight[leaf];
{mark}        }}
    }}
{finish}
}}
"""


def _predict(ensemble: Ensemble, face: Face) -> str:
    macro = face.name.upper()
    if ensemble.transform == PAIR:
        body = "    float sum;\n\n    sum_up(in, &sum);\n    out[1] = logistic(sum);\n    out[0] = 1.0f - out[1];"
    elif ensemble.rule in {"half", "sign"}:
        first, second = {
            ("half", "NONE"): ("1.0f - sum", "sum"),
            ("sign", "NONE"): ("-sum", "sum"),
            ("sign", "LOGISTIC"): ("logistic(-sum)", "logistic(sum)"),
        }[ensemble.rule, ensemble.transform]
        body = f"    float sum;\n\n    sum_up(in, &sum);\n    out[0] = {first};\n    out[1] = {second};"
    else:
        seen = f"    uint8_t seen[{macro}_OUTPUTS];\n" if ensemble.rule == "most" else ""
        call = "    sum_up(in, out, seen);" if seen else "    sum_up(in, out);"
        body = f"{seen}{_TRANSFORM_LOCALS[ensemble.transform]}\n{call}\n{_TRANSFORMS[ensemble.transform]}"
        body = body.replace("COUNT", f"{macro}_OUTPUTS").lstrip("\n").rstrip("\n")
    before = {"NONE": "", "SOFTMAX": EXPONENTIAL}.get(ensemble.transform, EXPONENTIAL + _LOGISTIC)
    return (
        f"{before}void {face.name}_predict(const float in[{macro}_INPUTS], float out[{macro}_OUTPUTS])\n"
        f"{{\n{body}\n}}\n"
    )


def _label(ensemble: Ensemble, face: Face) -> str:
    macro = face.name.upper()
    if ensemble.rule in {"sum", "mean"}:
        body = f"""\
    float out[{macro}_OUTPUTS];
    int best = 0, i;

    {face.name}_predict(in, out);
    for (i = 1; i < {macro}_OUTPUTS; i++)
        if (out[i] > out[best])
            best = i;
    return best;"""
    elif ensemble.rule != "most":
        bound = "0.5f" if ensemble.rule == "half" else "0.0f"
        body = f"    float sum;\n\n    sum_up(in, &sum);\n    return sum > {bound};"
    else:
        body = f"""\
    float sum[{macro}_OUTPUTS];
    uint8_t seen[{macro}_OUTPUTS];
    int best = -1, i;

    sum_up(in, sum, seen);
    /* as ONNX Runtime does: a class of which no leaf spoke is not the best, whatever the others are */
    for (i = 0; i < {macro}_OUTPUTS; i++)
        if (seen[i] && (best < 0 || sum[i] > sum[best]))
            best = i;
    return best < 0 ? 0 : best;"""
    return f"int {face.name}_label(const float in[{macro}_INPUTS])\n{{\n{body}\n}}\n"


_LOGISTIC = """\
static float logistic(float x)
{
    const float value = 1.0f / (1.0f + exponential(x < 0.0f ? x : -x));

    return x < 0.0f ? 1.0f - value : value;
}

"""
_TRANSFORM_LOCALS = {"NONE": "", "LOGISTIC": "    int i;\n", "SOFTMAX": "    float most, total = 0.0f;\n    int i;\n"}
_TRANSFORMS = {
    "NONE": "",
    "LOGISTIC": "    for (i = 0; i < COUNT; i++)\n        out[i] = logistic(out[i]);\n",
    "SOFTMAX": """\
    most = out[0];
    for (i = 1; i < COUNT; i++)
        most = out[i] > most ? out[i] : most;
    for (i = 0; i < COUNT; i++)
        total += out[i] = exponential(out[i] - most);
    for (i = 0; i < COUNT; i++)
        out[i] /= total;
""",
}
