"""exp(x) for x of 0 or less in float32 products and sums alone, once as C and once in NumPy: the same bits.

Cody and Waite's reduction to |r| < log(2) with the polynomial of Cephes' expf (Moshier): within 2e-7 of exp(x), and 0
below -87, where float32 has no normal number for it.
"""

import numpy as np

from converters.samples import Array

LEAST = np.float32(-87.0)
PER_LOG2 = np.float32(1.44269504)
# log(2) in two parts, the first of so few bits that its products with the exponent are exact
LOG2_HIGH, LOG2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
POLYNOMIAL = tuple(
    np.float32(each)
    for each in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
)
_HORNER = "\n".join(f"    y = y * r + {each:.9g}f;" for each in POLYNOMIAL[1:])

EXPONENTIAL = f"""\
/* exp(x) for x of 0 or less: the same bits on every machine, which the C library's are not */
static float exponential(float x)
{{
    union {{
        uint32_t bits;
        float value;
    }} power;
    float r, y;
    int32_t n;

    if (!(x > {LEAST:.9g}.0f))
        return 0.0f;
    n = (int32_t)(x * {PER_LOG2:.9g}f - 0.5f);
    r = x - (float)n * {LOG2_HIGH:.9g}f;
    r = r - (float)n * {LOG2_LOW:.9g}f;
    y = {POLYNOMIAL[0]:.9g}f;
{_HORNER}
    y = y * (r * r) + r + 1.0f;
    power.bits = (uint32_t)(n + 127) << 23;
    return y * power.value;
}}

"""


def exponential(x: Array) -> Array:
    """Return exp(x) of float32 numbers of 0 or less, operation by operation as the C does."""
    inside = x > LEAST
    x = np.where(inside, x, np.float32(0))
    n = (x * PER_LOG2 - np.float32(0.5)).astype(np.int32)
    whole = n.astype(np.float32)
    r = x - whole * LOG2_HIGH
    r = r - whole * LOG2_LOW
    y = np.full_like(r, POLYNOMIAL[0])
    for each in POLYNOMIAL[1:]:
        y = y * r + each
    y = y * (r * r) + r + np.float32(1)
    power = ((n + 127).astype(np.uint32) << np.uint32(23)).view(np.float32)
    return np.where(inside, y * power, np.float32(0))
