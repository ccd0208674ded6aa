"""What the tests of building share: a stand-in for the builder, machines to choose from, and a folder that
tells."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sigd.models.build.pipeline import build_engine
from sigd.models.build.request import BuildRequest
from sigd.models.build.runtimes import Gpu, Machine
from sigd.models.manifest import Manifest

STANDIN = Path(__file__).parent / "standin"
CPU_ONLY = Machine(frozenset({"onnxruntime"}), None, "no driver")
WITH_RTX = Machine(frozenset({"onnxruntime", "tensorrt-rtx"}), None, "no driver")


class NetworkFlagOfVersion10(IntEnum):
    STRONGLY_TYPED = 1


RTX_3090 = Gpu("NVIDIA GeForce RTX 3090", "8.6", "13.0")


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-in, imported as `tensorrt_rtx`."""
    return standin_as("tensorrt_rtx", monkeypatch)


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-in, imported as `tensorrt` 10: on a machine with the GPU, and with its number for strong
    typing."""
    module = standin_as("tensorrt", monkeypatch)
    module.__version__ = "10.13.3.9"
    module.NetworkDefinitionCreationFlag = NetworkFlagOfVersion10
    module.gpu_is_here = True
    return module


def standin_as(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    found = importlib.util.spec_from_file_location(name, STANDIN / "tensorrt_rtx.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.fixture
def build_here(tmp_path: Path) -> Callable[..., Manifest]:
    """Builds for ONNX Runtime into tmp_path/built.engine: (model, **request) -> manifest."""

    def build_here(model: Path, **request: Any) -> Manifest:
        return build_engine(
            BuildRequest(model=model, engine=tmp_path / "built.engine", **request), machine=CPU_ONLY
        )

    return build_here


@pytest.fixture
def build_rtx(tmp_path: Path, rtx: ModuleType) -> Callable[..., Manifest]:
    """Builds for compute capability 8.6 with the stand-in into tmp_path/built.engine: (model, **request) ->
    manifest."""

    def build_rtx(model: Path, **request: Any) -> Manifest:
        request = {"runtime": "tensorrt-rtx", "compute_capability": "8.6", **request}
        return build_engine(
            BuildRequest(model=model, engine=tmp_path / "built.engine", **request), machine=WITH_RTX
        )

    return build_rtx


@pytest.fixture
def build_trt(tmp_path: Path, trt: ModuleType) -> Callable[..., Manifest]:
    """Builds on a machine with an RTX 3090, with the stand-in, into tmp_path/built.engine: (model, **request)
    -> manifest."""

    def build_trt(model: Path, **request: Any) -> Manifest:
        machine = Machine(frozenset({"onnxruntime", "tensorrt"}), RTX_3090, "")
        return build_engine(
            BuildRequest(model=model, engine=tmp_path / "built.engine", **request), machine=machine
        )

    return build_trt
