"""The reference's way: one frame at a time, tensors grown by concatenation, one context window per call of the UNet.

Every step here is one that Impact Pack 7.10.6's DetailerForEachPipeForAnimateDiff takes for each frame, no more and no
less, with ComfyUI 0.3.64's VAE wrapper and ImageScale around the models: shared/reference.md 4 and 8 name them. Only
torchvision's blur is spelled out (a kernel built for each call, reflect padding, a depthwise 2-D convolution). Written
for this benchmark from the facts; no line is the reference's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from animdetail_trt.backends.interface import UNetRunner, VaeRunner
from animdetail_trt.bench.workload import Segment
from animdetail_trt.detailer.report import Observer, timed

Paint = Callable[[int, Tensor], Tensor]
"""``paint(index, latents)`` -> latents: what the sampler does to a segment."""


def detail(
    frames: Tensor,
    segments: Sequence[Segment],
    feather_px: int,
    vae: VaeRunner,
    paint: Paint = lambda index, latents: latents,
    observer: Observer | None = None,
) -> Tensor:
    """(f, h, w, 3) -> the frames with every segment enlarged, put through the VAE, shrunk and pasted."""
    observer = observer or Observer()
    for index, segment in enumerate(segments):
        height, width = segment.mask.shape
        observer.begin_segment(index, "", (width, height), segment.size)
        patch = detail_segment(frames, segment, vae, paint, index, observer)
        with timed(observer, index, "paste"):
            frames = paste(frames, patch, segment, feather_px)
        observer.end_segment(index)
    return frames


def detail_segment(
    frames: Tensor,
    segment: Segment,
    vae: VaeRunner,
    paint: Paint,
    index: int,
    observer: Observer,
) -> NDArray[np.float32]:
    x1, y1, x2, y2 = segment.crop_region
    width, height = segment.size
    with timed(observer, index, "encode"):
        crops = grow(frame[None, y1:y2, x1:x2] for frame in frames).numpy()
        enlarged = (resize(torch.from_numpy(crop)[None], width, height) for crop in crops)
        latents = grow(encode(image, vae) for image in enlarged)
    with timed(observer, index, "sample"):
        latents = paint(index, latents)
    with timed(observer, index, "decode"):
        decoded = grow(decode(latent[None], vae) for latent in latents)
        scaled: NDArray[np.float32] = image_scale(decoded, x2 - x1, y2 - y1).numpy()
    return scaled


class OneWindow:
    """A UNetRunner that is given one window in a call, with as many prompts as it has rows."""

    def __init__(self, unet: UNetRunner, window: int) -> None:
        self.unet = unet
        self.rows_of_a_window = 2 * window
        self.device, self.positions, self.token_dim = unet.device, unet.positions, unet.token_dim

    def frames_per_call(self, width: int, height: int) -> int:
        """The reference runs both prompts of a window together."""
        return self.rows_of_a_window

    def __call__(
        self, latents: Tensor, timestep: float, tokens: Tensor, residuals: Sequence[Tensor] | None = None
    ) -> Tensor:
        return self.unet(latents, timestep, tokens, residuals)


def grow(parts: Iterable[Tensor]) -> Tensor:
    """Appends one frame at a time; each append copies all that is there."""
    whole = None
    for part in parts:
        whole = part if whole is None else torch.concat((whole, part), dim=0)
    assert whole is not None
    return whole


def resize(image: Tensor, width: int, height: int) -> Tensor:
    """(1, h, w, 3) -> (1, height, width, 3)."""
    resized = to_pillow(image.numpy().squeeze(0)).resize((width, height), resample=Image.Resampling.LANCZOS)
    return from_pillow(resized)[None]


def image_scale(images: Tensor, width: int, height: int) -> Tensor:
    """ComfyUI's: a list of all frames, stacked once."""
    pictures = [to_pillow(image.movedim(0, -1).numpy()) for image in images.movedim(-1, 1)]
    resized = [picture.resize((width, height), resample=Image.Resampling.LANCZOS) for picture in pictures]
    return torch.stack([from_pillow(picture).movedim(-1, 0) for picture in resized]).movedim(1, -1)


def to_pillow(pixels: NDArray[np.float32]) -> Image.Image:
    return Image.fromarray(np.clip(255.0 * pixels, 0, 255).astype(np.uint8))


def from_pillow(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture).astype(np.float32) / 255.0)


def encode(image: Tensor, vae: VaeRunner) -> Tensor:
    """The size is a multiple of 8 here, so the centred crop takes nothing."""
    return vae.encode(image.movedim(-1, 1) * 2.0 - 1.0)


def decode(latent: Tensor, vae: VaeRunner) -> Tensor:
    """ComfyUI allocates for the whole batch, here of one frame, and copies each decoded part into it."""
    part = torch.clamp((vae.decode(latent).float() + 1.0) / 2.0, min=0.0, max=1.0)
    images = torch.empty(part.shape)  # on the CPU, wherever the VAE runs
    images[:] = part
    return images.movedim(1, -1)


def paste(frames: Tensor, patches: NDArray[np.float32], segment: Segment, feather_px: int) -> Tensor:
    """SEGSPaste: the mask is blurred again for every frame."""
    return grow(paste_frame(frame, patches[i], segment, feather_px) for i, frame in enumerate(frames))


def paste_frame(frame: Tensor, patch: NDArray[np.float32], segment: Segment, feather_px: int) -> Tensor:
    image, above = frame[None].clone(), torch.from_numpy(patch)[None]
    alpha = blur(segment.mask, feather_px)[..., None] * (255 / 255)
    x1, y1, x2, y2 = segment.crop_region
    image[:, y1:y2, x1:x2] = (1 - alpha) * image[:, y1:y2, x1:x2] + alpha * above
    return image


def blur(mask: Tensor, feather_px: int, sigma: float = 10.0) -> Tensor:
    """(h, w) -> (1, h, w), as torchvision's GaussianBlur."""
    offsets = torch.linspace(-feather_px, feather_px, 2 * feather_px + 1)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = weights / weights.sum()
    kernel = torch.mm(weights[:, None], weights[None, :])
    extended = functional.pad(mask[None, None], [feather_px] * 4, mode="reflect")
    return functional.conv2d(extended, kernel[None, None], groups=1)[0]
