"""Neighbours on a graphics card: one that reads memory as decoding does, one that computes as a prompt does.

`python -m sigd.bench.neighbour.cards decode --card 0`. Both are bursts with a pause between them. On the
same card as the daemon they are time-sliced; with `nvidia-cuda-mps-control -d` started before both they run
under MPS; on another card they share nothing but the bus. Needs cuda-bindings, and for `prefill` nvidia-
cuda-nvrtc.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
import time
from collections.abc import Callable
from itertools import count
from typing import Any, Final

import click

from sigd.bench.errors import MissingDependency
from sigd.daemon.config.flags import WholeRange

STREAM_BYTES: Final = 512 << 20
DECODE_S: Final = 0.020
"""About one token of a model of 32 G parameters in 4 bits on an RTX 3090."""
PREFILL_S: Final = 0.300
PAUSE_S: Final = 0.005
_THREADS: Final = 256
_BLOCKS: Final = 4096
_STEPS: Final = 20_000
_SOURCE: Final = r"""
extern "C" __global__ void burn(float *out, int steps) {
    float a = threadIdx.x * 1e-3f, b = 1.000001f, c = 0.5f, d = 0.25f;
    for (int step = 0; step < steps; ++step) {
        a = fmaf(a, b, c);
        d = fmaf(d, b, a);
        c = fmaf(c, b, d);
    }
    out[blockIdx.x * blockDim.x + threadIdx.x] = a + c + d;
}
"""

Queue = Callable[[], None]
"""Queues one piece of work on the card."""


class CardWork:
    """One card with its context; `decode` and `prefill` queue a piece of each work.

    Args:
        driver: the module cuda.bindings.driver.
        number: of the card, as CUDA counts.
    """

    def __init__(self, driver: Any, number: int) -> None:
        self._driver = driver
        self._ask(driver.cuInit(0))
        found = self._ask(driver.cuDeviceGetCount())
        if number >= found:
            raise MissingDependency(f"--card {number}: CUDA shows {found} cards here (CUDA_VISIBLE_DEVICES)")
        self._device = self._ask(driver.cuDeviceGet(number))
        self._ask(driver.cuCtxSetCurrent(self._ask(driver.cuDevicePrimaryCtxRetain(self._device))))

    def decode(self) -> Queue:
        """A copy inside the card, which reads and writes memory at its full rate."""
        source, target = (self._ask(self._driver.cuMemAlloc(STREAM_BYTES)) for _ in range(2))
        return lambda: self._ask(self._driver.cuMemcpyDtoDAsync(target, source, STREAM_BYTES, 0))

    def prefill(self, nvrtc: Any) -> Queue:
        """A kernel that multiplies and adds on every core, and reads nothing."""
        out = self._ask(self._driver.cuMemAlloc(4 * _THREADS * _BLOCKS))
        module = self._ask(self._driver.cuModuleLoadData(self._compiled(nvrtc)))
        kernel = self._ask(self._driver.cuModuleGetFunction(module, b"burn"))
        arguments = ((int(out), _STEPS), (ctypes.c_void_p, ctypes.c_int))
        return lambda: self._ask(
            self._driver.cuLaunchKernel(kernel, _BLOCKS, 1, 1, _THREADS, 1, 1, 0, 0, arguments, 0)
        )

    def wait(self) -> None:
        """Until the card has done what was queued."""
        self._ask(self._driver.cuCtxSynchronize())

    def _compiled(self, nvrtc: Any) -> bytes:
        attributes = self._driver.CUdevice_attribute
        major, minor = (
            self._ask(self._driver.cuDeviceGetAttribute(attribute, self._device))
            for attribute in (
                attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        program = self._ask(nvrtc.nvrtcCreateProgram(_SOURCE.encode(), b"burn.cu", 0, [], []))
        self._ask(nvrtc.nvrtcCompileProgram(program, 1, [f"--gpu-architecture=sm_{major}{minor}".encode()]))
        cubin: bytes = b" " * self._ask(nvrtc.nvrtcGetCUBINSize(program))
        self._ask(nvrtc.nvrtcGetCUBIN(program, cubin))
        return cubin

    def _ask(self, answer: tuple[Any, ...]) -> Any:
        """The value in an answer of the driver.

        Raises:
            MissingDependency: it is an error.
        """
        code, *values = answer
        if int(code):
            raise MissingDependency(f"the card's driver refused: {code}")
        return values[0] if values else None


def bursts(
    queue: Queue,
    wait: Callable[[], None],
    burst_s: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    times: int | None = None,
) -> None:
    """Keep the card busy for `burst_s`, pause, and again; `times` bursts, or without end."""
    piece_s = _piece_s(queue, wait, clock)
    pieces = max(1, round(burst_s / piece_s))
    for _ in count() if times is None else range(times):
        for _ in range(pieces):
            queue()
        wait()
        sleep(PAUSE_S)


def _piece_s(queue: Queue, wait: Callable[[], None], clock: Callable[[], float]) -> float:
    """Seconds of one piece, after a first one that warms up."""
    queue()
    wait()
    begin = clock()
    queue()
    wait()
    return max(clock() - begin, 1e-6)


@click.command(
    epilog="""\b
Examples:
  sigd bench --neighbour "python -m sigd.bench.neighbour.cards decode"              the same card, time-sliced
  sigd bench --neighbour "python -m sigd.bench.neighbour.cards prefill --card 1"    the other card
  nvidia-cuda-mps-control -d && sigd bench --neighbour "..."                        under MPS

\b
Exit codes: it works until it is ended; 3 without a card or cuda-bindings."""
)
@click.argument("what", type=click.Choice(["decode", "prefill"]))
@click.option("--card", type=WholeRange(0), default=0, show_default=True, help="As CUDA counts.")
def main(what: str, card: int) -> None:
    """Keep a card busy as a language model does: in memory (decode) or in arithmetic (prefill)."""
    try:
        work = CardWork(_module("cuda.bindings.driver"), card)
        if what == "decode":
            bursts(work.decode(), work.wait, DECODE_S)
        else:
            bursts(work.prefill(_module("cuda.bindings.nvrtc")), work.wait, PREFILL_S)
    except MissingDependency as error:
        click.echo(f"sigd: {error}", err=True)
        sys.exit(error.exit_code)


def _module(name: str) -> Any:
    """
    Raises:
        MissingDependency: it is not installed, or there is no driver behind it.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        raise MissingDependency(
            f"{name}: {error}; pip install cuda-bindings, beside NVIDIA's driver"
        ) from error


if __name__ == "__main__":
    main(prog_name="python -m sigd.bench.neighbour.cards")
