"""Fixtures that every area's tests may use: small models made on the spot, market captures, a clean
thread."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import settings
from onnx import TensorProto, helper, numpy_helper

from sigd.daemon.runtime.logs import LineHandler
from sigd.models import trusted_file
from sigd.models.build.runtimes import this_machine
from sigd.models.denormals import float_environment_kept
from sigd.models.engine import INSTALL

# How long an example takes says something about the machine and nothing about the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

_OPSET = 17
_IR_VERSION = 9

_STARTS_PROGRAMS = {"start_daemon", "start_peer", "start_sshd", "cpp", "programs"}
"""Fixtures that start a daemon, a bench's peer or a compiler."""
_STARTING_PLACES = (
    "tests/e2e/",
    "tests/fuzz/test_fuzz_rings.py",
    "tests/bench/backfill/",
    "tests/bench/market/test_capture_commands.py",
    "tests/wire/cpp/",
)
"""Where tests start them in ways of their own."""
_FIRST_LOOK = "tests/e2e/test_serving.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that starts programs takes seconds, so it is slow: `make test` keeps one file of them, `make
    test-all` runs all."""
    for item in items:
        path = item.path.as_posix()
        fixtures = _STARTS_PROGRAMS.intersection(getattr(item, "fixturenames", ()))
        starts = bool(fixtures) or any(place in path for place in _STARTING_PLACES)
        if starts and not path.endswith(_FIRST_LOOK):
            item.add_marker(pytest.mark.slow)


class ModelMaker:
    """Writes small ONNX models into one folder. Each method returns the path of a model that can be served.

    Weights are drawn from a seed and scaled by 1/sqrt(inputs), so that outputs stay near 1. `batch` is the
    first axis of input and output: a name for any batch, a number for a fixed one.

    Attributes:
        faulty: models that fail on some rows.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faulty: set[Path] = set()
        self._written = 0

    def mlp(
        self,
        features: int = 8,
        hidden: Sequence[int] = (16,),
        outputs: int = 3,
        seed: int = 0,
        batch: int | str = "N",
    ) -> Path:
        """Dense layers with ReLU between them: [batch, features] -> [batch, outputs]."""
        draw = np.random.default_rng(seed)
        sizes = (features, *hidden, outputs)
        nodes, weights, layer_input = [], [], "features"
        for layer, (size_in, size_out) in enumerate(pairwise(sizes)):
            last = layer == len(sizes) - 2
            weights += [
                _weights(f"w{layer}", draw, size_in, size_out),
                _weights(f"b{layer}", draw, size_out),
            ]
            dense = "logits" if last else f"dense{layer}"
            nodes.append(helper.make_node("Gemm", [layer_input, f"w{layer}", f"b{layer}"], [dense]))
            if not last:
                layer_input = f"relu{layer}"
                nodes.append(helper.make_node("Relu", [dense], [layer_input]))
        return self.graph(nodes, [batch, features], [batch, outputs], weights)

    def conv(self, channels: int = 2, length: int = 16, outputs: int = 3, seed: int = 0) -> Path:
        """A convolution over time with a dense layer: [N, channels, length] -> [N, outputs]."""
        draw = np.random.default_rng(seed)
        nodes = [
            helper.make_node("Conv", ["features", "kernel"], ["convolved"], pads=[1, 1]),
            helper.make_node("Relu", ["convolved"], ["activated"]),
            helper.make_node("Flatten", ["activated"], ["flat"]),
            helper.make_node("Gemm", ["flat", "w", "b"], ["logits"]),
        ]
        kernel = numpy_helper.from_array(draw.standard_normal((4, channels, 3)).astype(np.float32), "kernel")
        weights = [kernel, _weights("w", draw, 4 * length, outputs), _weights("b", draw, outputs)]
        return self.graph(nodes, ["N", channels, length], ["N", outputs], weights)

    def lstm(
        self, steps: int = 5, features: int = 4, hidden: int = 8, outputs: int = 2, seed: int = 0
    ) -> Path:
        """One LSTM layer, its last state through a dense layer: [N, steps, features] -> [N, outputs]."""
        draw = np.random.default_rng(seed)
        nodes = [
            helper.make_node("Transpose", ["features"], ["by_step"], perm=[1, 0, 2]),
            helper.make_node("LSTM", ["by_step", "w", "r", "b"], ["", "state"], hidden_size=hidden),
            helper.make_node("Squeeze", ["state", "first_axis"], ["last"]),
            helper.make_node("Gemm", ["last", "dense", "bias"], ["logits"]),
        ]

        def gates(name: str, *shape: int) -> onnx.TensorProto:
            return numpy_helper.from_array(draw.uniform(-0.4, 0.4, (1, *shape)).astype(np.float32), name)

        weights = [
            gates("w", 4 * hidden, features),
            gates("r", 4 * hidden, hidden),
            gates("b", 8 * hidden),
            numpy_helper.from_array(np.array([0], np.int64), "first_axis"),
            _weights("dense", draw, hidden, outputs),
            _weights("bias", draw, outputs),
        ]
        return self.graph(nodes, ["N", steps, features], ["N", outputs], weights)

    def tcn(
        self,
        steps: int = 5,
        features: int = 4,
        channels: int = 8,
        dilations: Sequence[int] = (1, 1),
        outputs: int = 2,
        seed: int = 0,
    ) -> Path:
        """Causal convolutions of two steps, each but the first with what it read added, and a dense layer on
        the newest step: [N, steps, features] -> [N, outputs]."""
        draw = np.random.default_rng(seed)
        nodes = [helper.make_node("Transpose", ["features"], ["x"], perm=[0, 2, 1])]
        weights, before, size = [], "x", features
        for layer, dilation in enumerate(dilations):
            kernel = draw.uniform(-0.5, 0.5, (channels, size, 2)).astype(np.float32)
            weights += [
                numpy_helper.from_array(kernel, f"k{layer}"),
                _weights(f"kb{layer}", draw, channels),
            ]
            names = [before, f"k{layer}", f"kb{layer}"]
            pads = [dilation, 0]
            nodes.append(helper.make_node("Conv", names, [f"c{layer}"], dilations=[dilation], pads=pads))
            nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]))
            if layer:
                nodes.append(helper.make_node("Add", [f"r{layer}", before], [f"s{layer}"]))
            before, size = f"s{layer}" if layer else f"r{layer}", channels
        nodes += [
            helper.make_node("Gather", [before, "newest"], ["last"], axis=2),
            helper.make_node("Gemm", ["last", "dense", "bias"], ["logits"]),
        ]
        weights += [
            numpy_helper.from_array(np.array(steps - 1, np.int64), "newest"),
            _weights("dense", draw, channels, outputs),
            _weights("bias", draw, outputs),
        ]
        return self.graph(nodes, ["N", steps, features], ["N", outputs], weights)

    def carried(self, features: int = 4, outputs: int = 2, seed: int = 0, hidden: int = 6) -> Path:
        """A recurrent step with two states: h [N, hidden] and c [N, 2, hidden / 2] beside the features. Huge
        features make the answer infinite."""
        draw = np.random.default_rng(seed)
        make = helper.make_node
        nodes = [
            make("MatMul", ["features", "w"], ["from_features"]),
            make("MatMul", ["h_in", "r"], ["from_state"]),
            make("Add", ["from_features", "from_state"], ["gates"]),
            make("Tanh", ["gates"], ["h_out"]),
            make("Reshape", ["h_out", "pairs"], ["h_pairs"]),
            make("Mul", ["c_in", "half"], ["faded"]),
            make("Add", ["faded", "h_pairs"], ["c_out"]),
            make("Reshape", ["c_out", "flat"], ["c_flat"]),
            make("MatMul", ["c_flat", "o"], ["from_c"]),
            make("MatMul", ["features", "d"], ["direct"]),
            make("Add", ["from_c", "direct"], ["logits"]),
        ]
        weights = [
            _weights("w", draw, features, hidden),
            _weights("r", draw, hidden, hidden),
            _weights("o", draw, hidden, outputs),
            _weights("d", draw, features, outputs),
            numpy_helper.from_array(np.array(0.5, np.float32), "half"),
            numpy_helper.from_array(np.array([-1, 2, hidden // 2], np.int64), "pairs"),
            numpy_helper.from_array(np.array([-1, hidden], np.int64), "flat"),
        ]

        def tensor(name: str, *dims: int) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *dims])

        inputs = [tensor("h_in", hidden), tensor("features", features), tensor("c_in", 2, hidden // 2)]
        outs = [tensor("c_out", 2, hidden // 2), tensor("logits", outputs), tensor("h_out", hidden)]
        return self.save(helper.make_graph(nodes, "carried", inputs, outs, weights))

    def doubled(self, features: int = 4, batch: int | str = "N") -> Path:
        """Twice the features: answers can be told by looking at them."""
        return self.scaled(2.0, features, batch)

    def scaled(self, factor: float, features: int = 4, batch: int | str = "N") -> Path:
        """The features times `factor`: with a large one even a denormal would show."""
        weight = numpy_helper.from_array(np.array(factor, np.float32), "factor")
        nodes = [helper.make_node("Mul", ["features", "factor"], ["logits"])]
        return self.graph(nodes, [batch, features], [batch, features], [weight])

    def copied(self, features: int = 4) -> Path:
        """The features themselves: a graph without arithmetic, whose output is its input."""
        nodes = [helper.make_node("Identity", ["features"], ["logits"])]
        return self.graph(nodes, ["N", features], ["N", features])

    def summed(self, features: int = 4, batch: int | str = "N") -> Path:
        """The sum of the features, as an output of one axis: [batch, features] -> [batch]."""
        axis = numpy_helper.from_array(np.array([1], np.int64), "axis")
        nodes = [helper.make_node("ReduceSum", ["features", "axis"], ["logits"], keepdims=0)]
        return self.graph(nodes, [batch, features], [batch], [axis])

    def failing(self, features: int = 4, outputs: int = 2, entries: int = 4) -> Path:
        """Row `int(first feature)` of a table: the whole batch fails where a first feature is `entries` or
        more."""
        table = np.arange(entries * outputs, dtype=np.float32).reshape(entries, outputs)
        nodes = [
            helper.make_node("Gather", ["features", "first"], ["chosen"], axis=1),
            helper.make_node("Cast", ["chosen"], ["entry"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "entry"], ["logits"]),
        ]
        weights = [
            numpy_helper.from_array(np.array(0, np.int64), "first"),
            numpy_helper.from_array(table, "table"),
        ]
        path = self.graph(nodes, ["N", features], ["N", outputs], weights)
        self.faulty.add(path)
        return path

    def slow(self, features: int = 4, outputs: int = 2, layers: int = 500) -> Path:
        """`layers` dense layers of 256 x 256, one after the other: about 2 us each for one row."""
        draw = np.random.default_rng(0)
        nodes = [helper.make_node("MatMul", ["features", "widen"], ["x0"])]
        for layer in range(layers):
            nodes.append(helper.make_node("MatMul", [f"x{layer}", "square"], [f"dense{layer}"]))
            nodes.append(helper.make_node("Tanh", [f"dense{layer}"], [f"x{layer + 1}"]))
        nodes.append(helper.make_node("MatMul", [f"x{layers}", "narrow"], ["logits"]))
        weights = [
            _weights("widen", draw, features, 256),
            _weights("square", draw, 256, 256),
            _weights("narrow", draw, 256, outputs),
        ]
        return self.graph(nodes, ["N", features], ["N", outputs], weights)

    def mixing(self, features: int = 4) -> Path:
        """The features less their mean over the batch: a row's answer depends on its neighbours."""
        nodes = [
            helper.make_node("ReduceMean", ["features"], ["mean"], axes=[0]),
            helper.make_node("Sub", ["features", "mean"], ["logits"]),
        ]
        return self.graph(nodes, ["N", features], ["N", features])

    def bounded_together(self, features: int = 4) -> Path:
        """The features less the largest in the batch, or less 100: a row's answer depends on its neighbours,
        and a row alone still has one of its own."""
        nodes = [
            helper.make_node("ReduceMax", ["features"], ["largest"], axes=[0]),
            helper.make_node("Max", ["largest", "hundred"], ["bound"]),
            helper.make_node("Sub", ["features", "bound"], ["logits"]),
        ]
        hundred = numpy_helper.from_array(np.array(100, np.float32), "hundred")
        return self.graph(nodes, ["N", features], ["N", features], [hundred])

    def graph(
        self,
        nodes: Sequence[onnx.NodeProto],
        input_dims: Sequence[int | str | None],
        output_dims: Sequence[int | str | None] | None,
        weights: Sequence[onnx.TensorProto] = (),
    ) -> Path:
        """Any graph from the input `features` to the output `logits`, both float32."""
        graph = helper.make_graph(
            nodes,
            "model",
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, input_dims)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, output_dims)],
            weights,
        )
        return self.save(graph)

    def save(self, graph: onnx.GraphProto, name: str | None = None) -> Path:
        """Any graph, written as it is: nothing says that it can be served."""
        opset = helper.make_opsetid("", _OPSET)
        path = self.new_path() if name is None else self.folder / name
        onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION), path)
        return path

    def new_path(self) -> Path:
        """Where the next model goes; nothing is there yet."""
        self._written += 1
        return self.folder / f"model-{self._written}.onnx"


def _weights(name: str, draw: np.random.Generator, *shape: int) -> onnx.TensorProto:
    values = draw.standard_normal(shape) / np.sqrt(shape[0])
    return numpy_helper.from_array(values.astype(np.float32), name)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> ModelMaker:
    """A maker of small ONNX models."""
    return ModelMaker(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of market data, from SIGD_DATA or beside the repository; skips where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ["SIGD_DATA"]) if "SIGD_DATA" in os.environ else beside
    if not folder.is_dir():
        pytest.skip(f"no market data at {folder}: set SIGD_DATA to a folder that has some")
    return folder


@pytest.fixture(scope="session")
def capture_dir(data_dir: Path) -> Path:
    """The folder of the captures (*.gz) in the market data; skips where there is none."""
    captures = sorted(data_dir.glob("**/*.gz"))
    if not captures:
        pytest.skip(f"no market capture under {data_dir}: set SIGD_DATA to a folder that has some")
    return captures[0].parent


def children_of(pid: int) -> list[int]:
    """Its processes, whichever of its threads started them."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        # A thread may end meanwhile.
        with suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, children.read_text().split())
    return found


@pytest.fixture(scope="session")
def no_gpu_because() -> str:
    """Why TensorRT does not run here; empty where it does: on a GPU, or on the simulated one of
    `make test-simcuda`."""
    machine = this_machine()
    if machine.gpu is None:
        return f"needs a GPU ({machine.no_gpu_because}); `make test-simcuda` runs it on a simulated one"
    if "tensorrt" not in machine.installed:
        return f"needs TensorRT: {INSTALL['tensorrt']}"
    return ""


@pytest.fixture(autouse=True)
def _float_environment() -> Iterator[None]:
    """Opening a backend makes its thread flush denormals, which other tests must not inherit."""
    with float_environment_kept():
        yield


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A command that logs, called within this process, must not keep the next one's words from its screen."""
    root = logging.getLogger()
    before = root.handlers[:]
    yield
    root.handlers[:] = [
        handler for handler in root.handlers if handler in before or not isinstance(handler, LineHandler)
    ]


@pytest.fixture(autouse=True)
def _trust_is_demanded_by_none_but_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that serves, called within this process, must not change what the next test may read."""
    # A process that demands it never stops to: that is why there is no public way back.
    monkeypatch.setattr(trusted_file._demand, "made", False)
