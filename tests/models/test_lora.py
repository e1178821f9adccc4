"""LoRA files: every kind against its formula, every layout against kohya's, and what a user is told."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file, save_file
from torch import Tensor

import animdetail_trt as adt
from animdetail_trt.errors import CheckpointError, InputError
from animdetail_trt.models.lora import merge, merge_loras, read_lora
from animdetail_trt.models.lora_names import text_names, unet_names
from animdetail_trt.models.unet import unet_from_ldm

FULL_SIZE = json.loads((Path(__file__).parents[1] / "golden" / "full_size_shapes.json").read_text())
LINEAR = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
KOHYA = f"lora_unet_{LINEAR.replace('.', '_')}"


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def merged(folder: Path, parts: dict[str, Tensor], weight: Tensor, strength: float = 1.0, bias: bool = False) -> Tensor:
    """One module's weight (or bias) after a file with these parts (by their suffixes) is merged."""
    save_file({f"lora_unet_x{suffix}": tensor for suffix, tensor in parts.items()}, folder / "lora.safetensors")
    tensors = {"x.weight": weight, "x.bias": torch.zeros(len(weight))}
    result, used = merge(read_lora(folder / "lora.safetensors"), strength, tensors, {"lora_unet_x": "x.weight"})
    assert used == {"lora_unet_x"}
    return result["x.bias" if bias else "x.weight"]


# What each kind means.


def test_lora_is_a_narrow_layer_beside_the_layer(tmp_path: Path) -> None:
    weight, up, down, x = randn(6, 8), randn(6, 2, seed=1), randn(2, 8, seed=2), randn(5, 8, seed=3)
    parts = {".lora_up.weight": up, ".lora_down.weight": down, ".alpha": torch.tensor(3.0)}
    actual = F.linear(x, merged(tmp_path, parts, weight, 0.7))
    torch.testing.assert_close(actual, F.linear(x, weight) + 0.7 * 3 / 2 * F.linear(F.linear(x, down), up))


def test_without_alpha_the_scale_is_one(tmp_path: Path) -> None:
    up, down = randn(6, 2, seed=1), randn(2, 8, seed=2)
    parts = {".lora_up.weight": up, ".lora_down.weight": down}
    torch.testing.assert_close(merged(tmp_path, parts, torch.zeros(6, 8)), up @ down)


def test_alpha_may_be_a_whole_number(tmp_path: Path) -> None:
    """diffusers' convert_state_dict_to_kohya, which its trainers call, writes the rank as one."""
    parts = {".lora_up.weight": randn(6, 2, seed=1), ".lora_down.weight": randn(2, 8, seed=2)}
    whole, broken = (merged(tmp_path, parts | {".alpha": torch.tensor(alpha)}, torch.zeros(6, 8)) for alpha in (4, 4.0))
    torch.testing.assert_close(whole, 2 * parts[".lora_up.weight"] @ parts[".lora_down.weight"])
    assert torch.equal(whole, broken)


@pytest.mark.parametrize("mid", [False, True])
def test_locon_is_narrow_convolutions_beside_the_convolution(tmp_path: Path, mid: bool) -> None:
    weight, up, x = randn(6, 5, 3, 3), randn(6, 2, 1, 1, seed=1), randn(2, 5, 7, 7, seed=3)
    parts = {".lora_up.weight": up, ".alpha": torch.tensor(1.0)}
    if mid:
        down, core = randn(2, 5, 1, 1, seed=2), randn(2, 2, 3, 3, seed=4)
        parts |= {".lora_down.weight": down, ".lora_mid.weight": core}
        beside = F.conv2d(F.conv2d(F.conv2d(x, down), core), up)
    else:
        down = randn(2, 5, 3, 3, seed=2)
        parts |= {".lora_down.weight": down}
        beside = F.conv2d(F.conv2d(x, down), up)
    actual = F.conv2d(x, merged(tmp_path, parts, weight, 0.5))
    torch.testing.assert_close(actual, F.conv2d(x, weight) + 0.5 / 2 * beside, rtol=1e-4, atol=1e-4)


