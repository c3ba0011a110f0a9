"""The face of emitted C: what its header promises, written as macros and read back from them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from converters.samples import Array
from skerry.errors import Rejected

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}\Z")
_TYPES = {"int8": "int8_t", "float32": "float"}


@dataclass(frozen=True, slots=True)
class Face:
    """`void NAME_predict(const TAKES in[WIDTH], TAKES out[OUTPUTS])` and, of a classifier, `int NAME_label(in)`.

    `element` is the NumPy dtype of both sides, int8 or float32. `boundary` is the tensor of the model that `in` is:
    where that is not the model's input, whoever calls the C computes the operators before it.
    """

    name: str
    element: str
    width: int
    outputs: int
    boundary: str
    classifies: bool

    @property
    def c_type(self) -> str:
        """The type in C."""
        return _TYPES[self.element]

    def declarations(self) -> str:
        """Return the macros and prototypes of the header."""
        macro = self.name.upper()
        lines = [
            f"#define {macro}_ELEMENT_{self.element.upper()} 1",
            f"#define {macro}_BOUNDARY {quoted(self.boundary)}",
            f"#define {macro}_INPUTS {self.width}",
            f"#define {macro}_OUTPUTS {self.outputs}",
            f"#define {macro}_CLASSIFIES {int(self.classifies)}",
            "",
            f"void {self.name}_predict(const {self.c_type} in[{macro}_INPUTS], {self.c_type} out[{macro}_OUTPUTS]);",
        ]
        if self.classifies:
            lines += [
                "/* The index of the most probable class. */",
                f"int {self.name}_label(const {self.c_type} in[{macro}_INPUTS]);",
            ]
        return "\n".join(lines)


def face_of(sources: Mapping[str, bytes]) -> Face:
    """Read the face from the header among emitted files; raises `Rejected` when there is none."""
    for file, data in sorted(sources.items()):
        text = data.decode("ascii", errors="replace")
        name = file.removesuffix(".h")
        found = dict(re.findall(rf"^#define {name.upper()}_([A-Z0-9_]+) (\S.*)$", text, flags=re.MULTILINE))
        if file.endswith(".h") and {"BOUNDARY", "INPUTS", "OUTPUTS", "CLASSIFIES"} <= found.keys():
            return Face(
                name=checked_name(name),
                element="int8" if "ELEMENT_INT8" in found else "float32",
                width=int(found["INPUTS"]),
                outputs=int(found["OUTPUTS"]),
                boundary=found["BOUNDARY"][1:-1],
                classifies=found["CLASSIFIES"] == "1",
            )
    raise Rejected(f"C sources: expected a header that Skerry emitted, got {', '.join(sorted(sources)) or 'no file'}")


def checked_name(name: str) -> str:
    """Return a name that is an identifier of C; raises `Rejected`, as it also becomes a file's name."""
    if not _NAME.match(name):
        raise Rejected(f"name: expected a lower-case C identifier of at most 40 letters, got {name!r}")
    return name


def quoted(text: str) -> str:
    """Return text of a model, which is hostile, as a C string: all but the plainest characters become '_'."""
    return '"' + re.sub(r"[^A-Za-z0-9_.:/ -]", "_", text)[:80] + '"'


def table(c_type: str, name: str, values: Array) -> str:
    """Return a constant array; floats are written with the digits that give the same bits back."""
    flat = values.ravel()
    if values.dtype.kind == "f":
        cells = [float_literal(float(value)) for value in flat]
    else:
        cells = [_integer(int(value)) for value in flat]
    rows, row = [], ""
    for cell in cells:
        if len(row) + len(cell) > 110:
            rows.append(row)
            row = ""
        row += f"{cell}, "
    body = "\n".join(f"    {line.rstrip()}" for line in (*rows, row))
    return f"static const {c_type} {name}[{len(cells)}] = {{\n{body}\n}};\n"


def float_literal(value: float) -> str:
    """Return a float32 as a literal of C; raises `Rejected` on what has none."""
    if not np.isfinite(value):
        raise Rejected(f"model: expected finite constants, got {value}")
    text = f"{np.float32(value):.9g}"
    return f"{text}f" if any(mark in text for mark in ".e") else f"{text}.0f"


def _integer(value: int) -> str:
    # the literal -2147483648 is a negated one that fits no int
    return "(-2147483647 - 1)" if value == -(2**31) else str(value)


def least_unsigned(most: int) -> str:
    """Return the smallest unsigned type of C that holds `most`."""
    return "uint8_t" if most < 1 << 8 else "uint16_t" if most < 1 << 16 else "uint32_t"


def header(face: Face, *, story: str, more: str = "") -> bytes:
    """Return the header: its story as a comment, the macros and prototypes, and `more` prototypes."""
    guard = f"{face.name.upper()}_H"
    return (
        f"{story}\n#ifndef {guard}\n#define {guard}\n\n#include <stdint.h>\n\n"
        f'#ifdef __cplusplus\nextern "C" {{\n#endif\n\n{face.declarations()}\n{more}\n'
        f"#ifdef __cplusplus\n}}\n#endif\n\n#endif\n"
    ).encode("ascii")
