"""The text of an int8 dense net in C99: constant tables, one loop, and the arithmetic of TFLite Micro's kernels."""

import numpy as np

from converters.c.face import Face, checked_name, float_literal, header, quoted, table
from converters.c.net import Clamp, Dense, Net

_ARITHMETIC = """\
/* TFLite's MultiplyByQuantizedMultiplier: a rounding high half of the doubled product, then a rounding division by a
   power of two, halves away from zero. Right shifts of negative numbers are taken to be arithmetic, as compilers for
   microcontrollers define them. */
static int32_t rescaled(int32_t sum, int32_t multiplier, int32_t shift)
{
    const int32_t left = shift > 0 ? shift : 0;
    const int32_t right = shift > 0 ? 0 : -shift;
    const int32_t raised = (int32_t)((uint32_t)sum << left);
    const int32_t high = (int32_t)(((int64_t)raised * multiplier + ((int64_t)1 << 30)) >> 31);
    const int32_t mask = (int32_t)(((int64_t)1 << right) - 1);
    const int32_t threshold = (mask >> 1) + (high < 0 ? 1 : 0);

    return right > 30 ? 0 : (high >> right) + ((high & mask) > threshold ? 1 : 0);
}

static int8_t clamped(int32_t value, int32_t low, int32_t high)
{
    return (int8_t)(value < low ? low : value > high ? high : value);
}
"""

_DENSE = """
typedef struct {
    const int8_t *weights;      /* outputs x inputs */
    const int32_t *bias;        /* with the zero point of the input folded in */
    const int32_t *multiplier;  /* one for each output, or one for all: `step` is 1 or 0 */
    const int8_t *shift;
    int32_t step, inputs, outputs, zero, low, high;
} dense_layer;

static void dense(const dense_layer *layer, const int8_t *in, int8_t *out)
{
    const int8_t *weight = layer->weights;
    int32_t i, j;

    for (i = 0; i < layer->outputs; i++) {
        int32_t sum = layer->bias[i];
        for (j = 0; j < layer->inputs; j++)
            sum += (int32_t)*weight++ * in[j];
        sum = rescaled(sum, layer->multiplier[i * layer->step], layer->shift[i * layer->step]) + layer->zero;
        out[i] = clamped(sum, layer->low, layer->high);
    }
}
"""

_CLAMP = """
static void activation(const int8_t *in, int8_t *out, int32_t count, int32_t low, int32_t high)
{
    int32_t i;

    for (i = 0; i < count; i++)
        out[i] = clamped(in[i], low, high);
}
"""


