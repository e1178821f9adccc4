"""The text encoder: golden embeddings, both file layouts, and what is said about files that are something else."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from animdetail_trt.errors import CheckpointError, InputError
from animdetail_trt.models.text import ClipText, guess_head_count

GOLDEN = Path(__file__).parents[1] / "golden"
LDM = "cond_stage_model.transformer.text_model."

with safe_open(GOLDEN / "text.safetensors", "pt") as _file:
    CASES = json.loads(_file.metadata()["cases"])
    TENSORS = {name: _file.get_tensor(name) for name in _file.keys()}  # noqa: SIM118 - a handle is not iterable


@pytest.fixture(scope="module")
def weights(tiny):
    return load_file(tiny / "tiny_clip.safetensors")


@pytest.fixture(scope="module")
def clip(weights):
    return ClipText.from_state_dict(weights)


def distance(a, b):
    """Relative norm of the difference."""
    assert a.shape == b.shape
    assert a.dtype == b.dtype == torch.float32
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("index", range(len(CASES)))
def test_golden_embeddings(clip, index):
    cond, pooled = clip.encode(CASES[index]["prompt"])
    # golden/README.md allows 1e-4; the same arithmetic in another order of sums differs by some float32 steps only.
    assert distance(cond, TENSORS[f"{index}.cond"]) < 1e-5
    assert distance(pooled, TENSORS[f"{index}.pooled"]) < 1e-5


@pytest.mark.parametrize("clip_skip", [2, -2])
def test_golden_clip_skip(clip, clip_skip):
    cond, pooled = clip.encode(CASES[0]["prompt"], clip_skip=clip_skip)
    assert distance(cond, TENSORS["skip2.cond"]) < 1e-5
    assert distance(pooled, TENSORS["0.pooled"]) < 1e-5  # of the last layer all the same


def test_clip_skip_one_is_the_default_and_every_layer_can_be_had(clip):
    text = "a (photo:1.2)"
    assert torch.equal(clip.encode(text, clip_skip=1)[0], clip.encode(text)[0])
    conds = [clip.encode(text, clip_skip=skip)[0] for skip in (1, 2, 3)]
    assert distance(conds[2], conds[1]) > 0.1
    for outside in (0, 4, -4):
        with pytest.raises(InputError, match=rf"clip_skip {outside} .* 3 layers"):
            clip.encode(text, clip_skip=outside)


def test_weights_move_tokens_away_from_the_empty_prompt(clip):
    plain, _ = clip.encode("a cat sits")
    empty, _ = clip.encode("")
    weighted, _ = clip.encode("a (cat:1.5) sits")
    moved = (weighted != plain).any(dim=-1).squeeze(0)
    assert moved.nonzero().flatten().tolist() == [2]  # start, a, cat
    torch.testing.assert_close(weighted[:, 2], empty[:, 2] + 1.5 * (plain[:, 2] - empty[:, 2]))
    torch.testing.assert_close(clip.encode("(cat:0)")[0][:, 1], empty[:, 1])


def test_chunks_are_encoded_alone_and_joined(clip):
    long = " ".join(["cat"] * 75 + ["dog"] * 10)
    cond, pooled = clip.encode(long)
    first, first_pooled = clip.encode(" ".join(["cat"] * 75))
    second, _ = clip.encode(" ".join(["dog"] * 10))
    assert cond.shape == (1, 154, 64)
    torch.testing.assert_close(cond, torch.cat([first, second], dim=1))
    torch.testing.assert_close(pooled, first_pooled)


def test_conditioning_has_the_shape_of_a_pipes(clip):
    ((cond, extras),) = clip.conditioning("a face", clip_skip=2)
    expected, pooled = clip.encode("a face", clip_skip=2)
    assert torch.equal(cond, expected)
    assert extras.keys() == {"pooled_output"}
    assert torch.equal(extras["pooled_output"], pooled)
    assert not cond.requires_grad


@pytest.mark.parametrize("prefix", [LDM, "cond_stage_model.transformer.", "text_model.", ""])
def test_every_layout_is_the_same_encoder(weights, clip, prefix):
    renamed = {key.replace(LDM, prefix): value for key, value in weights.items()}
    renamed[f"{prefix}embeddings.position_ids"] = torch.arange(77).unsqueeze(0)
    renamed["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(1)
    renamed["first_stage_model.encoder.conv_in.weight"] = torch.zeros(1)
    other = ClipText.from_state_dict(renamed)
    assert torch.equal(other.encode("a (face:1.2)")[0], clip.encode("a (face:1.2)")[0])


def test_half_precision_runs_and_returns_float32(weights, clip):
    half = ClipText.from_state_dict(weights, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    cond, pooled = half.encode("a (face:1.2)")
    # bfloat16 keeps 8 bits: 0.4 % per rounding, a few roundings deep.
    assert distance(cond, clip.encode("a (face:1.2)")[0]) < 0.03
    assert distance(pooled, clip.encode("a (face:1.2)")[1]) < 0.03


def test_head_counts(weights, clip):
    assert [guess_head_count(width) for width in (64, 512, 768, 1024, 1280)] == [4, 8, 12, 16, 20]
    two = ClipText.from_state_dict(weights, num_heads=2)
    assert distance(two.encode("a face")[0], clip.encode("a face")[0]) > 1e-3
    with pytest.raises(InputError, match="num_heads 7"):
        ClipText.from_state_dict(weights, num_heads=7)


def without(weights, key):
    return {k: v for k, v in weights.items() if k != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {}, "no SD 1.5 text encoder"),
        (lambda w: without(w, LDM + "final_layer_norm.bias"), "lacks 1 .*final_layer_norm.bias"),
        (lambda w: without(w, LDM + "encoder.layers.1.mlp.fc1.bias"), "lacks 1 .*layers.1.mlp.fc1.bias"),
        (lambda w: without(w, LDM + "encoder.layers.0.mlp.fc1.weight"), "layers.0.mlp.fc1.weight"),
        (lambda w: w | {LDM + "encoder.extra": torch.zeros(1)}, "unknown 1 .*encoder.extra"),
        (lambda w: w | {LDM + "final_layer_norm.bias": torch.zeros(65)}, "misshapen 1 .*final_layer_norm.bias"),
        (lambda w: w | {LDM + "embeddings.token_embedding.weight": torch.zeros(100, 64)}, "100 tokens"),
        (lambda w: w | {LDM + "embeddings.token_embedding.weight": torch.zeros(64)}, "no matrix .*token_embedding"),
        (lambda w: w | {LDM + "embeddings.position_embedding.weight": torch.zeros(16, 64)}, "16 positions"),
    ],
)
def test_other_files_are_named(weights, change, message):
    with pytest.raises(CheckpointError, match=message):
        ClipText.from_state_dict(change(weights))
