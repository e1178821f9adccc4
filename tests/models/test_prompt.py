"""Prompts to tokens: the golden prompts, the rules of weights, and CLIP's tokenizer as transformers has it."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from animdetail_trt.errors import InputError
from animdetail_trt.models import prompt as prompts
from animdetail_trt.models.prompt import CHUNK_TOKENS, END, START, encode_text, tokenize, weighted_segments

GOLDEN = Path(__file__).parents[1] / "golden"

with safe_open(GOLDEN / "text.safetensors", "np") as _file:
    CASES = json.loads(_file.metadata()["cases"])

ODD_TEXTS = [
    "",
    "   two  spaces\tand\n\nlines ",
    "it's they'll WE'VE can't 'tis ''",
    "Émile, e\u0301clair; naïve İstanbul ßtraße",
    "1girl 3.14 ½ ٣ Ⅷ 100%",
    "!!! ... ?!#$ <lora:x:1> [a|b] {c}",
    "日本語 한국어 ไทย עברית",
    "😀👩‍👩‍👧 \u200b\u00a0\u2003 \x00\x07",
    "<|startoftext|> a <|endoftext|> b",
    "antidisestablishmentarianism" * 4,
]

prompt_parts = st.sampled_from(
    ["(", ")", ":", "1.2", ":0.5)", r"\(", r"\)", "\\", "a cat ", " embedding:x", "😀", "x " * 30]
)
odd_prompts = st.lists(prompt_parts | st.text(max_size=3), max_size=20).map("".join)


# Hypothesis builds its table of all characters inside the first draw of a text, seconds on a busy machine.
first_draw_is_slow = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_golden_tokens_and_weights(case):
    assert [[list(token) for token in chunk] for chunk in tokenize(case["prompt"])] == case["tokens"]


@pytest.mark.parametrize(
    ("prompt", "segments"),
    [
        ("", []),
        ("a b", [("a b", 1.0)]),
        ("(a)", [("a", 1.1)]),
        ("((a))", [("a", 1.1 * 1.1)]),
        ("a (b:1.3) c", [("a ", 1.0), ("b", 1.3), (" c", 1.0)]),
        ("(a (b:0.5) c:2)", [("a ", 2.0), ("b", 0.5), (" c", 2.0)]),
        ("((a):2)", [("a", 2.0 * 1.1)]),
        ("(a:-1)(b:0)", [("a", -1.0), ("b", 0.0)]),
        ("(a : 1e-1 )", [("a ", 0.1)]),
        ("(12:30:1.5)", [("12:30", 1.5)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(a:)", [("a:", 1.1)]),
        ("(:1.5)", [(":1.5", 1.1)]),
        ("(a:nan) (b:inf)", [("a:nan", 1.1), (" ", 1.0), ("b:inf", 1.1)]),
        ("()", []),
        (r"\(a:1.5\) (b\):2)", [("(a:1.5) ", 1.0), ("b)", 2.0)]),
        (r"(a\)", [("(a)", 1.0)]),
        ("(a", [("(a", 1.0)]),
        ("a)", [("a)", 1.0)]),
        ("(a (b)", [("a ", 1.1), ("(b", 1.1)]),
        ("a) (b)", [("a) (b)", 1.0)]),
        ("[a] {b}", [("[a] {b}", 1.0)]),
    ],
)
def test_weights(prompt, segments):
    assert list(weighted_segments(prompt)) == segments


def test_deep_nesting_is_no_deep_recursion():
    ((text, weight),) = weighted_segments("(" * 2000 + "a" + ")" * 2000)
    assert text == "a"
    assert weight == pytest.approx(1.1**2000)


def content(chunk):
    """The prompt's own token ids of a chunk."""
    ids = [token for token, _ in chunk]
    return ids[1 : ids.index(END)]


