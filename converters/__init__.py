"""A model in, candidate artifacts out: sources, writers, checks, measurement, the gate and the evidence.

source, normalise   a stranger's ONNX or TFLite file, or what was trained, as one float graph with its faces
trees, network      tree ensembles and feature networks as such a graph
checks              a model file is hostile input
candidates          which precisions a profile has; onnx_candidates and tflite/ write them, prune thins them
attempt, measure    every row through the profile's runtime, in a child; races against the float build
emulators/          arm64 under QEMU, a Cortex-M under QEMU; c_source writes the C that runs there
gate, gate_report   measurements and budgets in, a verdict with its evidence out
search, cache       which candidate next, and what was measured before
artifact            what passed, as files with a manifest
compile             all of it, for one model and one profile
"""