def test_loha_is_a_product_element_by_element(tmp_path: Path) -> None:
    a1, b1, a2, b2 = randn(6, 2, seed=1), randn(2, 8, seed=2), randn(6, 2, seed=3), randn(2, 8, seed=4)
    parts = {".hada_w1_a": a1, ".hada_w1_b": b1, ".hada_w2_a": a2, ".hada_w2_b": b2, ".alpha": torch.tensor(1.0)}
    expected = 0.5 * (a1 @ b1) * (a2 @ b2)
    torch.testing.assert_close(merged(tmp_path, parts, torch.zeros(6, 8)), expected)


def test_loha_of_a_convolution_has_cores(tmp_path: Path) -> None:
    """Tucker's form: the core's pixel (x, y) lies between the two matrices."""
    parts, factors = {}, []
    for i in (1, 2):
        a, b, core = randn(2, 6, seed=i), randn(2, 5, seed=10 + i), randn(2, 2, 3, 3, seed=20 + i)
        parts |= {f".hada_w{i}_a": a, f".hada_w{i}_b": b, f".hada_t{i}": core}
        factors.append(torch.stack([a.T @ pixel @ b for pixel in core.flatten(2).unbind(2)], dim=2))
    expected = (factors[0] * factors[1]).reshape(6, 5, 3, 3)
    torch.testing.assert_close(merged(tmp_path, parts, torch.zeros(6, 5, 3, 3)), expected)


@pytest.mark.parametrize("split", [(), ("lokr_w1",), ("lokr_w2",), ("lokr_w1", "lokr_w2")])
def test_lokr_is_a_block_of_blocks(tmp_path: Path, split: tuple[str, ...]) -> None:
    parts, whole = {".alpha": torch.tensor(6.0)}, []
    for i, (name, rows, columns) in enumerate((("lokr_w1", 2, 3), ("lokr_w2", 4, 5))):
        if name in split:
            a, b = randn(rows, 3, seed=i), randn(3, columns, seed=10 + i)
            parts |= {f".{name}_a": a, f".{name}_b": b}
            whole.append(a @ b)
        else:
            parts[f".{name}"] = randn(rows, columns, seed=i)
            whole.append(parts[f".{name}"])
    scale = 6 / 3 if split else 1  # alpha says nothing where there is no rank
    expected = torch.cat([torch.cat([scale * cell * whole[1] for cell in row], dim=1) for row in whole[0]])
    torch.testing.assert_close(merged(tmp_path, parts, torch.zeros(8, 15)), expected)


def test_lokr_of_a_convolution_with_a_core(tmp_path: Path) -> None:
    first, a, b, core = randn(2, 3), randn(2, 4, seed=1), randn(2, 5, seed=2), randn(2, 2, 3, 3, seed=3)
    parts = {".lokr_w1": first, ".lokr_w2_a": a, ".lokr_w2_b": b, ".lokr_t2": core}
    actual = merged(tmp_path, parts, torch.zeros(8, 15, 3, 3))
    for y in range(3):
        for x in range(3):
            torch.testing.assert_close(actual[:, :, y, x], torch.kron(first, a.T @ core[:, :, y, x] @ b))


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 3, 3)])
def test_dora_gives_columns_their_length(tmp_path: Path, shape: tuple[int, ...]) -> None:
    ones = [1] * (len(shape) - 2)
    length = randn(1, 8, *ones, seed=5).abs() + 1
    parts = {
        ".lora_up.weight": randn(6, 2, *ones, seed=1),
        ".lora_down.weight": randn(2, *shape[1:], seed=2),
        ".dora_scale": length,
    }
    result = merged(tmp_path, parts, randn(*shape))
    actual = torch.linalg.vector_norm(result.transpose(0, 1).flatten(1), dim=1)
    torch.testing.assert_close(actual, length.flatten(), rtol=1e-5, atol=1e-5)
    halfway = merged(tmp_path, parts, randn(*shape), 0.5)
    torch.testing.assert_close(halfway, (result + randn(*shape)) / 2)


def test_dora_by_rows_divides_by_the_length_before(tmp_path: Path) -> None:
    """The reference's choice; the paper's would divide by the length of the sum."""
    weight, up, down, length = randn(6, 8), randn(6, 2, seed=1), randn(2, 8, seed=2), randn(6, 1, seed=3).abs() + 1
    parts = {".lora_up.weight": up, ".lora_down.weight": down, ".dora_scale": length}
    expected = length * (weight + up @ down) / torch.linalg.vector_norm(weight, dim=1, keepdim=True)
    torch.testing.assert_close(merged(tmp_path, parts, weight), expected)


