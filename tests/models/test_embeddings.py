"""Textual inversions: the reference's tokens, what their vectors do, and the files that hold them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from animdetail_trt import load_pipe
from animdetail_trt.errors import CheckpointError, InputError
from animdetail_trt.models.embeddings import names_of, read_embeddings
from animdetail_trt.models.prompt import END, embeddings_in, encode_text, file_stem, tokenize
from animdetail_trt.models.text import ClipText

REFERENCE = json.loads((Path(__file__).parents[1] / "reference_runs" / "embedding_tokens.json").read_text())
TABLE = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"


@pytest.fixture(scope="module")
def weights(tiny):
    return load_file(tiny / "tiny_clip.safetensors")


def ids_of(vectors):
    """The ids of each name's vectors, one after the other behind the vocabulary."""
    ids, first = {}, END + 1
    for name, count in vectors.items():
        ids[file_stem(name)] = range(first, first + count)
        first += count
    return ids


@pytest.mark.parametrize("case", REFERENCE["cases"], ids=lambda case: case["prompt"][-30:])
def test_tokens_are_the_reference_s(case):
    ids = ids_of(REFERENCE["vectors"])
    chunks = [
        [(ids[file_stem(token[0])][token[1]] if isinstance(token, list) else token, weight) for token, weight in chunk]
        for chunk in case["tokens"]
    ]
    padded = [chunk + [(END, 1.0)] * (77 - len(chunk)) for chunk in chunks]
    assert tokenize(case["prompt"], ids) == padded


def test_vectors_of_known_words_read_as_those_words(weights):
    words, other = encode_text("freckles sun"), encode_text("night")
    embeddings = {"spots": weights[TABLE][words].float(), "dark": weights[TABLE][other]}
    clip = ClipText.from_state_dict(weights, embeddings=embeddings)
    for named, spelled in (
        ("a embedding:spots, (face:1.2)", "a freckles sun, (face:1.2)"),
        ("(embedding:dark:0.5) a embedding:spots", "(night:0.5) a freckles sun"),
    ):
        for found, wanted in zip(clip.encode(named), ClipText.from_state_dict(weights).encode(spelled), strict=True):
            assert torch.equal(found, wanted)
    assert not torch.equal(clip.encode("a embedding:spots")[0], clip.encode("a embedding:dark")[0])


def test_a_file_s_name_is_what_a_prompt_calls_it(tmp_path):
    for name in ("old.pt.safetensors", "bad(1).safetensors", "x:1.safetensors"):
        save_file({"emb_params": torch.ones(1, 64)}, tmp_path / name)
    found = read_embeddings(sorted(tmp_path.iterdir()))
    ids = {name: range(END + 1, END + 2) for name in found}
    for prompt in ("embedding:old", "embedding:old.pt", r"embedding:bad\(1\)", "embedding:x:1"):
        assert tokenize(prompt, ids)[0][1] == (END + 1, 1.0)
        assert embeddings_in(prompt) & found.keys()
    for name in ("my hands", "a,b", ".safetensors"):
        with pytest.raises(InputError, match="a space or a comma ends a name"):
            names_of([tmp_path / f"{name}.safetensors"])


def test_a_name_without_a_space_before_it_is_told(weights, caplog):
    clip = ClipText.from_state_dict(weights, embeddings={"spots": torch.zeros(1, 64)})
    clip.encode("cat,embedding:spots")
    assert caplog.messages == [
        "encoded as words: embedding:spots. A textual inversion needs a space before it",
    ]


def test_what_is_not_there_is_left_out_and_told(weights, caplog):
    clip = ClipText.from_state_dict(weights, embeddings={"spots": torch.zeros(1, 64)})
    assert torch.equal(clip.encode("a embedding:spot b")[0], clip.encode("a b")[0])
    (told,) = caplog.messages
    assert "embedding:spot is left out" in told
    assert "given are spots" in told


