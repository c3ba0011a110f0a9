"""A model in, candidate artifacts out: writers, quantisers, checks and measurement.

network         what was trained, without a framework; its NumPy forward pass is the reference
onnx_writer     network -> ONNX                          tflite_writer   network -> TFLite
candidates      which precisions a runtime has           quantise        integers for the dense part
checks          a model file is hostile input            measure         every row through the runtime, in a child
gate            measurements and budgets -> verdict      artifact        what passed, as files with a manifest
compile         all of it, for one network and one profile
"""
