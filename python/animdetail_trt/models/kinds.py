"""What a model file is, told by the names of its tensors and a few shapes: before anything is built from it, and to say
of a file in the wrong place where it belongs.

The names are those that the trainers and converters write: CompVis (LDM), diffusers, kohya, LyCORIS, peft, AnimateDiff.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
Kind: TypeAlias = str
"""A key of the table below."""

ARTICLE: dict[Kind, str] = {
    "sd15": "a Stable Diffusion 1.5 checkpoint",
    "sd15-inpainting": "an inpainting (or edit) checkpoint, whose UNet takes more than 4 input channels",
    "sd15-v": "a Stable Diffusion 1.5 checkpoint of v-prediction, which is sampled in another way",
    "sd2": "a Stable Diffusion 2.x checkpoint",
    "sdxl": "an SDXL checkpoint",
    "svd": "a Stable Video Diffusion checkpoint",
    "other-diffusion": "a diffusion transformer checkpoint (SD 3, Flux or another family)",
    "motion-module": "an AnimateDiff motion module",
    "sdxl-motion-module": "a motion module for SDXL (it has three levels of blocks, SD 1.5 has four)",
    "hotshot": "HotShot-XL, a motion module for SDXL",
    "animatelcm-i2v": "AnimateLCM-I2V, a motion module that needs a picture beside the prompt",
    "pia": "PIA, a motion module that needs a picture beside the prompt",
    "fancyvideo": "FancyVideo, a motion module that needs a picture beside the prompt",
    "cameractrl": "CameraCtrl, which needs a camera path",
    "motionctrl": "MotionCtrl, which needs a camera path",
    "motion-lora": "a motion LoRA",
    "lora": "a LoRA",
    "sd2-lora": "a LoRA for Stable Diffusion 2.x",
    "sdxl-lora": "a LoRA for SDXL",
    "other-lora": "a LoRA for a diffusion transformer (SD 3, Flux or another family)",
    "ia3": "an (IA)^3 file, which scales weights and is no LoRA",
    "oft": "an OFT or BOFT file, which turns weights and is no LoRA",
    "glora": "a GLoRA, which is no LoRA that is read here",
    "controlnet": "a ControlNet for Stable Diffusion 1.5",
    "sd2-controlnet": "a ControlNet for Stable Diffusion 2.x",
    "sdxl-controlnet": "a ControlNet for SDXL",
    "union-controlnet": "a ControlNet of several kinds of pictures in one (union)",
    "control-lora": "a Control-LoRA, which needs the weights of the UNet beside it",
    "controlnet-difference": "the difference of a ControlNet to a checkpoint, which must be added to that first",
    "sparsectrl": "SparseCtrl, a ControlNet with a motion module of its own",
    "t2i-adapter": "a T2I-Adapter",
    "lllite": "a ControlNet-LLLite",
    "ip-adapter": "an IP-Adapter",
    "unet": "a UNet alone, without VAE and text encoder",
    "vae": "a VAE alone",
    "wide-vae": "a VAE of another family (SD 3, Flux or a video model)",
    "tiny-vae": "a tiny VAE for previews (TAESD)",
    "text-encoder": "a text encoder alone",
    "embedding": "a textual inversion embedding",
    "unknown": "no model of a kind that is known here",
}
_BELONGS: dict[Kind, str] = {
    "lora": "Give it as a LoRA: --lora FILE, or loras=[(path, strength)]",
    "motion-lora": "Give it as a motion LoRA: --motion-lora FILE, or motion_loras=[(path, strength)]",
    "controlnet": "Give it as a ControlNet: detail --controlnet FILE, or ControlNetWrapper(load_controlnet(path))",
    "motion-module": "Give it as the motion module: --motion-module FILE, or motion_module=path",
    "embedding": "Give it as a textual inversion: --embedding FILE, or embeddings=[path]",
    "vae": "Give it as the VAE: --vae FILE, or vae=path",
    "sd15": "Give it as the checkpoint: --checkpoint FILE, or load_pipe(path)",
}


_FAMILY = ("lora", "motion-module", "motion-lora", "embedding", "vae")
"""Kinds whose article does not say that they are for one family."""


def remedy(kind: Kind, wanted: Collection[Kind]) -> str:
    """Where a file of this kind belongs, or what else to choose."""
    choices = (f"{ARTICLE[k]}{' for Stable Diffusion 1.5' * (k in _FAMILY)}" for k in wanted if k != "unknown")
    return _BELONGS.get(kind) or f"Choose {' or '.join(choices)}"


def recognise(shapes: Shapes) -> Kind:
    """What kind of model file these are the tensors of."""
    return next((kind for kind, matches in _RULES if matches(shapes)), "unknown")


_Test: TypeAlias = Callable[[Shapes], bool]


def _any(*parts: str) -> _Test:
    return lambda shapes: any(part in key for key in shapes for part in parts)


def _start(*prefixes: str) -> _Test:
    return lambda shapes: any(key.startswith(prefixes) for key in shapes)


def _end(*suffixes: str) -> _Test:
    return lambda shapes: any(key.endswith(suffixes) for key in shapes)


def _holds(*keys: str) -> _Test:
    return lambda shapes: any(key in shapes for key in keys)


def _all(*tests: _Test) -> _Test:
    return lambda shapes: all(test(shapes) for test in tests)


def _either(*tests: _Test) -> _Test:
    return lambda shapes: any(test(shapes) for test in tests)


def _like(pattern: str) -> _Test:
    search = re.compile(pattern).search
    return lambda shapes: any(map(search, shapes))


def _width_is(width: int, pattern: str) -> _Test:
    """Whether the first matrix whose key has this pattern reads vectors of ``width`` numbers."""
    search = re.compile(pattern).search

    def test(shapes: Shapes) -> bool:
        found = (shape for key, shape in shapes.items() if len(shape) > 1 and search(key))
        return next((shape[1] for shape in found), None) == width

    return test


_FIRST_CONVOLUTIONS = ("model.diffusion_model.input_blocks.0.0.weight", "input_blocks.0.0.weight", "conv_in.weight")


def _more_channels(shapes: Shapes) -> bool:
    """Of a UNet whose first convolution takes more than a latent's 4."""
    shape = next((shapes[key] for key in _FIRST_CONVOLUTIONS if key in shapes), (0, 0))
    return len(shape) == 4 and shape[1] > 4


