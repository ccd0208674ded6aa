"""A process with an engine on a real card, to which something happens: python -m tests.gpu.faults FAULT
ENGINE

    wild       a kernel on the backend's stream writes where there is no memory: the context is dead
    late       one keeps the card busy for two seconds, with a device timeout of 200 ms: to sigd it hangs
    full       another tenant holds the card's memory while the engine is opened, then gives it back

What it prints is one JSON object. The process must end well by itself, whatever happened to its context.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from sigd.models.backend import Backend
from sigd.models.errors import BackendFailed, BackendUnavailable
from sigd.models.gpu.cuda import Gpu
from sigd.models.gpu.options import GpuOptions
from sigd.models.registry import open_backend

DEVICE_TIMEOUT_MS: Final = 200
LATE_NS: Final = 2_000_000_000
_PTX: Final = b"""
.version 7.0
.target sm_70
.address_size 64
.visible .entry wild() {
    .reg .b64 %address;
    .reg .b32 %value;
    mov.u64 %address, 16;
    mov.u32 %value, 1;
    st.global.u32 [%address], %value;
    ret;
}
.visible .entry late(.param .u64 duration) {
    .reg .pred %over;
    .reg .b64 %start, %now, %end;
    ld.param.u64 %end, [duration];
    mov.u64 %start, %globaltimer;
    add.u64 %end, %end, %start;
AGAIN:
    mov.u64 %now, %globaltimer;
    setp.lt.u64 %over, %now, %end;
    @%over bra AGAIN;
    ret;
}
\0"""
_TENANT: Final = """
import sys
import pycuda.driver as cuda
cuda.init()
context = cuda.Device(0).retain_primary_context()
context.push()
held, size = [], 1 << 34
while size >= 1 << 16:
    try:
        held.append(cuda.mem_alloc(size))
    except cuda.MemoryError:
        size //= 2
print("holding", flush=True)
sys.stdin.readline()
for allocation in held:
    allocation.free()
context.pop()
context.detach()
"""


def main() -> None:
    """The command."""
    fault, engine = sys.argv[1], Path(sys.argv[2])
    found = full(engine) if fault == "full" else broken(engine, fault)
    print(json.dumps(found))


def broken(engine: Path, fault: str) -> dict[str, Any]:
    """What a backend says whose stream got that kernel, at once and when it is asked again."""
    backend = open_backend(engine, gpu=GpuOptions(device_timeout_ms=DEVICE_TIMEOUT_MS))
    run(backend)
    launch(backend, fault)
    start_ns = time.monotonic_ns()
    said = [attempt(backend) for _ in range(2)]
    taken_ms = (time.monotonic_ns() - start_ns) / 1e6
    backend.close()
    return {"said": said, "taken_ms": taken_ms}


def full(engine: Path) -> dict[str, Any]:
    """What opening says while the memory is held, and whether it works afterwards."""
    with subprocess.Popen(
        [sys.executable, "-c", _TENANT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as tenant:
        assert tenant.stdout is not None
        assert tenant.stdout.readline() == "holding\n"
        try:
            open_backend(engine).close()
            said = ""
        except BackendUnavailable as error:
            said = str(error)
        tenant.communicate("\n")
    backend = open_backend(engine)
    run(backend)
    backend.close()
    return {"said": said, "tenant_pid": tenant.pid}


def run(backend: Backend) -> None:
    """One row."""
    backend.submit(1)
    while not backend.ready():
        pass


def attempt(backend: Backend) -> dict[str, Any] | None:
    """The failure of a batch; None where it went well."""
    try:
        run(backend)
    except BackendFailed as error:
        return {"message": str(error), "fatal": error.fatal}
    return None


def launch(backend: Backend, fault: str) -> None:
    """Put that kernel on the backend's stream."""
    gpu = Gpu.acquire(0)
    driver = gpu.driver

    def queue() -> None:
        module = gpu.checked("cuModuleLoadData", driver.cuModuleLoadData(_PTX))
        function = gpu.checked("cuModuleGetFunction", driver.cuModuleGetFunction(module, fault.encode()))
        arguments = ((LATE_NS,), (ctypes.c_uint64,)) if fault == "late" else 0
        # The stream itself, to break it from outside as a fault of the card would.
        stream = backend._opened.prepared.lane.handle  # type: ignore[attr-defined]
        gpu.checked(
            "cuLaunchKernel", driver.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, arguments, 0)
        )

    gpu.run(queue)


if __name__ == "__main__":
    main()