@pytest.mark.parametrize(
    ("tensors", "count"),
    [
        ({"emb_params": torch.ones(3, 64)}, 3),
        ({"<cat-toy>": torch.ones(64)}, 1),
        ({"*": torch.ones(2, 64, dtype=torch.float16)}, 2),
        ({"emb_params": torch.ones(2, 64).to(torch.float8_e4m3fn)}, 2),
        ({"clip_g": torch.ones(2, 80), "clip_l": torch.ones(2, 64)}, 2),
    ],
)
def test_every_layout_of_a_file(tmp_path, tensors, count):
    save_file(tensors, tmp_path / "bad.hands-5.safetensors")
    found = read_embeddings([tmp_path / "bad.hands-5.safetensors"])
    assert {name: (rows.shape, rows.dtype) for name, rows in found.items()} == {
        "bad.hands-5": ((count, 64), torch.float32)
    }


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lora_unet_mid.lora_up.weight": torch.ones(2, 64)}, "it is a LoRA"),
        ({"a": torch.ones(2, 64), "b": torch.ones(2, 64)}, r"but a \(2, 64\), b \(2, 64\)"),
        ({"emb_params": torch.ones(1, 2, 64)}, r"emb_params \(1, 2, 64\)"),
        ({"emb_params": torch.ones(2, 64, dtype=torch.int32)}, "no textual inversion"),
        ({"emb_params": torch.full((2, 64), torch.nan)}, "holds NaN"),
        ({"emb_params": torch.ones(0, 64)}, "no textual inversion"),
        ({"emb_params": torch.ones(2, 0)}, "no textual inversion"),
        ({}, "no textual inversion, which is vectors .n, d., but nothing"),
    ],
)
def test_other_files_are_named(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "file.safetensors")
    with pytest.raises(CheckpointError, match=message):
        read_embeddings([tmp_path / "file.safetensors"])


def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path):
    old = {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.nn.Parameter(torch.ones(2, 64))}}
    torch.save(old, tmp_path / "old.pt")
    with pytest.raises(CheckpointError, match="'string_to_param' in place of 'state_dict' for a textual inversion"):
        read_embeddings([tmp_path / "old.pt"])
    inside = torch.load(tmp_path / "old.pt", weights_only=True)["string_to_param"]  # as the message says
    save_file(inside, tmp_path / "old.safetensors")
    assert torch.equal(read_embeddings([tmp_path / "old.safetensors"])["old"], torch.ones(2, 64))


def test_two_of_one_name_and_another_family_s(tmp_path, weights):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save_file({"emb_params": torch.ones(2, 64)}, tmp_path / folder / "x.safetensors")
    with pytest.raises(InputError, match="two textual inversions are called 'x'"):
        read_embeddings([tmp_path / "a" / "x.safetensors", str(tmp_path / "b" / "x.safetensors")])
    for wrong in ("x.safetensors", [3]):
        with pytest.raises(InputError, match="embeddings must be a list of paths"):
            read_embeddings(wrong)
    with pytest.raises(CheckpointError, match="'x' has vectors of 1024 numbers, this text encoder's have 64"):
        ClipText.from_state_dict(weights, embeddings={"x": torch.ones(2, 1024)})


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
def test_they_go_with_a_checkpoint_of_any_precision(weights, dtype):
    stored = {key: tensor.to(dtype) for key, tensor in weights.items()}
    rows = stored[TABLE][encode_text("freckles")].float()
    clip = ClipText.from_state_dict(stored, embeddings={"spots": rows})
    assert torch.equal(clip.encode("embedding:spots")[0], ClipText.from_state_dict(stored).encode("freckles")[0])


def test_load_pipe_reads_them(tiny, tmp_path, weights):
    save_file(load_file(tiny / "tiny_sd15.safetensors") | weights, tmp_path / "checkpoint.safetensors")
    rows = weights[TABLE][encode_text("freckles")]
    save_file({"emb_params": rows}, tmp_path / "spots.safetensors")
    pipe = load_pipe(tmp_path / "checkpoint.safetensors", embeddings=[tmp_path / "spots.safetensors"], device="cpu")
    named, spelled = (pipe.with_prompt(prompt).positive[0][0] for prompt in ("embedding:spots", "freckles"))
    np.testing.assert_array_equal(named, spelled)
