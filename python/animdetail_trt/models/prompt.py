"""Prompts to tokens: weights in parentheses, CLIP's byte-pair vocabulary, chunks of 77. ComfyUI's rules for SD 1.5."""

from __future__ import annotations

import gzip
import logging
import math
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, TypeAlias

from animdetail_trt.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

Token: TypeAlias = tuple[int, float]
"""(id, weight)"""

START, END = 49406, 49407
CHUNK_TOKENS = 77  # start, 75 of the prompt, end
SPLIT_TOKENS = 8  # a run of tokens as long as this is split where a chunk ends, a shorter one moves to the next chunk
NESTED_WEIGHT = 1.1

# What other programs read in a prompt that names a file; here it is text.
_EMBEDDING = re.compile(r"(?:^|(?<=[\s(,]))embedding:[^\s(),:]+")
_LORA = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>")
# Escaped parentheses wait as code points that Unicode reserves for uses like this one.
_ESCAPED = {r"\(": "\ufdd0", r"\)": "\ufdd1"}


def tokenize(prompt: str) -> list[list[Token]]:
    """The prompt as chunks of exactly 77 (id, weight), each starting with 49406 and filled up with 49407.

    ``(text:1.3)`` sets a weight, ``(text)`` multiplies the weight around it by 1.1, ``\\(`` and ``\\)`` are plain
    parentheses. Whatever does not parse, such as a parenthesis without its other half, is text. So are textual
    inversions and LoRAs, of which a warning is logged.
    """
    if not isinstance(prompt, str):
        raise InputError(f"a prompt is text; this one is a {type(prompt).__name__}: {prompt!r:.80}")
    _note_files(prompt)
    runs = (
        [(token, weight) for token in encode_text(part)]
        for text, weight in weighted_segments(prompt)
        # A textual inversion starts a run of its own, also where, as here, none is installed and it is read as text.
        for part in re.split(r"(?<=[ \n])(?=embedding:)", text)
    )
    return [[(START, 1.0), *chunk, *[(END, 1.0)] * (CHUNK_TOKENS - 1 - len(chunk))] for chunk in _fill_chunks(runs)]


def _note_files(prompt: str) -> None:
    if names := _EMBEDDING.findall(prompt):
        logger.warning("textual inversions are not read, their names are encoded as words: %s", ", ".join(names))
    if names := _LORA.findall(prompt):
        logger.warning(
            "a LoRA in a prompt is encoded as words: %s. Give load_pipe loras=[(path, strength)], or the command line "
            "--lora FILE:STRENGTH",
            ", ".join(names),
        )


def _fill_chunks(runs: Iterable[list[Token]]) -> list[list[Token]]:
    chunks: list[list[Token]] = [[]]
    for run in runs:
        rest = run
        while len(rest) > (room := CHUNK_TOKENS - 2 - len(chunks[-1])):
            if len(run) >= SPLIT_TOKENS:
                chunks[-1].extend(rest[:room])
                rest = rest[room:]
            chunks.append([])
        chunks[-1].extend(rest)
    return chunks


def weighted_segments(prompt: str) -> Iterator[tuple[str, float]]:
    """The prompt's text in order, cut where the weight changes or a parenthesis stands: (text, weight).

    A weight that is no finite number (``(a:nan)``) is text; ComfyUI would carry the nan into the conditioning.
    """
    for escaped, stand_in in _ESCAPED.items():
        prompt = prompt.replace(escaped, stand_in)
    levels = [(_top_level(prompt), 1.0)]
    while levels:
        segments, weight = levels[-1]
        segment = next(segments, None)
        if segment is None:
            levels.pop()
        elif len(segment) >= 2 and segment[0] == "(" and segment[-1] == ")":
            inner, inner_weight = _read_weight(segment[1:-1], weight * NESTED_WEIGHT)
            levels.append((_top_level(inner), inner_weight))
        else:
            for escaped, stand_in in _ESCAPED.items():
                segment = segment.replace(stand_in, escaped[1])
            yield segment, weight


def _top_level(text: str) -> Iterator[str]:
    """Cut text around its outermost parentheses, which stay on their parts."""
    start = depth = 0
    for i, character in enumerate(text):
        if character == "(":
            if depth == 0 and start < i:
                yield text[start:i]
                start = i
            depth += 1
        elif character == ")":
            depth -= 1
            if depth == 0:
                yield text[start : i + 1]
                start = i + 1
    if start < len(text):
        yield text[start:]


def _read_weight(inner: str, default: float) -> tuple[str, float]:
    text, _, number = inner.rpartition(":")
    if not text:
        return inner, default
    try:
        weight = float(number)
    except ValueError:
        return inner, default
    return (text, weight) if math.isfinite(weight) else (inner, default)


def encode_text(text: str) -> list[int]:
    """Token ids of plain text, by CLIP's own rules, without start and end."""
    # A lone half of a surrogate pair has no UTF-8 form; it can come from a command line in another encoding.
    whole = text.encode("utf-8", "replace").decode("utf-8")
    ids: list[int] = _tokenizer().encode(whole).ids
    return ids


@lru_cache(maxsize=1)
def _tokenizer() -> Tokenizer:
    """CLIP's tokenizer as transformers sets it up; built here because CLIPTokenizer's arguments change by version."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    merges = _read_merges()
    characters = _byte_characters()
    names = [*characters, *(c + "</w>" for c in characters), *(a + b for a, b in merges)]
    names += ["<|startoftext|>", "<|endoftext|>"]
    model = models.BPE(
        vocab={name: i for i, name in enumerate(names)},
        merges=merges,
        end_of_word_suffix="</w>",
        unk_token="<|endoftext|>",
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_special_tokens(names[-2:])
    return tokenizer


def _read_merges() -> list[tuple[str, str]]:
    packed = resources.files(__package__).joinpath("vocabulary", "merges.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").splitlines()
    return [(first, second) for first, second in (line.split(" ") for line in lines)]


def _byte_characters() -> list[str]:
    """The character that stands for each byte, in vocabulary order: the visible ones first, as themselves."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in visible] + [chr(256 + i) for i in range(256 - len(visible))]
