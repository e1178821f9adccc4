"""The package as a whole: what importing it costs, and that nothing optional is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import animdetail_trt as adt
from animdetail_trt.extras import install_command

# In the interpreters below these cannot be imported, installed or not.
ABSENT = ("tensorrt", "tensorrt_rtx", "onnx", "onnxruntime", "polygraphy", "cuda", "cupy", "cv2")
HIDE = f"""
import sys
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {ABSENT!r} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
"""


def run_python(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_quick_and_loads_nothing_heavy() -> None:
    """Under 0.3 s, the best of three: the machine may be busy, the package is not."""
    code = """
import sys, time
start = time.perf_counter()
import animdetail_trt
print(time.perf_counter() - start)
heavy = {"torch", "numpy", "diffusers", "transformers", "av", "rich", "cv2", "scipy"} & set(sys.modules)
assert not heavy, heavy
"""
    assert min(float(run_python(code)) for _ in range(3)) < 0.3


def test_public_names_resolve() -> None:
    for name in adt.__all__:
        assert getattr(adt, name) is not None
    assert set(adt.__all__) <= set(dir(adt))
    assert not {"Any", "TYPE_CHECKING"} & set(dir(adt))
    assert "sampling" in adt.__all__


def test_what_observer_takes_is_public() -> None:
    assert issubclass(adt.RunReport, adt.Observer)
    assert adt.RunReport().as_dict() == {"total_ms": 0.0, "segments": []}
    for methods in (vars(adt.Observer), {"as_dict": adt.RunReport.as_dict}):
        assert all(method.__doc__ for name, method in methods.items() if not name.startswith("_"))


def test_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(adt, "no_such_name")


def test_a_clip_is_detailed_where_everything_optional_is_absent(tiny: Path) -> None:
    code = (
        HIDE
        + """
import numpy as np
import torch
import animdetail_trt as adt
pipe = adt.load_pipe(sys.argv[1], motion_module=sys.argv[2])
tokens = [[torch.zeros(1, 77, 64), {}]]
seg = adt.SEG(None, np.ones((24, 24), np.float32), 1.0, (8, 8, 32, 32), (8, 8, 32, 32), "face")
frames = torch.rand(2, 40, 40, 3)
image, *_ = adt.DetailerForEachPipeForAnimateDiff.doit(
    frames, ((40, 40), [seg]), guide_size=32, steps=1, basic_pipe=pipe.with_conditioning(tokens, tokens)
)
assert (image != frames).any() and torch.isfinite(image).all()
masks = torch.zeros(2, 40, 40)
masks[:, 10:30, 10:30] = 1
(_, found), = adt.MaskToSEGS_for_AnimateDiff.doit(masks)
print(len(found))
"""
    )
    assert run_python(code, tiny / "tiny_sd15.safetensors", tiny / "tiny_mm_v3.safetensors").strip() == "1"


def test_doctor_runs_where_everything_optional_is_absent() -> None:
    out = run_python(HIDE + "from animdetail_trt.cli import main; sys.exit(main(['doctor']))")
    assert "".join(install_command("detect").split()) in "".join(out.split())  # lines are broken
