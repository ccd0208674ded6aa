"""Damaged plans against the native kernels under the address and undefined-behaviour sanitizers.

    python -m tests.fuzz.fuzz_plans [COUNT] [SEED]

A million of them where no count is given. It needs gcc or clang with their sanitizers.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from sigd.models.native.plan import LEAF, NONE, Binary, Function, Kind, Norm, Plan, Reduce

ROOT: Final = Path(__file__).resolve().parents[2]
SOURCES: Final = (
    *("runner.c", "plan.c", "pack.c", "trees.c", "sliding.c", "step_view.c", "columns.c", "column_view.c"),
    "isa_plain.c",
)
VECTORS: Final = {
    "isa_avx2.c": ("-mavx2", "-mfma", "-mf16c"),
    "isa_avx512.c": ("-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
}
FLAGS: Final = (
    *("-std=gnu11", "-O1", "-g", "-ffp-contract=off", "-fno-math-errno"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
)


def seeds() -> Iterator[bytes]:
    """Plans that hold every kind of operation."""
    draw = np.random.default_rng(0)

    def floats(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return draw.standard_normal(shape).astype(np.float32)

    layers = Plan([12, 5])
    wide = layers.add(Kind.DENSE, (0,), 80, (floats(12, 80), floats(80)), (12, 80, Function.RELU, 0))
    split = layers.add(Kind.DENSE, (wide,), 40, (floats(80, 40), floats(40)), (80, 40, Function.TANH, 1))
    steps = layers.add(Kind.DENSE, (split,), 20, (floats(20, 10), floats(10)), (20, 10, 0, 0))
    layers.add(Kind.DENSE, (steps,), 5, (floats(20, 5), floats(5)), (20, 5, 0, 0))
    layers.ops[-1].out = 1
    yield layers.encode()

    narrow = Plan([12, 20])
    bytes_ = draw.integers(-127, 128, (12, 80)).astype(np.int8)
    value = narrow.add(Kind.DENSE, (0,), 80, (bytes_, floats(80), floats(80)), (12, 80, Function.RELU, 0))
    half = floats(80, 20).astype(np.float16)
    narrow.add(Kind.DENSE, (value,), 20, (half, floats(20)), (80, 20, Function.TANH, 1))
    narrow.ops[-1].out = 1
    yield narrow.encode()

    simple = Plan([12, 12])
    value = simple.add(Kind.MAP, (0,), 12, params=(Function.GELU,))
    value = simple.add(Kind.AFFINE, (value,), 12, (floats(12), floats(12)))
    value = simple.add(Kind.BINARY, (value, 0), 12, params=(Binary.MAX,))
    value = simple.add(Kind.CONSTANT, (value,), 12, (floats(12),), (Binary.MUL, 1))
    value = simple.add(Kind.SOFTMAX, (value,), 12, params=(4, 0))
    value = simple.add(Kind.LAYERNORM, (value,), 12, (floats(6), floats(6)), (6, 0), (1e-5,))
    value = simple.add(Kind.NORMALIZE, (value,), 12, params=(3, Norm.L2))
    value = simple.add(Kind.IMPUTE, (value,), 12, (floats(12),), (1,))
    index = np.arange(12, dtype=np.uint32)[::-1].copy()
    value = simple.add(Kind.INDEX, (value,), 12, (index,), (0, 12, 0))
    value = simple.add(Kind.REDUCE, (value,), 4, params=(3, Reduce.MEAN))
    simple.append(Kind.COPY, value, 1, (0, 4, 0))
    simple.append(Kind.COPY, 0, 1, (2, 8, 4))
    yield simple.encode()

    for kind, gates, resets_first in ((Kind.LSTM, 4, 0), (Kind.GRU, 3, 0), (Kind.GRU, 3, 1)):
        recurrent = Plan([12, 5])
        weights = (floats(3, gates * 5), floats(5, gates * 5), floats(gates * 5), floats(gates * 5))
        recurrent.add(kind, (0,), 5, weights, (4, 3, 5, 0, 1, resets_first))
        recurrent.ops[-1].out = 1
        yield recurrent.encode()

    steps_of = Plan([12, 2])
    value = steps_of.add(Kind.AFFINE, (0,), 12, (np.tile(floats(3), 4), np.tile(floats(3), 4)))
    lstm = (floats(3, 20), floats(5, 20), floats(20), floats(20))
    value = steps_of.add(Kind.LSTM, (value,), 20, lstm, (4, 3, 5, 1, 0))
    value = steps_of.add(Kind.SOFTMAX, (value,), 20, params=(5, 0))
    gru = (floats(5, 15), floats(5, 15), floats(15), floats(15))
    steady = steps_of.add(Kind.GRU, (value,), 20, gru, (4, 5, 5, 1, 0, 1))
    steady = steps_of.add(Kind.GRU, (steady,), 20, gru, (4, 5, 5, 1, 0, 0))
    value = steps_of.add(Kind.BINARY, (value, steady), 20, params=(Binary.ADD,))
    value = steps_of.add(Kind.COPY, (value,), 5, params=(15, 5, 0))
    steps_of.add(Kind.DENSE, (value,), 2, (floats(5, 2), floats(2)), (5, 2, 0, 0))
    steps_of.ops[-1].out = 1
    yield steps_of.encode()

    convolved = Plan([24, 2])  # 8 steps of 3 features, each of two convolutions over 3 steps
    value, places = 0, np.arange(24, dtype=np.uint32).reshape(8, 3)
    for size, reach in ((3, 1), (4, 2)):
        laid = np.full((8, 3, size), NONE, np.uint32)
        for back in range(3):
            laid[back * reach :, back] = places[: 8 - back * reach]
        value = convolved.add(Kind.INDEX, (value,), laid.size, (laid.reshape(-1),), (0, laid.size, 0))
        layer = (floats(3 * size, 4), floats(4))
        value = convolved.add(Kind.DENSE, (value,), 32, layer, (3 * size, 4, Function.RELU, 0))
        places = np.arange(32, dtype=np.uint32).reshape(8, 4)
    added = convolved.add(Kind.CONSTANT, (value,), 32, (np.tile(floats(4), 8),), (Binary.ADD, 0))
    value = convolved.add(Kind.BINARY, (value, added), 32, params=(Binary.MUL,))
    value = convolved.add(Kind.COPY, (value,), 4, params=(28, 4, 0))
    convolved.add(Kind.DENSE, (value,), 2, (floats(4, 2), floats(2)), (4, 2, 0, 0))
    convolved.ops[-1].out = 1
    yield convolved.encode()

    trees = Plan([12, 2])
    features = np.array([3, LEAF, 7, LEAF, LEAF, LEAF], np.uint32)
    tables = (np.array([5, 1], np.uint32), features, floats(6), np.array([0, 1], np.uint32))
    trees.add(Kind.TREES, (0,), 2, (*tables, floats(4, 1), floats(2)), (2, 1, 0))
    trees.ops[-1].out = 1
    yield trees.encode()


def build(folder: Path, inlined: bool) -> Path:
    """The harness, compiled into that folder.

    Args:
        inlined: the kernels as they are shipped, a copy for each size, which takes a minute; else each
            function once.

    Raises:
        subprocess.CalledProcessError: the compiler has no sanitizers, or refused it.
    """
    compiler = os.environ.get("CC") or next(name for name in ("gcc", "clang", "cc") if shutil.which(name))
    native = ROOT / "models" / "native"
    sources: dict[Path, tuple[str, ...]] = {native / name: () for name in SOURCES}
    if platform.machine() == "x86_64":
        sources |= {native / name: flags for name, flags in VECTORS.items()}
    sources[ROOT / "tests" / "fuzz" / "plans.c"] = ()
    plain = () if inlined else ("-O0", "-DINLINE=static", "-DUNROLL=")
    objects = []
    for source, flags in sources.items():
        objects.append(str(folder / f"{source.name}.o"))
        words = [compiler, *FLAGS, *plain, *flags, f"-I{native}", "-c", str(source), "-o", objects[-1]]
        subprocess.run(words, check=True)
    harness = folder / "fuzz_plans"
    subprocess.run([compiler, *FLAGS, *objects, "-lm", "-o", str(harness)], check=True)
    return harness


def fuzz(count: int, seed: int, folder: Path, inlined: bool = True) -> str:
    """Run the harness; what it prints. `inlined`: see `build`.

    Raises:
        subprocess.CalledProcessError: a sanitizer ended it.
    """
    paths = []
    for number, plan in enumerate(seeds()):
        paths.append(folder / f"{number}.plan")
        paths[-1].write_bytes(plan)
    words = [str(build(folder, inlined)), str(count), str(seed), *map(str, paths)]
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    """From the command line."""
    count, seed = (int(word) for word in [*sys.argv[1:], *("1000000", "1")[len(sys.argv) - 1 :]])
    with tempfile.TemporaryDirectory() as folder:
        print(fuzz(count, seed, Path(folder)), end="")


if __name__ == "__main__":
    main()
