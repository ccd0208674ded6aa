"""What "auto" means on each kind of machine, and how a runtime that is not there is refused."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from sigd.models.build.request import BuildRequest
from sigd.models.build.runtimes import Gpu, Machine, choose_runtime, load, this_machine
from sigd.models.errors import BackendUnavailable
from sigd.models.manifest import RuntimeName

GPU = Gpu("NVIDIA GeForce RTX 3090", "8.6", "13.0")
ALL: frozenset[RuntimeName] = frozenset({"onnxruntime", "tensorrt", "tensorrt-rtx"})
NO_TENSORRT: frozenset[RuntimeName] = frozenset({"onnxruntime", "tensorrt-rtx"})
ONLY_ONNXRUNTIME: frozenset[RuntimeName] = frozenset({"onnxruntime"})


def choose(installed: frozenset[RuntimeName], gpu: Gpu | None, **changes: Any) -> tuple[str, str]:
    request = BuildRequest(**{"model": Path("m.onnx"), "engine": Path("m.engine"), **changes})
    choice = choose_runtime(request, Machine(installed, gpu, "" if gpu else "no driver"))
    return choice.runtime, choice.why


@pytest.mark.parametrize(
    ("installed", "gpu", "capability", "runtime", "why"),
    [
        (ALL, GPU, None, "tensorrt", "RTX 3090"),
        (ALL, GPU, "8.6", "tensorrt", "RTX 3090"),
        (ALL, GPU, "8.9", "tensorrt-rtx", "has another"),
        (NO_TENSORRT, GPU, "8.6", "tensorrt-rtx", "TensorRT is not installed"),
        (NO_TENSORRT, GPU, None, "onnxruntime", r"pip install 'sigd\[gpu\]'"),
        (ALL, None, None, "onnxruntime", "no driver"),
        (ALL, None, "8.6", "tensorrt-rtx", "without a GPU"),
        (ONLY_ONNXRUNTIME, None, None, "onnxruntime", "no driver"),
    ],
)
def test_auto_takes_what_the_machine_can_run_and_says_why(
    installed: frozenset[RuntimeName], gpu: Gpu | None, capability: str | None, runtime: str, why: str
) -> None:
    chosen = choose(installed, gpu, compute_capability=capability)
    assert chosen[0] == runtime
    assert re.search(why, chosen[1])


@pytest.mark.parametrize(
    ("runtime", "extra"), [("tensorrt", r"sigd\[gpu\]"), ("tensorrt-rtx", r"sigd\[rtx\]")]
)
def test_a_runtime_that_is_not_installed_names_the_extra_that_brings_it(runtime: str, extra: str) -> None:
    with pytest.raises(BackendUnavailable, match=f"{runtime} is not installed here: pip install '{extra}'"):
        choose(ONLY_ONNXRUNTIME, GPU, runtime=runtime)


def test_auto_for_a_gpu_elsewhere_needs_the_cross_builder() -> None:
    with pytest.raises(BackendUnavailable, match=r"pip install 'sigd\[rtx\]'"):
        choose(ONLY_ONNXRUNTIME, None, compute_capability="8.6")


def test_tensorrt_without_a_gpu_points_to_the_cross_builder() -> None:
    with pytest.raises(
        BackendUnavailable, match=r"no driver.*--runtime tensorrt-rtx --compute-capability 8\.6"
    ):
        choose(ALL, None, runtime="tensorrt")


def test_tensorrt_builds_for_no_other_gpu() -> None:
    with pytest.raises(ValueError, match=r"RTX 3090 with compute capability 8\.6, not for 8\.9"):
        choose(ALL, GPU, runtime="tensorrt", compute_capability="8.9")


def test_loading_what_cannot_be_imported_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'sigd\[rtx\]'"):
        load("tensorrt-rtx")


def test_this_machine_has_at_least_onnx_runtime() -> None:
    machine = this_machine()
    assert "onnxruntime" in machine.installed
    assert bool(machine.no_gpu_because) == (machine.gpu is None)
