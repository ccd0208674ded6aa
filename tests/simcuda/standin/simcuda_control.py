"""What a test sees and sets of the simulated CUDA driver: `driver/control.h`, field by field.

control = loaded()              the driver in this process
control = shared(path)          the driver of a process that was started with SIMCUDA_CONTROL=path
"""

from __future__ import annotations

import ctypes
import mmap
import time
from pathlib import Path

_NAME_BYTES = 40
_FAULTS = 8
_CALLS_MAX = 96


class Fault(ctypes.Structure):
    """The `nth` call of `name` from now on answers `code`."""

    _fields_ = [("name", ctypes.c_char * _NAME_BYTES), ("nth", ctypes.c_int64), ("code", ctypes.c_int64)]


class Call(ctypes.Structure):
    """How often a function was called."""

    _fields_ = [("name", ctypes.c_char * _NAME_BYTES), ("made", ctypes.c_int64)]


class Control(ctypes.Structure):
    """See control.h for each field."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("bytes", "devices", "driver_version", "compute_capability")),
        *((name, ctypes.c_int64) for name in ("total_bytes", "cotenant_bytes")),
        *((name, ctypes.c_int64) for name in ("manual_clock", "now_ns", "launch_ns", "copy_ns", "kernel_ns")),
        *((name, ctypes.c_int64) for name in ("stall_ns", "hang", "kernel_fault", "sticky", "faults_armed")),
        ("faults", Fault * _FAULTS),
        *((name, ctypes.c_int64) for name in ("eager_loading", "device_bytes", "pinned_bytes")),
        *((name, ctypes.c_int64) for name in ("streams", "events", "graphs", "calls_known")),
        ("calls", Call * _CALLS_MAX),
    ]

    def calls_of(self, name: str) -> int:
        """How often a function was called, by its name without a version."""
        return self.all_calls()[name]

    def all_calls(self) -> dict[str, int]:
        """Every function that is simulated, and how often it was called."""
        return {call.name.decode(): call.made for call in self.calls[: self.calls_known]}

    def fail(self, name: str, code: int, nth: int = 1) -> None:
        """Let the `nth` call of a function from now on answer `code`."""
        if name not in self.all_calls():
            raise ValueError(f"{name} is not simulated")
        free = next(fault for fault in self.faults if fault.nth == 0)
        free.name, free.code, free.nth = name.encode(), code, nth
        self.faults_armed += 1

    def stop_clock(self) -> None:
        """From now on device time stands still, but for `advance` and for calls that wait."""
        self.now_ns = time.monotonic_ns()
        self.manual_clock = 1

    def advance(self, ns: int) -> None:
        """Let device time pass."""
        self.now_ns += ns

    def fix(self) -> None:
        """No trouble, no device time. A real context that is dead stays so; here the next test wants a living
        one."""
        self.stall_ns = self.hang = self.kernel_fault = self.sticky = self.faults_armed = 0
        self.manual_clock = self.launch_ns = self.copy_ns = self.kernel_ns = self.cotenant_bytes = 0
        for fault in self.faults:
            fault.nth = 0


def loaded() -> Control:
    """The control block of the driver that is loaded into this process, or now will be."""
    library = ctypes.CDLL("libcuda.so.1")
    library.simcuda_control.restype = ctypes.c_void_p
    return _checked(Control.from_address(library.simcuda_control()))


def shared(path: Path, timeout_s: float = 30.0) -> Control:
    """The control block of another process, once its driver is loaded.

    Raises:
        TimeoutError: it was not loaded in time.
    """
    deadline = time.monotonic() + timeout_s
    while not path.exists() or path.stat().st_size < ctypes.sizeof(Control):
        _wait_until(deadline, path)
    with path.open("r+b") as file:
        control = Control.from_buffer(mmap.mmap(file.fileno(), ctypes.sizeof(Control)))
    while control.bytes == 0:
        _wait_until(deadline, path)
    return _checked(control)


def _wait_until(deadline: float, path: Path) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError(f"{path}: no simulated driver has been loaded with it")
    time.sleep(0.01)


def _checked(control: Control) -> Control:
    if control.bytes != ctypes.sizeof(Control):
        raise RuntimeError(f"control.h has {control.bytes} bytes, its mirror here {ctypes.sizeof(Control)}")
    return control
