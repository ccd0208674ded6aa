"""CUDA as sigd uses it: a GPU, its primary context, and the errors of the driver.

Memory, streams and events come from PyCUDA, graphs and priorities from cuda-bindings
(`sigd.models.gpu.stream`).

PyCUDA has no stream capture, no graphs, no stream priorities and no flags for the primary context;
cuda-bindings has, and both work on the same primary context, which is also the one that TensorRT uses.

PyCUDA's objects belong to the thread in which they were made, and free nothing in any other; a thread that
ends while one of PyCUDA's contexts is current aborts the process. So each GPU has one thread, its owner, that
makes and frees everything, and nothing stays current there between two pieces of work. Launching, recording
and querying may be done by any thread that has called `Gpu.make_current`.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from types import ModuleType
from typing import Any, Final, TypeVar

from sigd.models.errors import BackendUnavailable
from sigd.models.gpu.memory import who_holds

OUT_OF_MEMORY: Final = 2
INVALID_CONTEXT: Final = 201
LAUNCH_OUT_OF_RESOURCES: Final = 701
_PRIMARY_CONTEXT_ACTIVE: Final = 708
# What cuda.h says of these: the process must be terminated and started again before CUDA can be used.
_STICKY: Final = {
    4: "CUDA_ERROR_DEINITIALIZED",
    214: "CUDA_ERROR_ECC_UNCORRECTABLE",
    220: "CUDA_ERROR_NVLINK_UNCORRECTABLE",
    226: "CUDA_ERROR_CONTAINED",
    700: "CUDA_ERROR_ILLEGAL_ADDRESS",
    702: "CUDA_ERROR_LAUNCH_TIMEOUT",
    709: "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    710: "CUDA_ERROR_ASSERT",
    714: "CUDA_ERROR_HARDWARE_STACK_ERROR",
    715: "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    716: "CUDA_ERROR_MISALIGNED_ADDRESS",
    717: "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    718: "CUDA_ERROR_INVALID_PC",
    719: "CUDA_ERROR_LAUNCH_FAILED",
    721: "CUDA_ERROR_TENSOR_MEMORY_LEAK",
    810: "CUDA_ERROR_MPS_CLIENT_TERMINATED",
    999: "CUDA_ERROR_UNKNOWN",
}
_INSTALL: Final = "pip install 'sigd[gpu]' (PyCUDA is compiled: it needs g++ and the CUDA toolkit's headers)"

Result = TypeVar("Result")


class CudaError(Exception):
    """A call of the CUDA driver failed, or the device did not finish in time.

    Attributes:
        code: the CUresult; 0 where there is none (a timeout).
        sticky: True where the context is dead, and with it this process's use of CUDA.
    """

    def __init__(self, message: str, code: int = 0, *, sticky: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.sticky = sticky or code in _STICKY


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """What is known of a GPU without making a context on it.

    Attributes:
        name: for example "NVIDIA GeForce RTX 3090".
        compute_capability: for example "8.6".
        pci_bus_id: for example "0000:01:00.0"; NVML knows the card by it too.
    """

    index: int
    name: str
    compute_capability: str
    pci_bus_id: str


def gpu_facts(index: int) -> GpuFacts:
    """Look at GPU number `index` in CUDA's order.

    Raises:
        BackendUnavailable: PyCUDA, cuda-bindings, the driver or the GPU is missing.
    """
    pycuda, _ = _modules()
    try:
        count = pycuda.Device.count()
        if not 0 <= index < count:
            raise BackendUnavailable(
                f"GPU {index} was asked for, CUDA sees {count}, numbered from 0: nvidia-smi lists them"
            )
        device = pycuda.Device(index)
        major, minor = device.compute_capability()
        return GpuFacts(index, device.name(), f"{major}.{minor}", device.pci_bus_id())
    except pycuda.Error as error:
        raise BackendUnavailable(f"GPU {index} does not answer ({error}): run sigd doctor") from error


def _modules() -> tuple[Any, Any]:
    """`pycuda.driver` and `cuda.bindings.driver`, with CUDA initialised."""
    # Lazily loaded kernels would be loaded by the first request that needs them. Read once, when CUDA is
    # initialised.
    os.environ.setdefault("CUDA_MODULE_LOADING", "EAGER")
    try:
        import pycuda.driver as pycuda
        from cuda.bindings import driver
    except ImportError as error:
        if "libcuda.so" in str(error):
            raise BackendUnavailable(
                f"the NVIDIA driver is not installed here ({error}): install it, or serve on the CPU"
            ) from error
        raise BackendUnavailable(f"{error}: {_INSTALL}") from error
    try:
        pycuda.init()
    except pycuda.Error as error:
        raise BackendUnavailable(
            f"CUDA finds no GPU ({error}): nvidia-smi should list one; run sigd doctor"
        ) from error
    return pycuda, driver


class _Owner:
    """A thread that does one piece of work after the other.

    A process that ends does not wait for it: it may hang in the driver, and PyCUDA aborts the process when a
    thread ends normally after its context has died.
    """

    def __init__(self, name: str) -> None:
        self._work: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Callable[[], Result]) -> Result:
        """Do it there, and wait for it; at once where this is that thread."""
        if threading.current_thread() is self._thread:
            return work()
        done: Future[Result] = Future()
        self._work.put((work, done))
        return done.result()

    def end(self) -> None:
        """End the thread."""
        self._work.put(None)
        self._thread.join()

    def _loop(self) -> None:
        while (item := self._work.get()) is not None:
            work, done = item
            try:
                done.set_result(work())
            except BaseException as error:  # noqa: BLE001
                done.set_exception(error)
            # Nothing of it may be held until the next piece comes.
            del item, work, done


class Gpu:
    """The primary context of one GPU, shared by all users of the GPU in this process."""

    _acquired: Final[dict[int, Gpu]] = {}
    _acquiring = threading.Lock()

    facts: GpuFacts
    pycuda: ModuleType
    driver: ModuleType

    def __init__(self, index: int) -> None:
        self.facts = gpu_facts(index)
        self.pycuda, self.driver = _modules()
        self._users = 0
        self._owner = _Owner(f"sigd-gpu-{index}")
        try:
            self._context = self._owner.run(self._retain)
        except BaseException:
            self._owner.end()
            raise

    @classmethod
    def acquire(cls, index: int) -> Gpu:
        """The GPU with that number, its primary context retained until as many `release()` calls.

        Raises:
            BackendUnavailable: it cannot be used; the message says what is missing.
        """
        with cls._acquiring:
            gpu = cls._acquired.get(index) or cls._acquired.setdefault(index, Gpu(index))
            gpu._users += 1
            return gpu

    def release(self) -> None:
        """Give the context back. With the last user gone its memory on the GPU is free again."""
        with self._acquiring:
            self._users -= 1
            if self._users == 0 and self._acquired.get(self.facts.index) is self:
                del self._acquired[self.facts.index]
                self.driver.cuCtxSetCurrent(0)
                self._owner.run(self._context.detach)
                self._owner.end()

    def abandon(self, *kept: object) -> None:
        """Leave everything as it is, for ever: on a device that died or hangs, freeing fails or never
        returns.

        `kept` and all that it holds is never finalised, not even when the process ends.
        """
        with self._acquiring:
            self._acquired.pop(self.facts.index, None)
        for immortal in (self, *kept):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(immortal))

    def run(self, work: Callable[[], Result]) -> Result:
        """Run `work` on the owner's thread with the context current, and wait for it.

        Raises:
            CudaError: in place of PyCUDA's own errors; and whatever else `work` raises.
        """

        def inside() -> Result:
            try:
                self._context.push()
                try:
                    result = work()
                except BaseException:
                    # On a dead context this may fail too, and what failed first says more.
                    with suppress(self.pycuda.Error):
                        self._context.pop()
                    raise
                self._context.pop()
                return result
            except self.pycuda.Error as error:
                raise self.error_of(error) from error

        return self._owner.run(inside)

    def make_current(self) -> None:
        """Let the calling thread launch, record and query. Cheap, and may be repeated."""
        self.checked(
            "cuCtxSetCurrent", self.driver.cuCtxSetCurrent(self.driver.CUcontext(self._context.handle))
        )

    def memory(self) -> tuple[int, int]:
        """Bytes free and in all on the GPU, other processes hold the rest."""
        free, total = self.run(self.pycuda.mem_get_info)
        return free, total

    def checked(self, call: str, answer: tuple[Any, ...]) -> Any:
        """The value in cuda-bindings' answer to `call`. Raises CudaError."""
        code, *values = answer
        if code:
            raise CudaError(f"{call}: {self.error_name(code)}", int(code))
        return values[0] if values else None

    def error_name(self, code: int) -> str:
        """For example "CUDA_ERROR_ILLEGAL_ADDRESS (700)"."""
        unknown, name = self.driver.cuGetErrorName(self.driver.CUresult(code))
        return f"{_STICKY.get(int(code), 'CUDA error') if unknown else name.decode()} ({int(code)})"

    def error_of(self, error: Exception) -> CudaError:
        """What an exception of PyCUDA says. It has no number, but a context that is dead answers with it once
        more."""
        if isinstance(error, self.pycuda.MemoryError):
            return CudaError(str(error), OUT_OF_MEMORY)
        dead = self.sticky_error()
        return CudaError(f"{error} [{dead}]", dead.code) if dead else CudaError(str(error))

    def sticky_error(self) -> CudaError | None:
        """What killed the context, None while it lives. For a thread in which it is current."""
        (code,) = self.driver.cuStreamQuery(0)
        return CudaError(self.error_name(code), int(code)) if int(code) in _STICKY else None

    def dead(self) -> bool:
        """Whether the context is dead; asked on the owner's thread."""
        try:
            return self.run(self.sticky_error) is not None
        except CudaError as error:
            return error.sticky

    def _retain(self) -> Any:
        # Not CU_CTX_MAP_HOST: every context maps host memory, and here drivers refuse that flag.
        spinning = int(self.driver.CUctx_flags.CU_CTX_SCHED_SPIN)
        (code,) = self.driver.cuDevicePrimaryCtxSetFlags(self.facts.index, spinning)
        # Where other code in this process has the context already it stays as it is.
        if code and int(code) != _PRIMARY_CONTEXT_ACTIVE:
            raise self._unavailable(self.error_name(code))
        try:
            return self.pycuda.Device(self.facts.index).retain_primary_context()
        except self.pycuda.MemoryError as error:
            facts = self.facts
            raise BackendUnavailable(
                f"the memory of GPU {facts.index} ({facts.name}) is too full for a context ({error}):"
                f" {who_holds(facts.pci_bus_id)}"
            ) from error
        except self.pycuda.Error as error:
            raise self._unavailable(str(error)) from error

    def _unavailable(self, reason: str) -> BackendUnavailable:
        facts = self.facts
        return BackendUnavailable(
            f"GPU {facts.index} ({facts.name}) gives no context: {reason}: does nvidia-smi answer, is the"
            " card in exclusive mode?"
        )
