"""What an extra brings is named by its packages, so that the command works wherever this package came from."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest

from animdetail_trt import extras


def test_the_command_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = ["torch>=2.4", "onnx>=1.17; extra == 'rtx'", 'cuda-python<14,>=13; extra == "rtx"', "a; extra == 'rtx-2'"]
    monkeypatch.setattr(extras, "requires", lambda name: listed)
    assert extras.install_command("rtx") == "pip install 'onnx>=1.17' 'cuda-python<14,>=13'"
    assert extras.install_command("rtx", "--upgrade ").startswith("pip install --upgrade 'onnx")


def test_a_source_tree_is_installed_from_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extras, "requires", unknown)
    assert extras.install_command("rtx") == "pip install '.[rtx]' (in the source folder)"
