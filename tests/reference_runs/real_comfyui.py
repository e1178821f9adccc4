"""A real ComfyUI checkout in this process, on the CPU, with the packs that the reference is made of, and the tiny
checkpoints of ``golden/tiny_models.py`` in it. Run with a Python that has ComfyUI's requirements."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
ADE, ACN, IMPACT = "ComfyUI-AnimateDiff-Evolved", "ComfyUI-Advanced-ControlNet", "ComfyUI-Impact-Pack"

# Imported by ComfyUI or the packs, and not needed for what is run here.
_UNNEEDED = (
    "torchaudio", "torchaudio.functional", "torchaudio.transforms", "spandrel", "segment_anything",
    "piexif", "git", "dill", "matplotlib", "matplotlib.pyplot",
)  # fmt: skip


class _Absent(types.ModuleType):
    """Stands for a package that is not installed: anything may be imported from it, nothing of it works."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        child = _Absent(f"{self.__name__}.{name}")
        sys.modules[child.__name__] = child
        setattr(self, name, child)
        return child

    def __call__(self, *_: Any, **__: Any) -> Any:
        return _Absent("absent")


def stand_in(name: str) -> None:
    module = _Absent(name)
    module.__path__ = []
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    sys.modules[name] = module


def stand_in_for_what_is_missing() -> list[str]:
    """torchvision is needed: where its operators do not load beside this torch, they are declared, and its transforms
    work all the same."""
    if importlib.util.find_spec("torchvision") is None:
        sys.exit("error: ComfyUI's Python needs torchvision, of which the Impact Pack blurs with the transforms")
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        _declare_operators()
    missing = []
    for name in _UNNEEDED:
        try:
            found = importlib.util.find_spec(name) is not None
        except (ImportError, ValueError):
            found = False
        if not found:
            stand_in(name)
            missing.append(name)
    return missing


