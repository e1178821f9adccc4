"""Graphs and engines: the only folder that names tensorrt, onnx, polygraphy and cuda, and with detect onnxruntime.

It knows no model file and no sampler: it is given a module, its inputs, and the sizes that they may have.
"""