def write_dense(net: Net, name: str, *, labels: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Return `NAME.c` and `NAME.h` of a net."""
    face = Face(checked_name(name), "int8", net.width, net.outputs, net.boundary, classifies=True)
    return {f"{name}.c": _source(net, face).encode("ascii"), f"{name}.h": _header(net, face, labels)}


def _header(net: Net, face: Face, labels: tuple[str, ...]) -> bytes:
    macro = face.name.upper()
    before = f"Before it the model computes {', '.join(net.before)}: the caller does that." if net.before else ""
    story = "\n   ".join(
        line
        for line in (
            f"/* {face.name}: a dense net in int8, {_widths(net)}. Written by Skerry; change the model, not this file.",
            "The int8 outputs are identical to those of TensorFlow Lite Micro. No memory is allocated.",
            f"in[] is the tensor {quoted(net.boundary)} of the model, in integers. {before}".rstrip(),
            *(f"class {number}: {quoted(label)}" for number, label in enumerate(labels[: net.outputs])),
        )
        if line
    )
    what = "probabilities (softmax)" if net.softmax else "real outputs"
    more = f"""
/* real = SCALE * (integer - ZERO) */
#define {macro}_IN_SCALE {float_literal(net.entering.scale)}
#define {macro}_IN_ZERO ({net.entering.zero_point})
#define {macro}_OUT_SCALE {float_literal(net.leaving.scale)}
#define {macro}_OUT_ZERO ({net.leaving.zero_point})

/* The same from real inputs to {what}. */
void {face.name}_predict_float(const float in[{macro}_INPUTS], float out[{macro}_OUTPUTS]);
"""
    return header(face, story=f"{story} */", more=more)


def _source(net: Net, face: Face) -> str:
    widest = max((step.weights.shape[0] for step in net.steps if isinstance(step, Dense)), default=1)
    parts = [
        f'#include "{face.name}.h"\n\n#include <math.h>\n',
        _ARITHMETIC,
        _DENSE,
        *([_CLAMP] if any(isinstance(step, Clamp) for step in net.steps) else []),
        *(_tables(number, step) for number, step in enumerate(net.steps) if isinstance(step, Dense)),
        _predict(net, face, widest),
        _label(face),
        _predict_float(net, face),
    ]
    return "\n".join(parts)


def _tables(number: int, layer: Dense) -> str:
    folded = layer.bias.astype(np.int64) - layer.entering.zero_point * layer.weights.astype(np.int64).sum(axis=1)
    outputs, inputs = layer.weights.shape
    step = int(len(layer.multipliers) > 1)
    numbers = f"{step}, {inputs}, {outputs}, {layer.leaving.zero_point}, {layer.low}, {layer.high}"
    return (
        table("int8_t", f"weights_{number}", layer.weights)
        + table("int32_t", f"bias_{number}", folded)
        + table("int32_t", f"multiplier_{number}", layer.multipliers)
        + table("int8_t", f"shift_{number}", layer.shifts)
        + f"static const dense_layer layer_{number} = {{\n"
        f"    weights_{number}, bias_{number}, multiplier_{number}, shift_{number},\n    {numbers}\n}};\n"
    )


def _predict(net: Net, face: Face, widest: int) -> str:
    macro = face.name.upper()
    lines, value, size = [], "in", net.width
    for number, step in enumerate(net.steps):
        last = number == len(net.steps) - 1
        target = "out" if last else ("first" if number % 2 == 0 else "second")
        if isinstance(step, Dense):
            lines.append(f"    dense(&layer_{number}, {value}, {target});")
            size = step.weights.shape[0]
        else:
            lines.append(f"    activation({value}, {target}, {size}, {step.low}, {step.high});")
        value = target
    scratch = [f"    int8_t {name}[{max(widest, net.width)}];" for name in ("first", "second")][: len(net.steps) - 1]
    body = "\n".join([*scratch, *([""] if scratch else []), *lines])
    return f"void {face.name}_predict(const int8_t in[{macro}_INPUTS], int8_t out[{macro}_OUTPUTS])\n{{\n{body}\n}}\n"


def _label(face: Face) -> str:
    macro = face.name.upper()
    return f"""\
int {face.name}_label(const int8_t in[{macro}_INPUTS])
{{
    int8_t out[{macro}_OUTPUTS];
    int best = 0, i;

    {face.name}_predict(in, out);
    for (i = 1; i < {macro}_OUTPUTS; i++)
        if (out[i] > out[best])
            best = i;
    return best;
}}
"""


def _predict_float(net: Net, face: Face) -> str:
    macro = face.name.upper()
    softmax = f"""
    for (i = 1; i < {macro}_OUTPUTS; i++)
        most = out[i] > most ? out[i] : most;
    for (i = 0; i < {macro}_OUTPUTS; i++)
        total += out[i] = expf(out[i] - most);
    for (i = 0; i < {macro}_OUTPUTS; i++)
        out[i] /= total;
"""
    return f"""\
void {face.name}_predict_float(const float in[{macro}_INPUTS], float out[{macro}_OUTPUTS])
{{
    int8_t entering[{macro}_INPUTS], leaving[{macro}_OUTPUTS];
    int i;

    for (i = 0; i < {macro}_INPUTS; i++) {{
        float step = roundf(in[i] / {macro}_IN_SCALE);
        /* written so that a NaN becomes the lowest integer: its conversion is undefined */
        step = !(step > -256.0f) ? -256.0f : step > 256.0f ? 256.0f : step;
        entering[i] = clamped((int32_t)step + {macro}_IN_ZERO, -128, 127);
    }}
    {face.name}_predict(entering, leaving);
    for (i = 0; i < {macro}_OUTPUTS; i++)
        out[i] = {macro}_OUT_SCALE * (float)(leaving[i] - {macro}_OUT_ZERO);
{_softmax_block(softmax) if net.softmax else ""}}}
"""


def _softmax_block(text: str) -> str:
    inner = "\n".join(f"    {line}" if line.strip() else line for line in text.strip("\n").split("\n"))
    return f"    {{\n        float most = out[0], total = 0.0f;\n\n{inner}\n    }}\n"


def _widths(net: Net) -> str:
    widths = [net.width, *(step.weights.shape[0] for step in net.steps if isinstance(step, Dense))]
    return "-".join(str(width) for width in widths)