def test_whole_differences_of_weight_and_bias(tmp_path: Path) -> None:
    diff, bias = randn(6, 8), randn(6, seed=1)
    parts = {".diff": diff, ".diff_b": bias}
    torch.testing.assert_close(merged(tmp_path, parts, torch.ones(6, 8), 0.5), 1 + diff / 2)
    torch.testing.assert_close(merged(tmp_path, parts, torch.ones(6, 8), 0.5, bias=True), bias / 2)


# Names.


@pytest.fixture(scope="module")
def full_size_unet() -> dict[str, tuple[str, str]]:
    """Diffusers key -> LDM key of the real SD 1.5 UNet, by diffusers' own converter."""
    ldm = {key: torch.zeros(1).expand(shape) for key, shape in FULL_SIZE["sd15_unet"].items()}
    names = {id(tensor): key for key, tensor in ldm.items()}
    return {key: names[id(tensor)] for key, tensor in unet_from_ldm(ldm).items()}


def test_every_name_of_the_full_size_unet_resolves(full_size_unet: dict[str, str]) -> None:
    names = unet_names(full_size_unet)
    weights = [key for key in full_size_unet if key.endswith(".weight")]
    assert len(weights) > 300
    for key in weights:
        module = key.removesuffix(".weight")
        ldm = full_size_unet[key].removeprefix("model.diffusion_model.").removesuffix(".weight")
        for name in (module, ldm, *(f"lora_unet_{dotted.replace('.', '_')}" for dotted in (module, ldm))):
            assert names[name] == key
    assert len({name for name in names if name.startswith("lora_unet_")}) == 2 * len(weights)


@pytest.mark.parametrize("prefix", ["cond_stage_model.transformer.text_model.", "text_model.", ""])
def test_every_name_of_the_full_size_text_encoder_resolves(prefix: str) -> None:
    modules = [f"self_attn.{m}" for m in ("q_proj", "k_proj", "v_proj", "out_proj")] + ["mlp.fc1", "mlp.fc2"]
    keys = [f"{prefix}encoder.layers.{i}.{module}.weight" for i in range(12) for module in modules]
    names = text_names(keys)
    for key in keys:
        module = f"text_model.{key.removeprefix(prefix).removesuffix('.weight')}"
        for start in ("lora_te_", "lora_te1_"):
            assert names[start + module.replace(".", "_")] == key
        assert names[module] == key


