"""Graphs and engines: the only folder that names tensorrt, onnx, onnxruntime, polygraphy and cuda.

It knows no model file and no sampler: it is given a module, its inputs, and the sizes that they may have.
"""
