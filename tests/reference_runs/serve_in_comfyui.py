#!/usr/bin/env python3
"""Our nodes in a real ComfyUI server, over HTTP: the interface, a workflow with its progress, an interrupt, uninstall.

    PYTHON_OF_COMFYUI serve_in_comfyui.py PATH_TO_COMFYUI

Installs the nodes into the checkout's custom_nodes and takes them out again; all that the server writes goes to a
temporary folder. Exits 1 where something is not as it should be.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PYTHON_PATH = HERE.parents[1] / "python"
SWAPPED = ("DetailerForEachPipeForAnimateDiff", "SEGSDetailerForAnimateDiff", "SEGSPaste", "MaskToSEGS_for_AnimateDiff")
DETAILER = "AnimDetail_DetailerForEachPipeForAnimateDiff"

LAUNCHER = """
import runpy, sys
from pathlib import Path
sys.path.insert(0, {here!r})
import real_comfyui as real
root = Path({root!r})
real.prepare(root, *sys.argv[1:])
real.use_tiny_sizes()
import torch
torch.set_num_threads(1)
runpy.run_path(str(root / "main.py"), run_name="__main__")
"""

# A custom node of this check: what a workflow would load, from the tiny checkpoints.
TINY_NODES = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, {here!r})
import real_comfyui as real
FOLDER = Path({tiny!r})

def conditioning(seed):
    return [[torch.randn(1, 77, 64, generator=torch.Generator().manual_seed(seed)), {{}}]]

class TinyPipe:
    RETURN_TYPES, FUNCTION, CATEGORY = ("BASIC_PIPE", "MODEL", "CONDITIONING", "CONDITIONING", "VAE"), "load", "check"
    @classmethod
    def INPUT_TYPES(cls):
        return {{"required": {{"motion": ("STRING", {{"default": ""}})}}}}
    def load(self, motion):
        import nodes
        model, ade = real.load_unet(FOLDER / "tiny_sd15.safetensors"), nodes.NODE_CLASS_MAPPINGS
        if motion:
            loaded = ade["ADE_LoadAnimateDiffModel"]().load_motion_model(motion + ".safetensors")[0]
            applied = ade["ADE_ApplyAnimateDiffModelSimple"]().apply_motion_model(loaded)[0]
            model = ade["ADE_UseEvolvedSampling"]().use_evolved_sampling(model, "autoselect", m_models=applied)[0]
        vae = real.load_tiny_vae(FOLDER / "tiny_sd15.safetensors")
        pipe = model, "clip", vae, conditioning(1), conditioning(2)
        return pipe, model, pipe[3], pipe[4], vae

class TinyClip:
    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE", "MASK"), "make", "check"
    @classmethod
    def INPUT_TYPES(cls):
        return {{"required": {{"frames": ("INT", {{"default": 6}})}}}}
    def make(self, frames):
        pixels = torch.rand(frames, 96, 96, 3, generator=torch.Generator().manual_seed(3))
        mask = torch.zeros(frames, 96, 96)
        mask[:, 32:64, 24:60] = 1
        return pixels, mask

NODE_CLASS_MAPPINGS = {{"TinyPipe": TinyPipe, "TinyClip": TinyClip}}
"""


def workflow(steps: int, motion: str = "", seed: int = 7) -> dict[str, Any]:
    """API form: a clip, its mask's segments, detailed, saved."""
    detail = {
        "image_frames": ["clip", 0], "segs": ["segs", 0], "basic_pipe": ["pipe", 0], "guide_size": 96.0,
        "guide_size_for": True, "max_size": 128.0, "seed": seed, "steps": steps, "cfg": 5.0, "sampler_name": "euler",
        "scheduler": "normal", "denoise": 0.5, "feather": 5, "refiner_ratio": 0.2, "noise_mask_feather": 20,
    }  # fmt: skip
    to_segs = {"mask": ["clip", 1], "combined": False, "crop_factor": 2.0, "bbox_fill": False, "drop_size": 4}
    return {
        "clip": {"class_type": "TinyClip", "inputs": {"frames": 6}},
        "pipe": {"class_type": "TinyPipe", "inputs": {"motion": motion}},
        "segs": {"class_type": "AnimDetail_MaskToSEGS_for_AnimateDiff", "inputs": to_segs | {"contour_fill": False}},
        "detail": {"class_type": DETAILER, "inputs": detail},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["detail", 0], "filename_prefix": "check"}},
    }