LAYOUTS = {
    "kohya": (KOHYA, ".lora_up.weight", ".lora_down.weight"),
    "kohya with LDM names": (
        "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q",
        ".lora_up.weight",
        ".lora_down.weight",
    ),
    "diffusers": (f"unet.{LINEAR}", ".lora.up.weight", ".lora.down.weight"),
    "diffusers, attention processors": (
        LINEAR.replace("to_q", "processor.to_q"),
        "_lora.up.weight",
        "_lora.down.weight",
    ),
    "peft": (f"unet.{LINEAR}", ".lora_B.weight", ".lora_A.weight"),
    "peft, alone": (f"base_model.model.{LINEAR}", ".lora_B.default.weight", ".lora_A.default.weight"),
    "wrapped by a trainer": (
        f"module.{LINEAR.replace('to_q', 'processor.to_q')}",
        "_lora.up.weight",
        "_lora.down.weight",
    ),
    "LyCORIS": (f"lycoris_{LINEAR.replace('.', '_')}", ".lora_up.weight", ".lora_down.weight"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_agree(tiny: Path, tmp_path: Path, layout: str) -> None:
    module, up, down = LAYOUTS[layout]
    file = tmp_path / "lora.safetensors"
    save_file({f"{module}{up}": randn(64, 4), f"{module}{down}": randn(4, 64, seed=1)}, file)
    unet = unet_from_ldm(load_file(tiny / "tiny_sd15.safetensors"))
    result, _ = merge_loras([(file, 0.5)], unet, None)
    key = f"{LINEAR}.weight"
    torch.testing.assert_close(result[key], unet[key].float() + 0.5 * randn(64, 4) @ randn(4, 64, seed=1))
    assert all(result[other] is tensor for other, tensor in unet.items() if other != key)


def test_the_last_projection_has_two_spellings(tiny: Path, tmp_path: Path) -> None:
    module = LINEAR.replace("to_q", "processor.to_out")
    save_file(
        {f"{module}_lora.up.weight": randn(64, 4), f"{module}_lora.down.weight": randn(4, 64)},
        tmp_path / "lora.safetensors",
    )
    unet = unet_from_ldm(load_file(tiny / "tiny_sd15.safetensors"))
    result, _ = merge_loras([(tmp_path / "lora.safetensors", 1.0)], unet, None)
    key = LINEAR.replace("to_q", "to_out.0.weight")
    assert not torch.equal(result[key], unet[key].float())


@pytest.mark.parametrize(
    "module", ["lora_te_text_model_encoder_layers_0_mlp_fc1", "text_encoder.text_model.encoder.layers.0.mlp.fc1"]
)
def test_the_text_encoder_takes_its_part(tiny_checkpoint: Path, tmp_path: Path, module: str) -> None:
    shape = load_file(tiny_checkpoint)["cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"].shape
    save_file(
        {
            f"{module}.lora_linear_layer.up.weight": randn(shape[0], 2),
            f"{module}.lora_linear_layer.down.weight": randn(2, shape[1]),
        },
        tmp_path / "lora.safetensors",
    )
    plain, none, with_lora = (
        adt.load_pipe(tiny_checkpoint, loras=loras, device="cpu", dtype="float32").with_prompt("a face").positive
        for loras in ((), [(tmp_path / "lora.safetensors", 0)], [(tmp_path / "lora.safetensors", 1.0)])
    )
    assert torch.equal(plain[0][0], none[0][0])
    assert not torch.allclose(plain[0][0], with_lora[0][0], atol=1e-3)


def test_loras_add_up(tiny: Path) -> None:
    unet = unet_from_ldm(load_file(tiny / "tiny_sd15.safetensors"))
    file = tiny / "tiny_lora.safetensors"
    once, _ = merge_loras([(file, 0.8)], unet, None)
    twice, _ = merge_loras([(file, 0.5), (str(file), 0.3)], unet, None)
    back, _ = merge_loras([(file, 0.8), (file, -0.8)], unet, None)
    for key, tensor in unet.items():
        torch.testing.assert_close(once[key], twice[key])
        torch.testing.assert_close(back[key].float(), tensor.float(), rtol=1e-5, atol=1e-6)


# What is told.


def test_coverage_is_logged(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "animdetail_trt"):
        adt.load_pipe(tiny / "tiny_sd15.safetensors", loras=[(tiny / "tiny_lora.safetensors", 1.0)], device="cpu")
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("INFO", "tiny_lora.safetensors: 370 of 370 tensors")
    ]


def test_what_has_no_place_is_named(tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    extra = {"lora_unet_no_such_layer.lora_up.weight": randn(2, 2), "bundle_emb.cat.string": randn(2, 2)}
    extra |= {"lora_unet_no_such_layer.alpha": torch.tensor(1.0)}
    save_file(load_file(tiny / "tiny_lora.safetensors") | extra, tmp_path / "more.safetensors")
    with caplog.at_level(logging.INFO, "animdetail_trt"):
        adt.load_pipe(tiny / "tiny_sd15.safetensors", loras=[(tmp_path / "more.safetensors", 1.0)], device="cpu")
    told, warned = caplog.records
    assert told.getMessage() == "more.safetensors: 370 of 372 tensors"
    assert warned.levelname == "WARNING"
    for key in ("lora_unet_no_such_layer.lora_up.weight", "bundle_emb.cat.string"):
        assert key in warned.getMessage()


def spoiled(tiny: Path, key: str, change: str) -> dict[str, Tensor]:
    tensors = load_file(tiny / "tiny_lora.safetensors")
    if change == "nan":
        tensors[key][0] = float("nan")
    elif change == "lost":
        del tensors[key]
    elif change == "quantised":
        tensors[key] = tensors[key].to(torch.int8)
    elif change == "wide":
        tensors[key] = tensors[key].repeat(1, 2)
    elif change == "flat":
        tensors[key] = tensors[key][:, 0].contiguous()
    return tensors


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("nan", "NaN or infinity"),
        ("quantised", "whole numbers"),
        ("lost", "lacks its part 'down'"),
        ("wide", r"does not fit .*to_q.weight' \(64, 64\)"),
        ("flat", "does not fit"),
    ],
)
def test_a_bad_file_is_named(tiny: Path, tmp_path: Path, change: str, words: str) -> None:
    save_file(spoiled(tiny, f"{KOHYA}.lora_down.weight", change), tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match=f"bad.safetensors.*{words}"):
        adt.load_pipe(tiny / "tiny_sd15.safetensors", loras=[(tmp_path / "bad.safetensors", 1.0)], device="cpu")


