"""Prompts to tokens: weights in parentheses, CLIP's byte-pair vocabulary, chunks of 77. ComfyUI's rules for SD 1.5."""

from __future__ import annotations

import gzip
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, TypeAlias

from animdetail_trt.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

Token: TypeAlias = tuple[int, float]
"""(id, weight)"""
Embeddings: TypeAlias = Mapping[str, Sequence[int]]
"""Textual inversions by name: the ids of their vectors, behind the vocabulary's."""

START, END = 49406, 49407
CHUNK_TOKENS = 77  # start, 75 of the prompt, end
SPLIT_TOKENS = 8  # a run of tokens as long as this is split where a chunk ends, a shorter one moves to the next chunk
NESTED_WEIGHT = 1.1

_EMBEDDING = "embedding:"
_EMBEDDING_SUFFIXES = (".safetensors", ".pt", ".bin")
# What names a file that was not given, or that is given elsewhere.
_EMBEDDINGS = re.compile(r"(?:^|(?<=[\s(,]))embedding:[^\s(),:]+")
_LORA = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>")
# Escaped parentheses wait as code points that Unicode reserves for uses like this one.
_ESCAPED = {r"\(": "\ufdd0", r"\)": "\ufdd1"}


def tokenize(prompt: str, embeddings: Embeddings | None = None) -> list[list[Token]]:
    """The prompt as chunks of exactly 77 (id, weight), each starting with 49406 and filled up with 49407.

    ``(text:1.3)`` sets a weight, ``(text)`` multiplies the weight around it by 1.1, ``\\(`` and ``\\)`` are plain
    parentheses. ``embedding:NAME``, at the start of a text or behind a space, stands for the textual inversion of that
    name; one that is not among those given is left out, and where none is given it is text. Whatever does not parse,
    such as a parenthesis without its other half, is text, and so are LoRAs. Of files that are not read a warning is
    logged.
    """
    if not isinstance(prompt, str):
        raise InputError(f"a prompt is text; this one is a {type(prompt).__name__}: {prompt!r:.80}")
    _note_files(prompt, embeddings)
    runs = ([(token, weight) for token in run] for part, weight in _parts(prompt) for run in _runs(part, embeddings))
    return [[(START, 1.0), *chunk, *[(END, 1.0)] * (CHUNK_TOKENS - 1 - len(chunk))] for chunk in _fill_chunks(runs)]


def embeddings_in(prompt: str) -> set[str]:
    """The names of textual inversions that a prompt calls, with and without the commas around them."""
    called = (_name_and_words(part)[0] for part, _ in _parts(prompt) if part.startswith(_EMBEDDING))
    return {file_stem(spelled) for name in called for spelled in (name, name.strip(","))}


def _parts(prompt: str) -> Iterator[tuple[str, float]]:
    """Text and weight, a textual inversion always at a text's start."""
    for text, weight in weighted_segments(prompt):
        for part in re.split(rf"[ \n](?={_EMBEDDING})", text):
            yield part, weight


def _runs(text: str, embeddings: Embeddings | None) -> Iterator[Sequence[int]]:
    """The ids of a textual inversion that ``text`` begins with, and those of its words."""
    if embeddings and text.startswith(_EMBEDDING):
        name, words = _name_and_words(text)
        found = embeddings.get(file_stem(name))
        if found is None and (bare := name.strip(",")) != name:
            found = embeddings.get(file_stem(bare))
            words.insert(0, name[len(bare) :])
        if found is None:
            logger.warning(
                "embedding:%s is left out of the prompt: the textual inversions given are %s. A space ends a name",
                name, ", ".join(embeddings),
            )  # fmt: skip
        yield found or ()
        text = " ".join(words)
    if embeddings and (names := _EMBEDDINGS.findall(text)):
        logger.warning("encoded as words: %s. A textual inversion needs a space before it", ", ".join(names))
    yield encode_text(text)


def _name_and_words(text: str) -> tuple[str, list[str]]:
    """What a text that begins with ``embedding:`` calls, commas and all, and the words behind it."""
    name, *words = text.removeprefix(_EMBEDDING).split() or [""]
    return name, words


def file_stem(name: str) -> str:
    """What a textual inversion is called: its file's name, without folder and suffix."""
    name = re.split(r"[/\\]", name)[-1]
    while name.endswith(_EMBEDDING_SUFFIXES):
        name = name.rpartition(".")[0]
    return name


def _note_files(prompt: str, embeddings: Embeddings | None) -> None:
    if not embeddings and (names := _EMBEDDINGS.findall(prompt)):
        logger.warning(
            "textual inversions are encoded as words: %s. Give load_pipe embeddings=[path], or the command line "
            "--embedding FILE",
            ", ".join(names),
        )
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