def sampled(accelerated: bool, motion: str, prefix: str) -> dict[str, Any]:
    """ComfyUI's own KSampler, with the MODEL or with what *Accelerate model* makes of it."""
    model = ["fast", 0] if accelerated else ["pipe", 1]
    sampler = {
        "model": model, "positive": ["pipe", 2], "negative": ["pipe", 3], "latent_image": ["empty", 0], "seed": 5,
        "steps": 3, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
    }  # fmt: skip
    nodes = {
        "pipe": {"class_type": "TinyPipe", "inputs": {"motion": motion}},
        "empty": {"class_type": "EmptyLatentImage", "inputs": {"width": 96, "height": 128, "batch_size": 4}},
        "detail": {"class_type": "KSampler", "inputs": sampler},
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["detail", 0], "vae": ["pipe", 4]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": prefix}},
    }
    if accelerated:
        fast = {"model": ["pipe", 1], "run": "torch", "precision": "auto"}
        nodes["fast"] = {"class_type": "AnimDetail_AccelerateModel", "inputs": fast}
    return nodes


def pictures(folder: Path, prefix: str) -> Any:
    import numpy as np
    from PIL import Image

    return np.stack([np.asarray(Image.open(path), dtype=np.int16) for path in sorted(folder.glob(f"{prefix}_*.png"))])


class Check:
    def __init__(self) -> None:
        self.wrong = 0

    def __call__(self, what: str, fine: bool, detail: str = "") -> None:
        self.wrong += not fine
        print(f"{'ok ' if fine else 'NOT'}  {what}{': ' if detail else ''}{detail}", flush=True)


def contents(root: Path) -> dict[str, str]:
    """Digests of all files, but for those that Python compiled of ComfyUI's own."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file() and (path.suffix != ".pyc" or "animdetail" in path.name)
    }


async def follow(ws: Any, prompt_id: str, on_progress: Any = None) -> tuple[str, list[int], int]:
    """Read the socket until the prompt ends -> how, the detailer's progress values, and the pictures shown."""
    import aiohttp

    values: list[int] = []
    previews = 0
    async with asyncio.timeout(240):
        async for message in ws:
            if message.type == aiohttp.WSMsgType.BINARY:
                previews += 1
                continue
            event = json.loads(message.data)
            kind, data = event["type"], event["data"]
            if data.get("prompt_id") not in (None, prompt_id):
                continue
            if kind == "progress" and data["node"] == "detail":
                values.append(data["value"])
                if on_progress is not None:
                    await on_progress(data["value"])
            elif kind in ("execution_success", "execution_error", "execution_interrupted"):
                if kind == "execution_error":
                    print(data.get("exception_message"), *data.get("traceback", []))
                return kind, values, previews
    raise AssertionError("the socket closed")


async def talk(port: int, check: Check, output: Path, log: Path) -> None:
    import aiohttp

    golden = json.loads((HERE.parent / "golden" / "node_interfaces.json").read_text())
    base = f"http://127.0.0.1:{port}"
    async with aiohttp.ClientSession() as web:

        async def get(path: str) -> Any:
            async with web.get(base + path) as reply:
                return await reply.json()

        async def post(prompt: dict[str, Any]) -> str:
            async with web.post(f"{base}/prompt", json={"prompt": prompt, "client_id": "check"}) as reply:
                answer = await reply.json()
                assert reply.status == 200, answer
                return str(answer["prompt_id"])

        info = await get("/object_info")
        for name in SWAPPED:
            check(f"/object_info of {name}", info[f"AnimDetail_{name}"]["input"] == golden[name]["input"])
        ours = sorted(name for name in info if name.startswith("AnimDetail_"))
        check("nodes that the server publishes", len(ours) >= 5, ", ".join(ours))

        async with web.ws_connect(f"{base}/ws?clientId=check", max_msg_size=0) as ws:
            for motion in ("", "tiny_mm_v3"):
                start = time.perf_counter()
                how, values, previews = await follow(ws, await post(workflow(5, motion)))
                took = time.perf_counter() - start
                check(f"a workflow{' with motion' if motion else ''} ends", how == "execution_success", f"{took:.1f} s")
                check("its progress", values == [1, 2, 3, 4, 5], f"{values}, {previews} previews")
                check("its previews", previews >= 5)

            for motion in ("", "tiny_mm_v2"):
                for accelerated in (False, True):
                    prefix = f"{'fast' if accelerated else 'plain'}{motion}"
                    how, _, _ = await follow(ws, await post(sampled(accelerated, motion, prefix)))
                    check(f"KSampler, {prefix}", how == "execution_success")
                plain, fast = pictures(output, f"plain{motion}"), pictures(output, f"fast{motion}")
                apart = int(abs(plain - fast).max())
                check(
                    "Accelerate model gives the same pictures",
                    apart <= 1,
                    f"{plain.shape}, at most {apart} of 255 apart",
                )
            told = log.read_text()
            taken = "its UNet runs in torch" in told and "its own UNet for some calls" not in told
            check("and ran all of it in our UNet", taken)

            pressed: list[float] = []

            async def press(value: int) -> None:
                if value == 3:
                    pressed.append(time.perf_counter())
                    async with web.post(f"{base}/interrupt") as reply:
                        assert reply.status == 200

            how, values, _ = await follow(ws, await post(workflow(200, seed=8)), press)
            after = time.perf_counter() - pressed[0]
            check("an interrupt ends the run", how == "execution_interrupted", f"{after * 1e3:.0f} ms after it")
            check("within one step", values[-1] <= 4, f"pressed at step 3, the last was step {values[-1]}")
            for _ in range(20):  # told before it is taken off the queue
                queue = await get("/queue")
                if not queue["queue_running"]:
                    break
                await asyncio.sleep(0.1)
            check("the queue is empty after it", not queue["queue_running"] and not queue["queue_pending"])
            how, values, _ = await follow(ws, await post(workflow(5, seed=9)))
            check("the next workflow runs", how == "execution_success" and values == [1, 2, 3, 4, 5])
            async with web.post(f"{base}/free", json={"unload_models": True, "free_memory": True}) as reply:
                check("models are unloaded when asked", reply.status == 200)
            how, values, _ = await follow(ws, await post(workflow(4, seed=10)))
            check("and loaded again", how == "execution_success" and values == [1, 2, 3, 4])


def wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> float:
    start = time.perf_counter()
    while time.perf_counter() - start < 180:
        if server.poll() is not None:
            sys.exit(f"error: the server ended with {server.returncode}:\n{log.read_text()[-4000:]}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return time.perf_counter() - start
        except OSError:
            time.sleep(0.3)
    sys.exit(f"error: the server did not start in 180 s:\n{log.read_text()[-4000:]}")


def command_line(*arguments: str) -> None:
    environment = os.environ | {"PYTHONPATH": f"{PYTHON_PATH}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    subprocess.run([sys.executable, "-m", "animdetail_trt", *arguments], check=True, env=environment)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path)
    parser.add_argument("--keep", type=Path, help="where the server writes; default: a folder that is removed")
    args = parser.parse_args()
    root, check = args.comfyui.resolve(), Check()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (args.keep or Path(scratch)).resolve()
        sys.path.insert(0, str(HERE))
        import real_comfyui as real

        real.write_tiny_checkpoints(folder / "tiny")
        (folder / "nodes").mkdir(exist_ok=True)
        names = {"here": str(HERE), "root": str(root), "tiny": str(folder / "tiny")}
        (folder / "nodes" / "tiny_nodes.py").write_text(TINY_NODES.format(**names))
        paths = {"custom_nodes": str(folder / "nodes"), "animatediff_models": str(folder / "tiny")}
        (folder / "paths.yaml").write_text(json.dumps({"check": paths}))  # JSON is YAML
        before = contents(root)
        command_line("comfyui", "install", str(root), "--python", sys.executable)
        check("install adds one file", len(set(contents(root)) - set(before)) == 1)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = folder / "server.log"
        options = ["--port", str(port), "--preview-method", "latent2rgb", "--disable-auto-launch"]
        for name in ("output", "temp", "user", "input"):
            (folder / name).mkdir(exist_ok=True)
            options += [f"--{name}-directory", str(folder / name)]
        options += ["--database-url", f"sqlite:///{folder / 'comfyui.db'}"]
        options += ["--extra-model-paths-config", str(folder / "paths.yaml"), "--disable-all-custom-nodes"]
        options += ["--whitelist-custom-nodes", "tiny_nodes.py", "animdetail_trt_nodes.py", real.ADE, real.ACN]
        environment = os.environ | {"PYTHONPATH": f"{PYTHON_PATH}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        with log.open("wb") as output:
            server = subprocess.Popen(
                [sys.executable, "-c", LAUNCHER.format(**names), *options],
                stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=root,
            )  # fmt: skip
        try:
            print(f"     the server is up after {wait_for(port, server, log):.0f} s")
            asyncio.run(talk(port, check, folder / "output", log))
        finally:
            server.terminate()
            server.wait(30)
            command_line("comfyui", "uninstall", str(root))
        after = contents(root)
        check("uninstall leaves ComfyUI as it was", after == before, f"{len(after)} files")
        left = sorted(path.name for path in (folder / "temp").rglob("*") if path.is_file())
        check("no temporary file is left behind", not left, ", ".join(left))
    return 1 if check.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