def test_a_cut_file_is_named(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes((tiny / "tiny_lora.safetensors").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cut.safetensors is damaged"):
        adt.load_pipe(tiny / "tiny_sd15.safetensors", loras=[(tmp_path / "cut.safetensors", 1.0)])


def test_a_file_that_matches_nothing_is_refused(tiny: Path, tmp_path: Path) -> None:
    save_file({"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": randn(4, 4)}, tmp_path / "te.safetensors")
    with pytest.raises(CheckpointError, match="te.safetensors: none of its 1 tensors belongs to this model"):
        adt.load_pipe(tiny / "tiny_sd15.safetensors", loras=[(tmp_path / "te.safetensors", 1.0)])


@pytest.mark.parametrize("scale", ["alpha", "dora_scale"])
def test_a_scale_alone_is_no_match(tiny: Path, tmp_path: Path, scale: str) -> None:
    """The rest of the module is of a kind that is not known here, so nothing of it is used."""
    save_file(
        {f"{KOHYA}.{scale}": torch.ones(64, 1), f"{KOHYA}.vera_vector": randn(4, 4)}, tmp_path / "new.safetensors"
    )
    with pytest.raises(CheckpointError, match="new.safetensors: none of its . tensors belongs to this model"):
        adt.load_pipe(tiny / "tiny_sd15.safetensors", loras=[(tmp_path / "new.safetensors", 1.0)])


def test_what_is_no_lora_is_named(tiny: Path, tmp_path: Path) -> None:
    """Beside a LoRA too: half a file would be another picture."""
    for suffix, words in ((".oft_blocks", "an OFT or BOFT file"), (".on_input", r"an \(IA\)\^3 file")):
        tensors = load_file(tiny / "tiny_lora.safetensors") | {f"{KOHYA}{suffix}": torch.ones(4, 4, 4)}
        save_file(tensors, tmp_path / "other.safetensors")
        with pytest.raises(CheckpointError, match=f"it is {words}.*Choose a LoRA"):
            adt.load_pipe(tiny / "tiny_sd15.safetensors", loras=[(tmp_path / "other.safetensors", 1.0)])


def test_other_models_are_no_loras(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be used as a LoRA: it is an AnimateDiff motion module"):
        adt.load_pipe(tiny / "tiny_sd15.safetensors", loras=[(tiny / "tiny_mm_v2.safetensors", 1.0)])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"loras": ["a.safetensors"]}, r"loras must be \[\(path, strength\)"),
        ({"loras": 5}, r"loras must be \[\(path, strength\)"),
        ({"loras": [(3, 1.0)]}, "a path is 3"),
        ({"loras": [("a.safetensors", float("nan"))]}, "strength of a.safetensors must be a finite number"),
        ({"loras": [("a.safetensors", "1")]}, "strength of a.safetensors must be a finite number"),
        ({"loras": [("a.safetensors", 1e300)]}, "strength of a.safetensors must be a finite number"),
        ({"motion_loras": [("a.safetensors", 10**400)]}, "strength of a.safetensors must be a finite number"),
        ({"motion_loras": [("a.safetensors", 1.0)]}, "need a motion module"),
        ({"motion_effect": 0.5}, "need a motion module"),
        ({"motion_scale": float("inf")}, "motion_scale must be a finite number"),
    ],
)
def test_bad_arguments_are_named(tiny: Path, arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        adt.load_pipe(tiny / "tiny_sd15.safetensors", **arguments)
