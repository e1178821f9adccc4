"""The text encoder of SD 1.5 (CLIP ViT-L's text half): prompts to conditioning, with ComfyUI's prompt weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from animdetail_trt.errors import CheckpointError, InputError
from animdetail_trt.models.checkpoint import Placement, load_exactly
from animdetail_trt.models.prompt import CHUNK_TOKENS, END, START, Embeddings, Token, tokenize

# Where a text encoder lies in a file: single-file checkpoints, their merges that lost a level, transformers folders.
_PREFIXES = ("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer.", "text_model.", "")
_TOKEN_TABLE = "embeddings.token_embedding.weight"
_POSITION_TABLE = "embeddings.position_embedding.weight"
_EMPTY_CHUNK: list[Token] = [(START, 1.0)] + [(END, 1.0)] * (CHUNK_TOKENS - 1)


class ClipText:
    """Prompts to conditioning. Built by ``from_state_dict``."""

    def __init__(self, model: nn.Module, layer_count: int, embeddings: Embeddings) -> None:
        self.model = model
        self.layer_count = layer_count
        self.embeddings = embeddings

    @classmethod
    def from_state_dict(
        cls,
        tensors: Mapping[str, Tensor],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        num_heads: int | None = None,
        embeddings: Mapping[str, Tensor] | None = None,
    ) -> ClipText:
        """Build the encoder that these tensors were saved from; sizes are read from their shapes.

        tensors: a whole checkpoint or a text encoder alone, in the LDM or the transformers layout; others are skipped
        num_heads: attention heads, which no shape shows; by default ``guess_head_count``
        embeddings: textual inversions by name, (n, d) each, for ``embedding:NAME`` in a prompt
        Raises CheckpointError where there is no such encoder, or a tensor is missing, unknown or of another shape.
        """
        weights = _find_weights(tensors)
        _check_family(weights)
        weights, ids = _with_rows(weights, embeddings or {})
        model, layer_count = _build(weights, num_heads)
        # Loaded below the level that transformers 5 took away from CLIPTextModel.
        inner: Any = getattr(model, "text_model", model)
        load_exactly(inner, weights, "the text encoder", Placement(torch.device(device), dtype))
        positions = inner.embeddings.position_embedding.weight.shape[0]
        inner.embeddings.position_ids = torch.arange(positions, device=device).unsqueeze(0)
        return cls(model.eval(), layer_count, ids)

    @torch.no_grad()
    def encode(self, text: str, *, clip_skip: int | None = None) -> tuple[Tensor, Tensor]:
        """Encode a prompt.

        clip_skip: which layer's output is used, counted from the last: 1 (the default) the last, 2 the one before.
            ComfyUI's -1, -2 mean the same. The final layer norm is applied to whichever it is.
        Returns cond, float32 (1, 77 * chunks, d), and pooled, float32 (1, d): the last layer at the first chunk's end.

        A token of weight w lies at ``empty + w * (token - empty)``, empty being the empty prompt's output there.
        """
        skip = self._layers_from_end(clip_skip)
        chunks = tokenize(text, self.embeddings)
        weights = torch.tensor([[weight for _, weight in chunk] for chunk in chunks])  # (chunks, 77)
        weighted = bool((weights != 1).any())
        hidden, pooled = self._run([*chunks, _EMPTY_CHUNK] if weighted else chunks, skip)
        if weighted:
            hidden, empty = hidden[:-1], hidden[-1:]
            weights = weights.unsqueeze(-1).to(hidden)  # (chunks, 77, 1)
            hidden = torch.where(weights == 1, hidden, (hidden - empty) * weights + empty)
        return hidden.reshape(1, -1, hidden.shape[-1]), pooled[:1]

    def conditioning(self, text: str, *, clip_skip: int | None = None) -> list[list[Any]]:
        """``[[cond, {"pooled_output": pooled}]]``, the shape in which pipes carry conditioning."""
        cond, pooled = self.encode(text, clip_skip=clip_skip)
        return [[cond, {"pooled_output": pooled}]]

    def _layers_from_end(self, clip_skip: int | None) -> int:
        skip = 1 if clip_skip is None else abs(clip_skip)
        if not 1 <= skip <= self.layer_count:
            raise InputError(
                f"clip_skip {clip_skip} is outside this text encoder's {self.layer_count} layers. "
                f"Use 1 (the last layer) to {self.layer_count}."
            )
        return skip

    def _run(self, chunks: list[list[Token]], skip: int) -> tuple[Tensor, Tensor]:
        """float32 (chunks, 77, d) and (chunks, d)."""
        inner: Any = getattr(self.model, "text_model", self.model)
        ids = torch.tensor([[token for token, _ in chunk] for chunk in chunks])
        out = self.model(ids.to(inner.final_layer_norm.weight.device), output_hidden_states=skip > 1)
        hidden = out.last_hidden_state
        if skip > 1:
            hidden = inner.final_layer_norm(out.hidden_states[-skip])
        return hidden.float(), out.pooler_output.float()


def guess_head_count(hidden_size: int) -> int:
    """Attention heads of a CLIP text encoder by its width.

    Every published one has heads of 64 (512 / 8, 768 / 12, 1024 / 16, 1280 / 20); tiny ones made for tests use 16.
    """
    return hidden_size // 64 if hidden_size >= 512 else max(hidden_size // 16, 1)


def _find_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors under the names that they have inside it."""
    prefix = next((p for p in _PREFIXES if p + _TOKEN_TABLE in tensors), None)
    if prefix is None:
        raise CheckpointError(
            f"there is no SD 1.5 text encoder here: no tensor is called {_PREFIXES[0]}{_TOKEN_TABLE}. "
            "Give a whole SD 1.5 checkpoint, or a folder with text_encoder/model.safetensors"
        )
    parts = ("embeddings.", "encoder.", "final_layer_norm.")
    names = {key: key.removeprefix(prefix) for key in tensors if key.startswith(prefix)}
    return {
        name: tensors[key]
        for key, name in names.items()
        # Position numbers 0..76, saved by older versions; models with a VAE beside them have an "encoder." too.
        if name.startswith(parts) and name != "embeddings.position_ids"
    }


