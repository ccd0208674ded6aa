"""Which runtime an engine is built for, what this machine has of them, and which GPU is here."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Final

from sigd.models.build.request import BuildRequest
from sigd.models.cpu_choice import choose_cpu_backend
from sigd.models.denormals import float_environment_kept
from sigd.models.engine import INSTALL
from sigd.models.errors import BackendUnavailable
from sigd.models.gpu.cuda import gpu_facts
from sigd.models.manifest import RuntimeName
from sigd.models.reading import ReadOptions
from sigd.models.spec import read_spec

_MODULES: Final[dict[RuntimeName, str]] = {
    "native": "sigd.models.native._kernels",
    "onnxruntime": "onnxruntime",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
}


@dataclass(frozen=True, slots=True)
class Gpu:
    """The GPU that CUDA takes first.

    Attributes:
        name: for example "NVIDIA GeForce RTX 3090".
        compute_capability: for example "8.6".
        cuda_version: the newest CUDA that its driver supports, for example "13.0".
    """

    name: str
    compute_capability: str
    cuda_version: str


@dataclass(frozen=True, slots=True)
class Machine:
    """What a build may choose from.

    Attributes:
        installed: the runtimes that can be imported.
        gpu: the GPU; None without one.
        no_gpu_because: why there is none, for people; empty where there is one.
    """

    installed: frozenset[RuntimeName]
    gpu: Gpu | None
    no_gpu_because: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The runtime to build for, and why."""

    runtime: RuntimeName
    why: str


def this_machine() -> Machine:
    """Look: import each runtime, ask the CUDA driver for its first device."""
    installed = frozenset(name for name, module in _MODULES.items() if _importable(module))
    found = _first_gpu()
    return Machine(installed, found, "") if isinstance(found, Gpu) else Machine(installed, None, found)


def choose_runtime(request: BuildRequest, machine: Machine) -> Choice:
    """What "auto" means on that machine; a runtime that was named stays, if it is there.

    Raises:
        BackendUnavailable: it is not installed, or needs a GPU; with the way to get it.
        ValueError: TensorRT builds for the GPU that is here, and another was asked for.
    """
    choice = Choice(request.runtime, "asked for") if request.runtime != "auto" else _auto(request, machine)
    runtime, gpu = choice.runtime, machine.gpu
    if runtime not in machine.installed:
        raise BackendUnavailable(
            f"{runtime} is not installed here: {INSTALL[runtime]}; or build for ONNX Runtime: --runtime"
            " onnxruntime"
        )
    if runtime == "tensorrt" and gpu is None:
        raise BackendUnavailable(
            "TensorRT builds only on the GPU that is to run the engine, and none can be used here"
            f" ({machine.no_gpu_because}): build on"
            " the machine that has it, or for it from here: --runtime tensorrt-rtx --compute-capability 8.6"
        )
    if runtime == "tensorrt" and gpu and request.compute_capability not in (None, gpu.compute_capability):
        raise ValueError(
            f"TensorRT builds for the GPU that is here, {gpu.name} with compute capability"
            f" {gpu.compute_capability}, not for"
            f" {request.compute_capability}: leave --compute-capability out, or give --runtime tensorrt-rtx"
        )
    return choice


def load(runtime: RuntimeName) -> ModuleType:
    """The module of a runtime. Raises BackendUnavailable where it cannot be imported."""
    try:
        return importlib.import_module(_MODULES[runtime])
    except (ImportError, OSError) as error:
        raise BackendUnavailable(f"{runtime} cannot be imported ({error}): {INSTALL[runtime]}") from error


def _auto(request: BuildRequest, machine: Machine) -> Choice:
    gpu, wanted = machine.gpu, request.compute_capability
    if gpu is None:
        if wanted is not None:
            return Choice("tensorrt-rtx", f"it builds for compute capability {wanted} without a GPU")
        return _on_cpu(request, machine)
    if wanted not in (None, gpu.compute_capability):
        return Choice(
            "tensorrt-rtx", f"it builds for compute capability {wanted}, and {gpu.name} has another"
        )
    if "tensorrt" in machine.installed:
        return Choice("tensorrt", f"for {gpu.name}")
    if wanted is not None:
        return Choice("tensorrt-rtx", f"for {gpu.name}, as TensorRT is not installed")
    return Choice(
        "onnxruntime", f"there is {gpu.name}, but no TensorRT to build for it: {INSTALL['tensorrt']}"
    )


def _on_cpu(request: BuildRequest, machine: Machine) -> Choice:
    no_gpu = f"no GPU can be used here ({machine.no_gpu_because})"
    if "native" not in machine.installed:
        return Choice("onnxruntime", f"{no_gpu}, and the native kernels are not built: {INSTALL['native']}")
    if request.precision == "bf16":
        return Choice("native", f"{no_gpu}, and only the native kernels have weights in bf16")
    if request.precision != "fp32" or request.optimization_level is not None:
        return Choice("onnxruntime", no_gpu)
    with float_environment_kept():
        choice = choose_cpu_backend(read_spec(request.model, options=ReadOptions(request.sizes)))
    return Choice(choice.backend, f"{no_gpu}, and {choice.why}")


def _importable(module: str) -> bool:
    try:
        importlib.import_module(module)
    except (ImportError, OSError):
        return False
    return True


def _first_gpu() -> Gpu | str:
    """CUDA's first device, or why there is none. No context is made, so nothing is taken from other
    tenants."""
    try:
        facts = gpu_facts(0)
    except BackendUnavailable as error:
        return str(error)
    code, version = importlib.import_module("cuda.bindings.driver").cuDriverGetVersion()
    if int(code):
        return f"the CUDA driver does not say its version ({code}): run sigd doctor"
    return Gpu(facts.name, facts.compute_capability, f"{version // 1000}.{version % 1000 // 10}")
