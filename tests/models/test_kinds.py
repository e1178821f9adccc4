"""Every kind of file that lies in a model folder is told apart, by the names that its trainers and converters write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from animdetail_trt.errors import CheckpointError
from animdetail_trt.models.checkpoint import require_kind
from animdetail_trt.models.kinds import ARTICLE, Shapes, recognise

FULL_SIZE = json.loads((Path(__file__).parents[1] / "golden" / "full_size_shapes.json").read_text())
LDM = "model.diffusion_model."
UNET = {key: tuple(shape) for key, shape in FULL_SIZE["sd15_unet"].items()}
MOTION = {key: tuple(shape) for key, shape in FULL_SIZE["mm_sd15_v3"].items()}
BARE = {key.removeprefix(LDM): shape for key, shape in UNET.items()}
CONTROL = {f"control_model.{key}": shape for key, shape in BARE.items()} | {
    "control_model.input_hint_block.0.weight": (16, 3, 3, 3)
}
CROSS = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
DOWN = "down_blocks.3.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0."


def lora(module: str, width: int, kohya: bool = True) -> Shapes:
    up, down = ("lora_up", "lora_down") if kohya else ("lora_B", "lora_A")
    return {f"{module}.{down}.weight": (4, width), f"{module}.{up}.weight": (320, 4)}


FILES: dict[str, tuple[str, Shapes]] = {
    "whole SD 1.5": ("sd15", UNET | {"first_stage_model.encoder.conv_in.weight": (128, 3, 3, 3)}),
    "with the words of a textual inversion": ("sd15", UNET | {"embedding_manager.string_to_param_dict.*": (1, 768)}),
    "with schedules and averages": ("sd15", UNET | {"betas": (1000,), "model_ema.decay": ()}),
    "inpainting": ("sd15-inpainting", UNET | {f"{LDM}input_blocks.0.0.weight": (320, 9, 3, 3)}),
    "instruct-pix2pix": ("sd15-inpainting", UNET | {f"{LDM}input_blocks.0.0.weight": (320, 8, 3, 3)}),
    "v-prediction, as ComfyUI saves it": ("sd15-v", UNET | {"v_pred": (0,)}),
    "SD 2.x": ("sd2", UNET | {LDM + CROSS: (320, 1024)}),
    "SDXL": ("sdxl", UNET | {f"{LDM}label_emb.0.0.weight": (1280, 2816)}),
    "SVD": (
        "svd",
        UNET | {f"{LDM}label_emb.0.0.weight": (1280, 768), f"{LDM}input_blocks.1.1.time_stack.0.ff.w": (1,)},
    ),
    "SD 3": ("other-diffusion", {f"{LDM}joint_blocks.0.context_block.attn.qkv.weight": (1, 1)}),
    "Flux": ("other-diffusion", {"double_blocks.0.img_attn.qkv.weight": (1, 1)}),
    "Wan": ("other-diffusion", {"blocks.0.self_attn.q.weight": (1, 1)}),
    "UNet without prefix": ("unet", BARE),
    "motion module": ("motion-module", MOTION),
    "motion module, wrapped by its trainer": ("motion-module", {f"module.{k}": shape for k, shape in MOTION.items()}),
    "motion module of SDXL": ("sdxl-motion-module", {k: s for k, s in MOTION.items() if "_blocks.3." not in k}),
    "HotShot-XL": ("hotshot", {"down_blocks.0.temporal_attentions.0.norm.weight": (320,)}),
    "AnimateLCM-I2V": ("animatelcm-i2v", MOTION | {"img_encoder.conv_in.weight": (320, 4, 1, 1)}),
    "PIA": ("pia", MOTION | {"conv_in.weight": (320, 9, 3, 3)}),
    "FancyVideo": ("fancyvideo", MOTION | {"FancyVideo": (1,), "conv_in.weight": (320, 9, 3, 3)}),
    "CameraCtrl": ("cameractrl", {f"{DOWN}processor.qkv_merge.weight": (1, 1), "encoder.conv_in.weight": (1, 1)}),
    "MotionCtrl": ("motionctrl", MOTION | {f"{DOWN}cc_projection.weight": (1, 1)}),
    "motion LoRA": ("motion-lora", {f"{DOWN}processor.to_q_lora.up.weight": (320, 4)}),
    "kohya": ("lora", lora("lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k", 768)),
    "whole differences": ("lora", {"diffusion_model.input_blocks.1.1.proj_in.diff": (320, 320, 1, 1)}),
    "SD 2.x kohya": ("sd2-lora", lora("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 1024)),
    "SDXL kohya": ("sdxl-lora", lora("lora_unet_input_blocks_7_1_transformer_blocks_9_attn2_to_k", 2048)),
    "SDXL LoHa": ("sdxl-lora", {"lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.hada_w1_a": (640, 4)}),
    "SDXL B-LoRA": (
        "sdxl-lora", lora("unet.up_blocks.0.attentions.0.transformer_blocks.4.attn1.to_q", 1280, kohya=False),
    ),
    "SDXL text encoders": ("sdxl-lora", lora("lora_te2_text_model_encoder_layers_0_mlp_fc1", 1280)),
    "SDXL diffusers": (
        "sdxl-lora", lora("unet.down_blocks.2.attentions.0.transformer_blocks.9.attn2.to_k", 2048, kohya=False),
    ),
    "SDXL diffusers, attention processors": (
        "sdxl-lora",
        {"unet.down_blocks.2.attentions.0.transformer_blocks.9.attn2.processor.to_k_lora.down.weight": (4, 2048)},
    ),
    "Flux kohya": ("other-lora", lora("lora_unet_double_blocks_0_img_attn_qkv", 3072)),
    "Flux diffusers": ("other-lora", lora("transformer.transformer_blocks.0.attn.to_q", 3072, kohya=False)),
    "Wan LoRA": ("other-lora", lora("diffusion_model.blocks.0.self_attn.q", 1536)),
    "OFT of LyCORIS": ("oft", {"lora_unet_mid_block_attentions_0_proj_in.oft_blocks": (4, 8, 8)}),
    "OFT of kohya": ("oft", {"oft_unet_mid_block_attentions_0_proj_in.oft_blocks": (4, 8, 8)}),
    "(IA)^3": ("ia3", {"lora_unet_x.weight": (320,), "lora_unet_x.on_input": ()}),
    "ControlNet": ("controlnet", CONTROL),
    "ControlNet of SD 2.x": ("sd2-controlnet", CONTROL | {f"control_model.{CROSS}": (320, 1024)}),
    "ControlNet of SDXL": ("sdxl-controlnet", CONTROL | {"control_model.label_emb.0.0.weight": (1280, 2816)}),
    "ControlNet++": ("union-controlnet", CONTROL | {"control_add_embedding.linear_1.weight": (1, 1)}),
    "Control-LoRA": ("control-lora", CONTROL | {"lora_controlnet": ()}),
    "difference": ("controlnet-difference", CONTROL | {"difference": ()}),
    "SparseCtrl": ("sparsectrl", MOTION | {"controlnet_cond_embedding.conv_in.weight": (1, 1)}),
    "SparseCtrl of diffusers": (
        "sparsectrl",
        {"controlnet_cond_embedding.conv_in.weight": (1, 1), "down_blocks.3.motion_modules.0.norm.weight": (1,)},
    ),
    "T2I-Adapter": ("t2i-adapter", {"conv_in.weight": (320, 192, 3, 3), "body.0.block1.weight": (1, 1)}),
    "T2I-Adapter, light": ("t2i-adapter", {"body.0.in_conv.weight": (1, 1)}),
    "T2I-Adapter of diffusers": ("t2i-adapter", {"adapter.body.0.resnets.0.block1.weight": (1, 1)}),
    "ControlNet-LLLite": ("lllite", {"lllite_unet_input_blocks_4_1_attn1_to_k.conditioning1.0.weight": (1, 1)}),
    "IP-Adapter": ("ip-adapter", {"ip_adapter.1.to_k_ip.weight": (320, 768)}),
    "VAE of SD 3": ("wide-vae", {"decoder.conv_in.weight": (512, 16, 3, 3), "encoder.conv_in.weight": (128, 3, 3, 3)}),
    "VAE of Wan": ("wide-vae", {"encoder.conv1.weight": (1, 3, 3, 3, 3), "decoder.conv1.weight": (1, 16, 3, 3, 3)}),
    "VAE": ("vae", {"encoder.conv_in.weight": (128, 3, 3, 3), "decoder.conv_in.weight": (512, 4, 3, 3)}),
    "half a VAE": ("unknown", {"decoder.conv_in.weight": (512, 4, 3, 3)}),
    "text encoder": ("text-encoder", {"text_model.embeddings.token_embedding.weight": (49408, 768)}),
    "T5": ("text-encoder", {"encoder.block.0.layer.0.SelfAttention.q.weight": (4096, 4096)}),
    "TAESD": ("tiny-vae", {"1.weight": (64, 4, 3, 3), "3.conv.0.weight": (64, 64, 3, 3)}),
    "TAESD, both halves": ("tiny-vae", {"taesd_decoder.1.weight": (64, 4, 3, 3)}),
    "textual inversion": ("embedding", {"emb_params": (2, 768)}),
    "nothing": ("unknown", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_told_by_its_keys(name: str) -> None:
    kind, shapes = FILES[name]
    assert recognise(shapes) == kind


@pytest.mark.parametrize("name", FILES)
def test_what_cannot_be_used_is_named_with_a_remedy(name: str) -> None:
    kind, shapes = FILES[name]
    wanted = "vae" if kind != "vae" else "lora"
    with pytest.raises(CheckpointError) as told:
        require_kind("file.safetensors", shapes, (wanted,), "a hat")
    said, remedy = str(told.value).split(". ", 1)
    assert said == f"file.safetensors cannot be used as a hat: it is {ARTICLE[kind]}"
    assert remedy.startswith("Give it as") or remedy == f"Choose {ARTICLE[wanted]} for Stable Diffusion 1.5"