def _check_family(weights: Mapping[str, Tensor]) -> None:
    vocabulary, _ = _matrix_shape(weights, _TOKEN_TABLE)
    positions, _ = _matrix_shape(weights, _POSITION_TABLE)
    if vocabulary <= END or positions < CHUNK_TOKENS:
        raise CheckpointError(
            f"the text encoder knows {vocabulary} tokens and {positions} positions; SD 1.5 needs {END + 1} and "
            f"{CHUNK_TOKENS}. It belongs to another model family"
        )


def _with_rows(
    weights: dict[str, Tensor], embeddings: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, range]]:
    """The weights with the vectors of ``embeddings`` behind the table of tokens, and their ids there."""
    if not embeddings:
        return weights, {}
    count, width = _matrix_shape(weights, _TOKEN_TABLE)
    ids: dict[str, range] = {}
    for name, rows in embeddings.items():
        if rows.shape[1] != width:
            raise CheckpointError(
                f"the textual inversion {name!r} has vectors of {rows.shape[1]} numbers, this text encoder's have "
                f"{width}: it belongs to another model family. Choose one for Stable Diffusion 1.5"
            )
        ids[name] = range(count, count + len(rows))
        count += len(rows)
    return weights | {_TOKEN_TABLE: torch.cat([weights[_TOKEN_TABLE].float(), *embeddings.values()])}, ids


def _build(weights: Mapping[str, Tensor], num_heads: int | None) -> tuple[nn.Module, int]:
    """An empty CLIPTextModel, on the meta device, of the sizes that the weights show; and its number of layers."""
    from transformers import CLIPTextConfig, CLIPTextModel

    vocabulary, hidden_size = _matrix_shape(weights, _TOKEN_TABLE)
    positions, _ = _matrix_shape(weights, _POSITION_TABLE)
    intermediate_size, _ = _matrix_shape(weights, "encoder.layers.0.mlp.fc1.weight")
    layer_count = 1 + max(int(m[1]) for m in map(re.compile(r"encoder\.layers\.(\d+)\.").match, weights) if m)
    heads = num_heads or guess_head_count(hidden_size)
    if hidden_size % heads:
        raise InputError(f"num_heads {heads} does not divide the text encoder's width {hidden_size}")
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layer_count,
        num_attention_heads=heads,
        max_position_embeddings=positions,
        hidden_act="quick_gelu",
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=END,
    )
    with torch.device("meta"):
        model: nn.Module = CLIPTextModel(config)
    return model, layer_count


def _matrix_shape(weights: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    if name not in weights or weights[name].ndim != 2:
        raise CheckpointError(
            f"the text encoder has no matrix {name!r}: the file is damaged, or of another model family. "
            "Download or copy it again"
        )
    rows, columns = weights[name].shape
    return rows, columns
