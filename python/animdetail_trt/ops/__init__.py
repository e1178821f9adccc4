"""The pixel path: crop, resample, feather, paste. Tensors in and out are torch's or NumPy's, float32.

:mod:`.reference` defines every op in plain torch; :mod:`.native` computes the same in C++.
"""

from animdetail_trt.ops.native import (
    PassOrder,
    alpha_paste,
    crop_resize,
    crop_resize_into,
    crop_resize_to_vae,
    crop_resize_to_vae_into,
    feather_mask,
    feather_mask_into,
    has_cuda,
    merge_masks,
    num_threads,
    paste_from_vae,
    resize_from_vae,
    resize_from_vae_into,
    set_num_threads,
    working_copy,
)

__all__ = [
    "PassOrder",
    "alpha_paste",
    "crop_resize",
    "crop_resize_into",
    "crop_resize_to_vae",
    "crop_resize_to_vae_into",
    "feather_mask",
    "feather_mask_into",
    "has_cuda",
    "merge_masks",
    "num_threads",
    "paste_from_vae",
    "resize_from_vae",
    "resize_from_vae_into",
    "set_num_threads",
    "working_copy",
]