_TRANSFORMER = (
    *("double_blocks", "single_blocks", "joint_blocks", "single_transformer_blocks", "joint_transformer_blocks"),
    *("transformer_blocks.0.attn.to_q.", "transformer_blocks_0_attn_to_q", "cap_embedder.", "blocks.0.self_attn."),
    *("blocks_0_self_attn_", "lora_te3_"),
)
_TEXT_WIDTH = r"attn2\.to_k\.weight$"
_LORA_TEXT_WIDTH = r"attn2[._](?:processor\.)?to_k[._].*(?:down|lora_A)\b"
# SD 1.5 has one transformer block in each attention; some of the others' fit it, though.
_DEEPER = r"(?:attentions|(?:input|output)_blocks|mid(?:dle)?_block)[._].*transformer_blocks[._][1-9]"

_lora = _either(
    _any("lora_up.", "lora_down.", "lora_A.", "lora_B.", ".lora.", "_lora.", ".lora_linear_layer."),
    _any("hada_w1", "lokr_w", ".dora_scale"),
    _start("lora_unet_", "lora_te", "lycoris_"),
    _end(".diff", ".diff_b", ".w_norm", ".b_norm"),
)
_motion = _any("temporal_transformer.", "motion_modules.")
_four_levels = _any("down_blocks.3.")
_controlnet = _any("control_model.", "input_hint_block.", "controlnet_cond_embedding.", "zero_convs.")
_ldm = _start("model.diffusion_model.")
_unet = _either(_ldm, _start("down_blocks.0.resnets.", "input_blocks.0."))

# First match wins: the special before the general.
_RULES: tuple[tuple[Kind, _Test], ...] = (
    ("motion-lora", _all(_motion, _any("lora"))),
    ("sparsectrl", _all(_motion, _controlnet)),
    ("hotshot", _any("temporal_attentions.")),
    ("fancyvideo", _all(_motion, _either(_holds("FancyVideo"), _any("fps_embedding.")))),
    ("animatelcm-i2v", _all(_motion, _any("img_encoder."))),
    ("pia", _all(_motion, _more_channels)),
    ("cameractrl", _any(".qkv_merge.")),
    ("motionctrl", _any(".cc_projection.")),
    ("motion-module", _all(_motion, _four_levels)),
    ("sdxl-motion-module", _motion),
    ("ip-adapter", _start("image_proj.", "ip_adapter.")),
    ("lllite", _start("lllite_")),
    ("oft", _any(".oft_blocks")),
    ("ia3", _end(".on_input")),
    ("glora", _all(_end(".a1.weight"), _end(".b2.weight"))),
    ("sdxl-lora", _all(_lora, _either(_any("lora_te2_", "text_encoder_2."), _like(_DEEPER)))),
    ("sdxl-lora", _all(_lora, _width_is(2048, _LORA_TEXT_WIDTH))),
    ("sd2-lora", _all(_lora, _width_is(1024, _LORA_TEXT_WIDTH))),
    ("other-lora", _all(_lora, _any(*_TRANSFORMER))),
    ("lora", _lora),
    ("control-lora", _holds("lora_controlnet")),
    ("controlnet-difference", _holds("difference")),
    ("sdxl-controlnet", _all(_controlnet, _either(_any("label_emb."), _start("add_embedding.")))),
    ("union-controlnet", _all(_controlnet, _any("control_add_embedding.", "task_embedding"))),
    ("sd2-controlnet", _all(_controlnet, _width_is(1024, _TEXT_WIDTH))),
    ("controlnet", _controlnet),
    ("t2i-adapter", _start("body.0.", "adapter.body.0.", "adapter.conv_in.")),
    ("svd", _any(".time_stack.", ".temporal_transformer_blocks.")),
    ("sdxl", _any("model.diffusion_model.label_emb.", "conditioner.embedders.", "add_embedding.")),
    ("other-diffusion", _any(*_TRANSFORMER)),
    ("sd15-inpainting", _all(_unet, _more_channels)),
    ("sd2", _all(_unet, _width_is(1024, _TEXT_WIDTH))),
    ("sd15-v", _all(_holds(_FIRST_CONVOLUTIONS[0]), _holds("v_pred"))),
    ("sd15", _holds(_FIRST_CONVOLUTIONS[0])),
    ("embedding", _start("emb_params", "string_to_param")),
    ("unet", _unet),
    ("tiny-vae", _either(_start("taesd_"), _all(_holds("1.weight", "0.weight"), _any(".conv.0.weight")))),
    ("wide-vae", _width_is(16, r"decoder\.conv_in\.weight$")),
    ("wide-vae", _start("decoder.conv1.", "encoder.conv1.")),
    ("vae", _holds("encoder.conv_in.weight", "first_stage_model.encoder.conv_in.weight")),
    ("text-encoder", _start("text_model.", "cond_stage_model.", "encoder.layers.", "encoder.block.")),
)
