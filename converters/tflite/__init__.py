"""An ONNX graph as a TFLite flatbuffer: our own writer, float and quantised, without TensorFlow.

data, recipe = write_tflite(source, "int8", calibration={"window": rows})

reader      ONNX -> nodes, constants and shapes, folded          layout      which axis is stored where
lower_*     one ONNX operator -> TFLite operators                simplify    activations fused, dead ends dropped
calibrate   the float model over rows -> the range of a tensor   quantise    float graph -> integers
emit        graph -> flatbuffer
"""

from converters.tflite.errors import Unsupported
from converters.tflite.writer import PRECISIONS, write_tflite

__all__ = ["PRECISIONS", "Unsupported", "write_tflite"]
