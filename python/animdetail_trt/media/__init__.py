"""Frames in and out: videos, image folders, masks, SEGS files and the contact sheet.

Frames are IMAGE everywhere: float32 torch (f, h, w, 3) in 0..1. Going back to 8 bits rounds half up,
``floor(255 x + 0.5)``. Nothing here knows a model.
"""