def test_a_long_run_is_split_and_a_short_one_moves():
    (cat,) = encode_text("cat")
    seventy = "cat " * 70
    assert [len(content(chunk)) for chunk in tokenize(seventy + "(" + "cat " * 8 + ":1.2)")] == [75, 3]
    assert [len(content(chunk)) for chunk in tokenize(seventy + "(" + "cat " * 7 + ":1.2)")] == [70, 7]
    assert [len(content(chunk)) for chunk in tokenize(seventy + "(" + "cat " * 5 + ":1.2)")] == [75]
    assert [len(content(chunk)) for chunk in tokenize("cat " * 160)] == [75, 75, 10]
    assert {token for chunk in tokenize("cat " * 160) for token in content(chunk)} == {cat}


def test_an_embedding_without_its_file_is_text_in_a_run_of_its_own():
    name = encode_text("embedding:abc")
    assert 1 < len(name) < 8
    first, second = tokenize("cat " * 74 + "embedding:abc")
    assert len(content(first)) == 74
    assert content(second) == name


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("a face, soft light (freckles:1.2) <3", []),
        ("no embedding: a <b:c> lora:x", []),
        (
            "embedding:EasyNegative, (embedding:bad-hands:1.2) cat",
            ["as words: embedding:EasyNegative, embedding:bad-hands. Give load_pipe embeddings="],
        ),
        (
            "cat <lora:film grain:0.8> <lyco:x:1>",
            ["as words: <lora:film grain:0.8>, <lyco:x:1>. Give load_pipe loras="],
        ),
        ("embedding:a <lora:b:1>", ["inversions are encoded as words", "a LoRA in a prompt"]),
    ],
)
def test_files_named_in_a_prompt_are_told(caplog, prompt, told):
    tokenize(prompt)
    assert len(caplog.messages) == len(told)
    assert all(words in message for words, message in zip(told, caplog.messages, strict=True))


@first_draw_is_slow
@given(odd_prompts)
def test_any_prompt_becomes_whole_chunks(prompt):
    chunks = tokenize(prompt)
    assert chunks
    for chunk in chunks:
        assert len(chunk) == CHUNK_TOKENS
        assert chunk[0] == (START, 1.0)
        assert chunk[-1] == (END, 1.0)
        assert all(0 <= token <= END for token, _ in chunk)


@first_draw_is_slow
@given(odd_prompts)
def test_no_token_is_lost(prompt):
    expected = [token for text, _ in weighted_segments(prompt) for token in encode_text(text)]
    assert [token for chunk in tokenize(prompt) for token in content(chunk)] == expected


def test_half_a_surrogate_pair_reads_as_a_question_mark():
    assert tokenize("a\ud83d b") == tokenize("a? b")


@pytest.mark.parametrize("prompt", [None, 7, b"text", ["a"]])
def test_what_is_no_text_is_named(prompt):
    with pytest.raises(InputError, match=type(prompt).__name__):
        tokenize(prompt)


@pytest.fixture(scope="module")
def published_tokenizer(tmp_path_factory):
    """transformers' CLIP tokenizer with the shipped vocabulary."""
    import transformers

    folder = tmp_path_factory.mktemp("clip")
    vocabulary = prompts._tokenizer().get_vocab()
    merges = [" ".join(pair) for pair in prompts._read_merges()]
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    return getattr(transformers, "CLIPTokenizerFast", transformers.CLIPTokenizer).from_pretrained(folder)


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_odd_texts_as_transformers_reads_them(published_tokenizer, text):
    assert encode_text(text) == published_tokenizer(text)["input_ids"][1:-1]


@settings(first_draw_is_slow, max_examples=300)
@given(text=st.text(max_size=40))
def test_any_text_as_transformers_reads_it(published_tokenizer, text):
    assert encode_text(text) == published_tokenizer(text)["input_ids"][1:-1]


def test_vocabulary_is_clips():
    vocabulary = prompts._tokenizer().get_vocab()
    assert len(vocabulary) == END + 1
    assert vocabulary["<|startoftext|>"] == START
    assert vocabulary["<|endoftext|>"] == END
    assert vocabulary["photo</w>"] == 1125