def _declare_operators() -> None:
    import torch

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _KEPT.append(torch.library.Library("torchvision", "FRAGMENT"))
    for name in ("nms", "qnms"):
        _KEPT[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_KEPT: list[Any] = []  # a Library that is collected takes its operators along


TINY_CHANNELS, FULL_CHANNELS = (32, 64, 64, 64), (320, 640, 1280, 1280)


class _SizedSource(importlib.machinery.SourceFileLoader):
    """Reads AnimateDiff-Evolved with another UNet's channels in the place of SD 1.5's, which its source has."""

    channels = TINY_CHANNELS

    def get_code(self, fullname: str) -> Any:
        return compile(self.get_data(self.path), self.path, "exec", dont_inherit=True)

    def get_data(self, path: str) -> bytes:
        source = Path(path).read_text(encoding="utf-8")
        for old, new in (
            (r"layer_channels = \(\d+, *\d+, *\d+\)", f"layer_channels = {self.channels[:3]}"),
            (r"layer_channels = \(\d+, *\d+, *\d+, *\d+\)", f"layer_channels = {self.channels}"),
            (r"self\.middle_channel = \d+", f"self.middle_channel = {self.channels[-1]}"),
        ):
            source, count = re.subn(old, new, source)
            assert count == 1, f"{path} is another version: {old} is not in it"
        return source.encode()


class _SizedFinder:
    def __init__(self, root: Path, channels: tuple[int, ...]) -> None:
        self.path, self.channels = root / "custom_nodes" / ADE / "animatediff" / "motion_module_ad.py", channels

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if not fullname.endswith("animatediff.motion_module_ad"):
            return None
        loader = _SizedSource(fullname, str(self.path))
        loader.channels = self.channels
        return importlib.util.spec_from_file_location(fullname, self.path, loader=loader)


def prepare(root: Path, *arguments: str, channels: tuple[int, ...] = TINY_CHANNELS) -> None:
    """Make ComfyUI's modules importable, as ``main.py --cpu`` does."""
    if not (root / "comfy" / "samplers.py").exists():
        sys.exit(f"error: {root} is no ComfyUI checkout: comfy/samplers.py is not in it")
    sys.path.insert(0, str(root))
    sys.argv = ["main.py", "--cpu", *arguments]
    stand_in_for_what_is_missing()
    sys.meta_path.insert(0, _SizedFinder(root, channels))
    import comfy.options

    comfy.options.enable_args_parsing(True)


def use_tiny_sizes() -> None:
    import comfy.supported_models as supported

    supported.SD15.unet_config = dict(supported.SD15.unet_config, context_dim=64, model_channels=32)


def load_pack(root: Path, name: str) -> Any:
    """The module of a custom node pack, its nodes known to ComfyUI."""
    import nodes

    path = root / "custom_nodes" / name
    module_name = name.replace("-", "_")
    spec = importlib.util.spec_from_file_location(
        module_name, path / "__init__.py", submodule_search_locations=[str(path)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    nodes.NODE_CLASS_MAPPINGS.update(module.NODE_CLASS_MAPPINGS)
    return module


def load_impact(root: Path) -> None:
    """The Impact Pack's own modules, without its server routes."""
    sys.path.insert(0, str(root / "custom_nodes" / IMPACT / "modules"))
    server = types.ModuleType("server")
    server.PromptServer = _NoServer
    sys.modules["server"] = server
    stand_in("impact.impact_server")
    import nodes
    from comfy_extras import nodes_align_your_steps, nodes_differential_diffusion, nodes_gits, nodes_mask

    nodes.NODE_CLASS_MAPPINGS |= nodes_mask.NODE_CLASS_MAPPINGS | {
        "AlignYourStepsScheduler": nodes_align_your_steps.AlignYourStepsScheduler,
        "GITSScheduler": nodes_gits.GITSScheduler,
    }
    # Impact Pack 7.10.6 calls these by names that ComfyUI has given up since.
    for node, name in (
        (nodes_differential_diffusion.DifferentialDiffusion, "apply"),
        (nodes_gits.GITSScheduler, "get_sigmas"),
    ):
        if not hasattr(node, name):
            setattr(node, name, lambda self, *args, node=node, **options: node.execute(*args, **options))


class _NoServer:
    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *_: Any, **__: Any) -> Any:
        return lambda function: function


_NoServer.instance = _NoServer()


def write_tiny_checkpoints(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tiny_sd15.safetensors").exists():
        subprocess.run([sys.executable, GOLDEN / "tiny_models.py", folder], check=True, stdout=subprocess.DEVNULL)


def load_unet(path: Path) -> Any:
    """The MODEL of a checkpoint file, float32."""
    import comfy.model_detection
    import comfy.model_management
    import comfy.model_patcher
    import comfy.utils
    import torch

    tensors, prefix = comfy.utils.load_torch_file(str(path)), "model.diffusion_model."
    config = comfy.model_detection.model_config_from_unet(tensors, prefix)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model(tensors, prefix, device="cpu")
    model.load_model_weights(tensors, prefix)
    management = comfy.model_management
    return comfy.model_patcher.ModelPatcher(
        model, load_device=management.get_torch_device(), offload_device=management.unet_offload_device()
    )


def load_vae(path: Path) -> Any:
    """The VAE of a full-size checkpoint file, float32."""
    import comfy.sd
    import comfy.utils
    import torch

    prefix = "first_stage_model."
    tensors = comfy.utils.load_torch_file(str(path))
    tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return comfy.sd.VAE(sd=tensors, dtype=torch.float32)


def load_tiny_vae(path: Path) -> Any:
    import comfy.sd
    import comfy.utils
    import torch

    prefix = "first_stage_model."
    tensors = comfy.utils.load_torch_file(str(path))
    tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    channels = {
        "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 2, 2, 2], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    blocks = {int(key.split(".")[4]) for key in tensors if key.startswith("encoder.down.0.block.")}
    channels["num_res_blocks"] = len(blocks)
    config = {"params": {"ddconfig": channels, "embed_dim": 4}}
    return comfy.sd.VAE(sd=tensors, config=config, dtype=torch.float32)
