"""What the writer refuses: an operator, a shape or a type that TFLite has no equal for."""

from skerry.errors import Rejected


class Unsupported(Rejected):
    """The model has no TFLite form; the message names operator and node, and says that ONNX profiles remain."""
