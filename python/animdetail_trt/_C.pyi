from typing import Protocol

class SupportsDLPack(Protocol):
    def __dlpack__(self) -> object: ...

has_cuda: bool

def crop_resize(
    out: SupportsDLPack,
    frames: SupportsDLPack,
    crop_region: tuple[int, int, int, int],
    pass_order: str,
    stream: int = 0,
) -> None: ...
def crop_resize_to_vae(
    out: SupportsDLPack,
    frames: SupportsDLPack,
    crop_region: tuple[int, int, int, int],
    width: int,
    height: int,
    pass_order: str,
    stream: int = 0,
) -> None: ...
def resize_from_vae(out: SupportsDLPack, decoded: SupportsDLPack, pass_order: str, stream: int = 0) -> None: ...
def feather_mask(
    out: SupportsDLPack, mask: SupportsDLPack, weights: SupportsDLPack, alpha: float, stream: int = 0
) -> None: ...
def alpha_paste(
    canvas: SupportsDLPack, patch: SupportsDLPack, mask: SupportsDLPack, x: int, y: int, stream: int = 0
) -> None: ...
def paste_from_vae(
    canvas: SupportsDLPack,
    decoded: SupportsDLPack,
    mask: SupportsDLPack,
    x: int,
    y: int,
    width: int,
    height: int,
    pass_order: str,
    stream: int = 0,
) -> None: ...
def set_num_threads(count: int) -> None: ...
def num_threads() -> int: ...
