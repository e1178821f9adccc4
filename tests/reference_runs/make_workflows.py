#!/usr/bin/env python3
"""Write examples/workflows: each workflow in API form, and in the form of ComfyUI's own page, laid out in columns.

    python make_workflows.py http://127.0.0.1:8188

The server is asked what its nodes look like (/object_info); it needs the packs that the workflows use, and our nodes.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "workflows"
COLUMN_PX, GAP_PX, ROW_PX, HEAD_PX = 400, 60, 26, 60

Node = tuple[str, int, dict[str, Any]]
"""Class, column, inputs: values, or [node, output]."""

_CLIP: dict[str, Node] = {
    "checkpoint": ("CheckpointLoaderSimple", 0, {"ckpt_name": "sd15.safetensors"}),
    "motion": ("ADE_LoadAnimateDiffModel", 0, {"model_name": "mm_sd15_v3.safetensors"}),
    "positive": (
        "CLIPTextEncode",
        1,
        {"clip": ["checkpoint", 1], "text": "portrait photo of a smiling woman in a park, detailed eyes"},
    ),
    "negative": ("CLIPTextEncode", 1, {"clip": ["checkpoint", 1], "text": "blurry, deformed"}),
    "m_models": ("ADE_ApplyAnimateDiffModelSimple", 1, {"motion_model": ["motion", 0]}),
    "context": ("ADE_StandardStaticContextOptions", 0, {"context_length": 16, "context_overlap": 4}),
}


def _evolved(model: list[Any], column: int) -> Node:
    inputs = {"beta_schedule": "autoselect", "m_models": ["m_models", 0], "context_options": ["context", 0]}
    return "ADE_UseEvolvedSampling", column, {"model": model} | inputs


def _sampler(model: list[Any], column: int) -> Node:
    return "KSampler", column, {
        "model": model, "positive": ["positive", 0], "negative": ["negative", 0], "latent_image": ["latent", 0],
        "seed": 7, "steps": 20, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
    }  # fmt: skip


WORKFLOWS: dict[str, dict[str, Node]] = {
    # The Impact Pack's example with one node replaced, and the one that makes SEGS of a mask.
    "detail_animatediff": _CLIP
    | {
        "evolved": _evolved(["checkpoint", 0], 2),
        "latent": ("EmptyLatentImage", 1, {"width": 768, "height": 512, "batch_size": 24}),
        "sampler": _sampler(["evolved", 0], 2),
        "frames": ("VAEDecode", 2, {"samples": ["sampler", 0], "vae": ["checkpoint", 2]}),
        "black": ("SolidMask", 2, {"value": 0.0, "width": 768, "height": 512}),
        "white": ("SolidMask", 2, {"value": 1.0, "width": 160, "height": 160}),
        "mask": (
            "MaskComposite",
            3,
            {"destination": ["black", 0], "source": ["white", 0], "x": 304, "y": 96, "operation": "add"},
        ),
        "segs": ("AnimDetail_MaskToSEGS_for_AnimateDiff", 3, {"mask": ["mask", 0]}),
        "pipe": (
            "ToBasicPipe",
            3,
            {
                "model": ["evolved", 0],
                "clip": ["checkpoint", 1],
                "vae": ["checkpoint", 2],
                "positive": ["positive", 0],
                "negative": ["negative", 0],
            },
        ),
        "detailer": (
            "AnimDetail_DetailerForEachPipeForAnimateDiff",
            4,
            {"image_frames": ["frames", 0], "segs": ["segs", 0], "basic_pipe": ["pipe", 0], "seed": 7, "steps": 12},
        ),
        "save": ("SaveAnimatedWEBP", 5, {"images": ["detailer", 0], "filename_prefix": "detailed", "fps": 8.0}),
    },
    # An engine of the MODEL with its LoRA and motion model, for ComfyUI's own sampler and for the detailer alike.
    "accelerate_any_sampler": _CLIP
    | {
        "lora": ("LoraLoaderModelOnly", 1, {"model": ["checkpoint", 0], "lora_name": "style.safetensors"}),
        "evolved": _evolved(["lora", 0], 2),
        "engines": (
            "AnimDetail_Engines",
            2,
            {"model": ["evolved", 0], "action": "build where there is none", "precision": "fp16"},
        ),
        "latent": ("EmptyLatentImage", 1, {"width": 512, "height": 512, "batch_size": 24}),
        "sampler": _sampler(["engines", 0], 3),
        "frames": ("VAEDecode", 4, {"samples": ["sampler", 0], "vae": ["checkpoint", 2]}),
        "save": ("SaveAnimatedWEBP", 4, {"images": ["frames", 0], "filename_prefix": "accelerated", "fps": 8.0}),
    },
}


def specs_of(about: dict[str, Any]) -> dict[str, list[Any]]:
    return about["input"].get("required", {}) | about["input"].get("optional", {})


def is_socket(spec: list[Any]) -> bool:
    return not isinstance(spec[0], list) and spec[0] not in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def default_of(spec: list[Any]) -> Any:
    options = spec[1] if len(spec) > 1 else {}
    choices = spec[0] if isinstance(spec[0], list) else options.get("options")
    return options.get("default", choices[0] if choices else "")


def filled(node: Node, info: dict[str, Any]) -> dict[str, Any]:
    """The node's inputs with every widget's value, in the order of the widgets."""
    kind, _, given = node
    specs = specs_of(info[kind])
    unknown = set(given) - set(specs)
    assert not unknown, f"{kind} has no {unknown}"
    return {
        name: given.get(name, default_of(spec) if not is_socket(spec) else None)
        for name, spec in specs.items()
        if name in given or not is_socket(spec)
    }


def api_form(nodes: dict[str, Node], info: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {"class_type": node[0], "inputs": filled(node, info), "_meta": {"title": info[node[0]]["display_name"]}}
        for name, node in nodes.items()
    }


def page_form(nodes: dict[str, Node], info: dict[str, Any]) -> dict[str, Any]:
    """As ComfyUI's page saves it."""
    numbers = {name: number for number, name in enumerate(nodes, 1)}
    links: list[list[Any]] = []
    made, heights = [], dict.fromkeys(range(20), 0)
    for name, node in nodes.items():
        kind, column, given = node
        about = info[kind]
        specs = specs_of(about)
        sockets, widgets = [], []
        for slot, (input_name, spec) in enumerate((n, s) for n, s in specs.items() if is_socket(s)):
            link = None
            if input_name in given:
                source, output = given[input_name]
                link = len(links) + 1
                links.append([link, numbers[source], output, numbers[name], slot, spec[0]])
            sockets.append({"name": input_name, "type": spec[0], "link": link})
        for input_name, value in filled(node, info).items():
            if not is_socket(specs[input_name]):
                widgets.append(value)
                if input_name == "seed":
                    widgets.append("fixed")  # the page's own widget: what becomes of it after a run
        outputs = [
            {"name": n, "type": t, "links": []} for n, t in zip(about["output_name"], about["output"], strict=True)
        ]
        rows = max(len(sockets), len(outputs)) + len(widgets) + 4 * (kind == "CLIPTextEncode")
        height = HEAD_PX + ROW_PX * rows
        made.append({
            "id": numbers[name], "type": kind, "pos": [column * (COLUMN_PX + GAP_PX), heights[column]],
            "size": [COLUMN_PX, height - 30], "flags": {}, "order": numbers[name] - 1, "mode": 0, "inputs": sockets,
            "outputs": outputs, "properties": {"Node name for S&R": kind}, "widgets_values": widgets,
        })  # fmt: skip
        heights[column] += height + GAP_PX
    for link, source, output, *_ in links:
        made[source - 1]["outputs"][output]["links"].append(link)
    return {
        "last_node_id": len(made), "last_link_id": len(links), "nodes": made, "links": links, "groups": [],
        "config": {}, "extra": {}, "version": 0.4,
    }  # fmt: skip


def main() -> None:
    with urllib.request.urlopen(f"{sys.argv[1]}/object_info") as reply:
        info = json.load(reply)
    FOLDER.mkdir(exist_ok=True)
    for name, nodes in WORKFLOWS.items():
        for suffix, form in (("_api", api_form(nodes, info)), ("", page_form(nodes, info))):
            path = FOLDER / f"{name}{suffix}.json"
            path.write_text(json.dumps(form, indent=1) + "\n", encoding="utf-8")
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
